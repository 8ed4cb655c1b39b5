"""Named runs: published experiments and this project's own, from named_runs.toml.

`EXPERIMENTS` holds all of them, `RUNS` the functions that return the configs of those
that `tf-dlrm train --run` accepts.
"""

import dataclasses
import pathlib
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.runs.config import RunConfig
from pipelines.runs.defaults import COMPLETED
from pipelines.runtime import UserError

__all__ = ["EXPERIMENTS", "RUNS", "NamedRun", "get", "to_markdown"]

_WIDTH = 88


@dataclasses.dataclass(frozen=True)
class NamedRun:
    """An experiment: its commands, data, settings and their sources.

    Attributes:
        name: Name of the run; if it has a config, a value of `tf-dlrm train --run`.
        summary: One-line description.
        data: The data that it needs.
        command: The command lines, in order.
        config: Options of its `RunConfig`; `None` if it is not a training run.
        settings: References for its settings.
        published: Published results, each with its source.
        differences: Differences from the published experiment.
    """

    name: str
    summary: str
    data: str
    command: tuple[str, ...]
    config: Mapping[str, Any] | None = None
    settings: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()

    def make(self) -> RunConfig:
        """Return the config of a training run."""
        return RunConfig(**(self.config or {}))

    def describe(self) -> str:
        """Return the description as text for a terminal."""
        lines = [self.name, f"  {self.summary}"]
        for label, texts in (
            ("data", [self.data]),
            ("command", self.command),
            ("settings", self.settings),
            ("published", self.published),
            ("differs", self.differences),
        ):
            for number, text in enumerate(texts):
                first = f"  {'' if number else label:<11}"
                if label == "command":  # not wrapped, so that it can be copied
                    lines.append(first + text)
                    continue
                lines += textwrap.wrap(
                    text,
                    _WIDTH,
                    initial_indent=first,
                    subsequent_indent=" " * 13,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
        return "\n".join(lines)


def to_markdown(runs: Sequence[NamedRun]) -> str:
    """Return a section for each run: commands, data and published results."""
    sections = []
    for run in runs:
        facts = [f"- **Data:** {run.data}"]
        facts += [f"- **Published:** {text}" for text in run.published or ["none"]]
        commands = "```bash\n{}\n```".format("\n".join(run.command))
        sections += [f"### {run.name}", run.summary, commands, "\n".join(facts)]
    return "\n\n".join(sections)


def _read() -> Iterator[NamedRun]:
    path = pathlib.Path(__file__).with_suffix(".toml")
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    for name, facts in content["runs"].items():
        recipe = content["recipes"].get(facts.pop("recipe", None), {})
        config = facts.pop("config", None)
        if config is not None:
            config = _to_tuples(recipe.get("config", {}) | config)
        for part in ("settings", "differences"):
            facts[part] = [*facts.get(part, ()), *recipe.get(part, ())]
        yield NamedRun(name, config=config, **_to_tuples(facts))


def _to_tuples(values):
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


EXPERIMENTS = {run.name: run for run in _read()}
RUNS = {name: run.make for name, run in EXPERIMENTS.items() if run.config is not None}


def get(name: str | None) -> RunConfig:
    """Return the config of a named run; for `None`, the default config.

    The default is the demo's model, with values that suit the optimizer and the number
    of rows, once it is known.

    Raises:
        ValueError: If there is no such run.
    """
    if name is None:
        left_out = dict.fromkeys(COMPLETED)
        return dataclasses.replace(RUNS["demo"](), compare_models=True, **left_out)
    if name not in RUNS:
        raise UserError(
            f"There is no named run '{name}'. Named runs: {', '.join(RUNS)}"
        )
    return RUNS[name]()
