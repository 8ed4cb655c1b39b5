"""Show the progress of long work on a terminal or in a log."""

from pipelines.progress.bars import bar

__all__ = ["bar"]
