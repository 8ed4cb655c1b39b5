"""Read frames of raw columns as NumPy batches, with the schema of a vocabulary."""

from typing import Any

from pipelines.formats.encoding import encode
from pipelines.formats.frame_rows import read_frame
from pipelines.formats.layout import Wanted
from pipelines.records.batch import Batch, concatenate
from pipelines.runtime import UserError
from pipelines.schema import Schema
from pipelines.schema.checks import Column

DEFAULT_LABEL = "label"


def has_targets(schema: Schema, label: Column | None, weight: Column | None) -> bool:
    """Return True if the dataset should have labels and sample weights.

    Args:
        schema: The schema, which defines their columns.
        label: The argument `label` of `from_dataframe`.
        weight: The argument `weight` of `from_dataframe`.

    Raises:
        ValueError: If they name other columns than the schema.
    """
    asked = {"label": (label, schema.label.column), "weight": (weight, schema.weight)}
    for name, (column, own) in asked.items():
        if column not in (None, own) and (name, column) != ("label", DEFAULT_LABEL):
            raise UserError(
                f"With a parser, `{name}` must be that of its schema, {own!r}. "
                f"Received: {name}={column!r}. Leave it out, or change the schema."
            )
    return label is not None


def encode_frame(frame: Any, vocabulary: Any, labelled: bool) -> Batch:
    """Return all rows of a frame, with transformed numbers and ids.

    Args:
        frame: A pandas or polars `DataFrame` of raw columns.
        vocabulary: A vocabulary, with its schema.
        labelled: Whether rows must have a label.

    Raises:
        ValueError: If a column is missing or a cell is not valid.
    """
    blocks = read_frame(frame, vocabulary.schema, Wanted(label=labelled))
    return concatenate([encode(rows, vocabulary) for rows in blocks])
