"""Named runs by source: for each a function that returns its config, and a description.

`EXPERIMENTS` holds all descriptions, `RUNS` the functions of the runs that
`tf-dlrm train --run` accepts.
"""

from pipelines.runs.config import RunConfig
from pipelines.runs.named import (
    facebookresearch,
    fuxictr,
    mlperf,
    own,
    paddlerec,
    paper,
)
from pipelines.runs.named.description import NamedRun, Published, to_markdown
from pipelines.runtime import UserError

__all__ = [
    "EXPERIMENTS",
    "RUNS",
    "NamedRun",
    "Published",
    "get",
    "to_markdown",
]

EXPERIMENTS = {
    run.name: run
    for source in (own, facebookresearch, mlperf, paddlerec, fuxictr, paper)
    for run in source.RUNS
}
RUNS = {name: run.make for name, run in EXPERIMENTS.items() if run.make is not None}


def get(name: str | None) -> RunConfig:
    """Return the config of a named run; for `None`, the default config.

    Raises:
        ValueError: If there is no such run.
    """
    if name is None:
        return own.default()
    if name not in RUNS:
        raise UserError(
            f"There is no named run '{name}'. Named runs: {', '.join(RUNS)}"
        )
    return RUNS[name]()
