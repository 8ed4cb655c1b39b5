"""Ids of a block's features -> batches of rows, split by split."""

import contextlib

import numpy as np

from pipelines.formats.encoding import interleave
from pipelines.formats.line_rules import SPARSE_FEATURES
from pipelines.prepare.options import SPLITS
from pipelines.records.store import Batch, take
from pipelines.runtime import UserError, disk


class Assembler:
    """Make rows of ids by feature.

    Args:
        expander: The `MultiHot` that they go through, or `None`.
    """

    def __init__(self, expander=None):
        self._expander = expander

    def __call__(self, content, splits, columns) -> list[tuple[int, Batch]]:
        """Of each split that has rows of a block, its number and these rows.

        Args:
            content: The block.
            splits: int8 `(n,)`, the split of each row, or `LEFT_OUT`.
            columns: int32 ids of each feature.
        """
        ids, lengths = interleave(columns, [v.lengths for v in content.values])
        if self._expander is not None:
            if lengths is not None:
                raise UserError("Rows with bags of several values are not expanded.")
            ids, lengths = self._expander.expand_ids(ids)
        batch = Batch(content.labels, content.dense, ids, lengths)
        if len(splits) and splits[0] >= 0 and (splits == splits[0]).all():
            return [(int(splits[0]), batch)]
        rows = [
            (split, np.flatnonzero(splits == split)) for split in range(len(SPLITS))
        ]
        return [(split, take(batch, found)) for split, found in rows if len(found)]


def make_expander(vocabulary_sizes, options):
    """The `MultiHot` of some options, or `None`."""
    if options.multi_hot == "no":
        return None
    from pipelines.multi_hot import MultiHot

    return MultiHot(vocabulary_sizes, distribution=options.multi_hot, seed=options.seed)


def numberings_of(vocabulary) -> list:
    """The numberings of a vocabulary; none of one that hashes."""
    return getattr(vocabulary, "numberings", [])


def group_features(vocabulary, memory_bytes: int) -> list[list[int]]:
    """Divide the features into groups whose numberings fit in memory together."""
    groups, size = [], 0
    for feature, numbering in enumerate(vocabulary.numberings):
        if not groups or size + numbering.num_bytes > memory_bytes:
            groups.append([])
            size = 0
        groups[-1].append(feature)
        size += numbering.num_bytes
    return groups


class IdFiles:
    """Ids of all blocks, in a file for each feature.

    Args:
        folder: Where to keep them; they are removed at the end.
    """

    def __init__(self, folder):
        self._paths = [folder / f"ids-{name}" for name in SPARSE_FEATURES]
        self._writing, self._reading = {}, None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for file in [*self._writing.values(), *(self._reading or [])]:
            with contextlib.suppress(OSError):
                file.close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def write(self, found: dict[int, np.ndarray]) -> None:
        """Add the ids of the next block, by feature."""
        for feature, ids in found.items():
            path = self._paths[feature]
            with disk.explaining("ids", path):
                if feature not in self._writing:
                    self._writing[feature] = open(path, "wb")
                self._writing[feature].write(ids.astype(np.int32).data)

    def read(self, values) -> list[np.ndarray]:
        """The ids of the next block, whose values these are."""
        if self._reading is None:
            for file in self._writing.values():
                with disk.explaining("ids", file.name):
                    file.close()
            self._reading = [open(path, "rb") for path in self._paths]
        return [
            np.fromfile(file, np.int32, len(of_feature.codes))
            for file, of_feature in zip(self._reading, values, strict=True)
        ]
