"""Progress of long work, on a terminal and in a log."""

from pipelines.progress.bars import bar

__all__ = ["bar"]
