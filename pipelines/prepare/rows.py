"""Turn the ids of a block's features into batches of rows, one for each split."""

import contextlib

import numpy as np

from pipelines.formats.encoding import transform_feature, values_of
from pipelines.formats.fields import Values
from pipelines.prepare.options import SPLITS
from pipelines.progress import bar
from pipelines.records.batch import Batch, interleave, take
from pipelines.records.layout import Schema as RecordSchema
from pipelines.runtime import UserError, disk
from pipelines.vocabulary.hashing import GrowingNumbering
from pipelines.vocabulary.numbering import StoredNumbering

_ONE_EACH = Values(None, None, None, None)  # stands for numbers in buckets


class Assembler:
    """Assemble rows from the ids of each feature.

    Args:
        schema: The columns.
        learned: The learned numbers of each feature.
        expander: The `MultiHot` that expands the rows, or `None`.
    """

    def __init__(self, schema, learned, expander=None):
        self._schema, self._learned, self._expander = schema, learned, expander

    def __call__(self, content, splits, columns) -> list[tuple[int, Batch]]:
        """Return the rows of a block by split: pairs of split number and rows.

        Args:
            content: The block.
            splits: int8 `(n,)`, the split of each row, or `LEFT_OUT`.
            columns: int32 ids of each feature.
        """
        schema, rows = self._schema, content.rows
        values = [column or _ONE_EACH for column in rows.values]
        ids, lengths, id_weights = interleave(
            columns,
            [column.lengths for column in values],
            [column.weights for column in values] if schema.has_id_weights else None,
            np.int64 if schema.has_growing else np.int32,
        )
        if self._expander is not None:
            if lengths is not None:
                raise UserError(
                    "`multi_hot` expands one value per row, but the rows already have "
                    "bags of several values. Leave `multi_hot` out."
                )
            ids, lengths = self._expander.expand_ids(ids)
        dense = content.dense
        for position, feature in enumerate(schema.dense):
            if feature.is_learned:
                dense = dense if dense.flags.writeable else dense.copy()
                about = self._learned[feature.name]
                numbers = rows.numbers[position]
                dense[:, position] = transform_feature(feature, numbers, about)
        batch = Batch(rows.labels, dense, ids, lengths, id_weights, rows.weights)
        if len(splits) and splits[0] >= 0 and (splits == splits[0]).all():
            return [(int(splits[0]), batch)]
        rows = [
            (split, np.flatnonzero(splits == split)) for split in range(len(SPLITS))
        ]
        return [(split, take(batch, places)) for split, places in rows if len(places)]


def make_expander(vocabulary, options):
    """Return the `MultiHot` that the options ask for, or `None`."""
    if options.multi_hot == "no":
        return None
    if vocabulary.schema.has_growing:
        raise UserError(
            "`multi_hot` makes bags of ids of a vocabulary, which growing tables do "
            "not have. Leave `multi_hot` out."
        )
    vocabulary_sizes = vocabulary.sizes
    from pipelines.multi_hot import MultiHot

    return MultiHot(vocabulary_sizes, distribution=options.multi_hot, seed=options.seed)


def numberings_of(vocabulary) -> list:
    """Return the numberings of a vocabulary; an empty list if it hashes."""
    return getattr(vocabulary, "numberings", [])


def group_features(vocabulary, memory_bytes: int) -> list[list[int]]:
    """Divide the features into groups whose numberings fit in memory together."""
    groups, size = [], 0
    for feature, name in enumerate(vocabulary.schema.sparse_features):
        numbering = vocabulary.numbering_of(name)
        if not groups or size + numbering.num_bytes > memory_bytes:
            groups.append([])
            size = 0
        groups[-1].append(feature)
        size += numbering.num_bytes
    return groups


class IdFiles:
    """The ids of all blocks, in a file for each feature.

    Args:
        folder: Folder for the files, which are removed at the end.
        num_features: Number of features.
    """

    def __init__(self, folder, num_features: int):
        self._paths = [folder / f"ids-{number}" for number in range(num_features)]
        self._writing, self._reading = {}, None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for file in [*self._writing.values(), *(self._reading or [])]:
            with contextlib.suppress(OSError):
                file.close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def write(self, ids_by_feature: dict[int, np.ndarray]) -> None:
        """Add the ids of the next block, by feature."""
        for feature, ids in ids_by_feature.items():
            path = self._paths[feature]
            with disk.explaining("ids", path):
                if feature not in self._writing:
                    self._writing[feature] = open(path, "wb")
                self._writing[feature].write(ids.astype(np.int64).data)

    def read(self, values) -> list[np.ndarray]:
        """Return the ids of the next block, given its values."""
        if self._reading is None:
            for file in self._writing.values():
                with disk.explaining("ids", file.name):
                    file.close()
            self._reading = [open(path, "rb") for path in self._paths]
        return [
            np.fromfile(file, np.int64, len(of_feature.codes))
            for file, of_feature in zip(self._reading, values, strict=True)
        ]


def record_schema(vocabulary) -> RecordSchema:
    """Return the schema of records whose ids come from a vocabulary."""
    schema = vocabulary.schema
    sizes = dict(zip(schema.tables, vocabulary.sizes, strict=False))
    for table, numbering in zip(schema.tables, vocabulary.numberings, strict=False):
        if isinstance(numbering, GrowingNumbering):
            sizes[table] = numbering.num_buckets
    if vocabulary.is_shared:
        sizes = dict.fromkeys(schema.tables, vocabulary.sizes[0])
    return RecordSchema(
        schema.dense_features,
        schema.sparse_features,
        tuple(sizes[feature.table] for feature in schema.sparse),
    )


def encode_blocks(blocks, vocabulary, options, folder, num_rows):
    """Yield the batches of each block, a list of pairs `(split, batch)`.

    Args:
        blocks: Function that takes a function of `(content, splits)`, applies it to
            each block, and yields the place of the block with the result.
        vocabulary: The vocabulary.
        options: The `Options`.
        folder: Folder for ids, used if the numberings do not all fit in memory.
        num_rows: Number of rows of all blocks, for the progress bar.
    """
    schema, learned = vocabulary.schema, vocabulary.learned
    expander = make_expander(vocabulary, options)
    assemble = Assembler(schema, learned, expander)
    stored = any(isinstance(n, StoredNumbering) for n in numberings_of(vocabulary))
    if not stored:

        def encode(content, splits):
            found = [
                vocabulary.find(feature, values)[values.codes]
                for feature, values in enumerate(
                    values_of(content.rows, schema, learned)
                )
            ]
            return assemble(content, splits, found)

        for _, batches in blocks(encode):
            yield batches
        return
    # The numberings do not all fit in memory: find the ids of some features at a time.
    with IdFiles(folder, len(schema.sparse)) as files:
        for group in group_features(vocabulary, options.memory_bytes // 2):
            names = {f: schema.sparse_features[f] for f in group}
            loaded = {
                f: vocabulary.numbering_of(name).load() for f, name in names.items()
            }

            def find(content, splits, loaded=loaded):
                del splits
                all_values = values_of(content.rows, schema, learned)
                return {
                    feature: numbering.find(values)[values.codes]
                    for feature, numbering in loaded.items()
                    for values in [all_values[feature]]
                }

            with bar("Looking up ids", num_rows) as update:
                done = 0
                for place, ids in blocks(find):
                    files.write(ids)
                    done += place.num_rows
                    update(done)
        for _, (content, splits) in blocks(lambda *both: both):
            values = values_of(content.rows, schema, learned)
            yield assemble(content, splits, files.read(values))
