"""`NamedRun`: the facts about a named run, for the command, the docs and the tests."""

import dataclasses
import textwrap
from collections.abc import Callable, Sequence

from pipelines.runs.config import RunConfig

WIDTH = 88


@dataclasses.dataclass(frozen=True)
class Published:
    """A result that others published.

    Attributes:
        result: The published result.
        source: Reference for the result.
    """

    result: str
    source: str


@dataclasses.dataclass(frozen=True)
class NamedRun:
    """An experiment: its commands, data, settings and their sources.

    Attributes:
        name: Name of the run; if it has a config, a value of `tf-dlrm train --run`.
        summary: One-line description.
        data: The data that it needs.
        command: The command lines, in order.
        make: Function that returns the config; `None` if it is not a training run.
        settings: References for its settings.
        published: Published results.
        differences: Differences from the published experiment.
    """

    name: str
    summary: str
    data: str
    command: tuple[str, ...]
    make: Callable[[], RunConfig] | None = None
    settings: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    differences: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the description as text for a terminal."""
        parts = [("data", self.data)]
        parts += [("command", line) for line in self.command]
        parts += [("settings", text) for text in self.settings]
        for result in self.published:
            parts.append(("published", f"{result.result} ({result.source})"))
        parts += [("differs", text) for text in self.differences]
        lines, last = [self.name, f"  {self.summary}"], None
        for label, text in parts:
            title = label if label != last else ""
            first = f"  {title:<11}"
            if label == "command":  # not wrapped, so that it can be copied
                lines.append(first + text)
            else:
                lines += textwrap.wrap(
                    text,
                    WIDTH,
                    initial_indent=first,
                    subsequent_indent=" " * 13,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            last = label
        return "\n".join(lines)


def to_markdown(runs: Sequence[NamedRun]) -> str:
    """Return a section for each run: commands, data and published results."""
    return "\n\n".join(_section(run) for run in runs)


def _section(run: NamedRun) -> str:
    published = [f"{result.result} ({result.source})" for result in run.published]
    lines = [f"- **Data:** {run.data}"]
    lines += [f"- **Published:** {text}" for text in published or ["none"]]
    commands = "\n".join(run.command)
    return "\n\n".join(
        [
            f"### {run.name}",
            run.summary,
            f"```bash\n{commands}\n```",
            "\n".join(lines),
        ]
    )
