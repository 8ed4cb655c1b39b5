"""The schema of a vocabulary, in its file and in its digest."""

import json
from collections.abc import Mapping
from typing import Any

from pipelines.runtime import UserError
from pipelines.schema import Schema

Learned = Mapping[str, Mapping[str, Any]]


def describe(schema: Schema, learned: Learned) -> dict[str, Any]:
    """Return the schema part of a vocabulary file; empty for Criteo's schema."""
    if schema == Schema.criteo():
        return {}
    content: dict[str, Any] = {"schema": json.loads(schema.to_json())}
    return content | ({"learned": dict(learned)} if learned else {})


def take(header: dict[str, Any]) -> tuple[Schema, dict[str, Any]]:
    """Remove schema and learned numbers from a file header, and return both."""
    learned = header.pop("learned", {})
    if "schema" not in header:
        return Schema.criteo(), learned
    return Schema.from_json(json.dumps(header.pop("schema"))), learned


def features_digest(schema: Schema, learned: Learned) -> bytes:
    """Return bytes that differ for features with different ids or learned numbers."""
    criteo = Schema.criteo()
    if (schema.dense, schema.sparse) == (criteo.dense, criteo.sparse):
        return b""
    # The bytes are as before there were growing tables.
    sparse = [repr(f).replace(", growing=None)", ")") for f in schema.sparse]
    features = [*map(repr, schema.dense), *sparse]
    return json.dumps([features, learned], sort_keys=True).encode() + b"\n"


def schema_of(schema: Schema | None, vocabulary) -> Schema:
    """Return the schema of files: that of the vocabulary, if there is one.

    Raises:
        ValueError: If the schema differs from that of the vocabulary.
    """
    if vocabulary is None:
        return Schema.criteo() if schema is None else schema
    own = vocabulary.schema
    if schema is not None and (schema.dense, schema.sparse) != (own.dense, own.sparse):
        raise UserError(
            "`schema` has other features than the vocabulary was built for: leave "
            "`schema` or `vocabulary` out, or rebuild the vocabulary."
        )
    return own if schema is None else schema
