"""The files to prepare, and the split of each."""

from typing import NamedTuple

from pipelines.files import expand_paths, stamp
from pipelines.runtime import remote_files


class Inputs(NamedTuple):
    """Files and the split of each; `None` if the options split the rows of the file."""

    paths: list[str]
    splits: list[str | None]

    @classmethod
    def find(cls, paths, valid_paths, test_paths) -> "Inputs":
        """List the files of the arguments of `prepare`."""
        files, splits = [], []
        for split, some in (
            (None, paths),
            ("valid", valid_paths),
            ("test", test_paths),
        ):
            expanded = expand_paths(some) if some else []
            files += expanded
            splits += [split] * len(expanded)
        return cls(expand_paths(files), splits)  # raises an error for a repeated file

    def describe(self) -> list[list]:
        """Return path, split and stamp of each file, to detect changes."""
        return [
            [remote_files.absolute(path), split, *stamp(path)]
            for path, split in zip(self.paths, self.splits, strict=True)
        ]
