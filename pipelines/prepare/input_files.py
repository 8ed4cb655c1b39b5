"""The files to prepare, and the split of each."""

from typing import NamedTuple

from pipelines.files import expand_paths, stamp
from pipelines.runtime import remote_files


class Inputs(NamedTuple):
    """Files and the split of each; `None` where the options divide its rows."""

    paths: list[str]
    splits: list[str | None]

    @classmethod
    def find(cls, paths, valid_paths, test_paths) -> "Inputs":
        """List the files; see `prepare`."""
        files, splits = [], []
        for split, some in (
            (None, paths),
            ("valid", valid_paths),
            ("test", test_paths),
        ):
            expanded = expand_paths(some) if some else []
            files += expanded
            splits += [split] * len(expanded)
        return cls(expand_paths(files), splits)  # raises if a file is named twice

    def describe(self) -> list[list]:
        """Return path, split and stamp of each file, to notice changes."""
        return [
            [remote_files.absolute(path), split, *stamp(path)]
            for path, split in zip(self.paths, self.splits, strict=True)
        ]
