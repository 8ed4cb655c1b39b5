"""A small vocabulary of any schema, with its ids in plain Python."""

import functools
import types

from helpers import criteo_oracle, row_lines
from pipelines.vocabulary.hashing import HashNumbering
from pipelines.vocabulary.lookups import Lookup
from pipelines.vocabulary.numbering import Numbering

VALUES = [b"a", b"b", b"c", b",", b",,", b"=2", b"0", b"7", b"=-1", b"\xff\xfe", b'"']


def make_vocabulary(schema, hashed=()):
    """A vocabulary of the values above; of some tables, by hashes."""
    numberings = [
        HashNumbering(50 + i, i + 1)
        if i in hashed
        else Numbering.of_values(VALUES[i % 2 :], [1] * (len(VALUES) - i % 2))
        for i in range(len(schema.tables))
    ]
    sizes = [1 + len(numbering) for numbering in numberings]
    table_of = {f: t for t, fs in enumerate(schema.tables.values()) for f in fs}

    @functools.cache
    def find(position, value):
        numbering = numberings[table_of[position]]
        if not value:
            return 0
        if isinstance(numbering, Numbering):
            values = numbering.values()
            return 1 + values.index(value) if value in values else 0
        hashed = criteo_oracle.siphash((numbering.key, 0x646C726D), value)
        return 1 + hashed % (numbering.num_buckets - 1)

    def values(name):
        position = schema.sparse_features.index(name)
        numbering = numberings[table_of[position]]
        return numbering.values() if isinstance(numbering, Numbering) else []

    vocabulary = types.SimpleNamespace(
        schema=schema, learned=row_lines.LEARNED, numberings=numberings, sizes=sizes,
        is_shared=False, find_value=find, values=values,
    )  # fmt: skip
    vocabulary.by_feature = [numberings[table] for table in schema.table_of]
    vocabulary.make_lookup = functools.partial(Lookup, vocabulary)
    return vocabulary
