"""What several commands share: options, tables, words about files."""

import json
import pathlib
from typing import Annotated

import tyro

Files = Annotated[list[str], tyro.conf.arg(metavar="FILE [FILE ...]")]


def read_truth(paths):
    """The best possible scores, where `generate` wrote one file and its report."""
    report = pathlib.Path(f"{paths[0]}.json")
    if len(paths) != 1 or not report.exists():
        return None
    content = json.loads(report.read_text())
    return content if "best_log_loss" in content else None


def describe_files(paths) -> str:
    """The first path, how many more, and the size of all, for --dry-run."""
    size = sum(pathlib.Path(path).stat().st_size for path in paths)
    more = f" and {len(paths) - 1} more files" if len(paths) > 1 else ""
    return f"{paths[0]}{more} ({size / 1e6:,.1f} MB)"
