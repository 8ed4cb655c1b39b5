"""Event time in runs: when ids of growing tables expire by it."""

from pipelines.runtime import UserError
from pipelines.schema import Schema


def is_used(schema: Schema) -> bool:
    """Return True if ids of a growing table expire by event time."""
    return any(
        feature.growing is not None and feature.growing.expire_after_seconds
        for feature in schema.sparse
    )


def check(schema: Schema, is_progressive: bool) -> None:
    """Check that a run has the event time by which ids expire.

    Raises:
        ValueError: If the run has none.
    """
    if is_used(schema) and not (is_progressive and schema.time is not None):
        raise UserError(
            "`expire_after_seconds` of a growing table needs event time: name the "
            "schema's `time` and train with `progressive=True`, or use "
            "`expire_after_steps`."
        )
