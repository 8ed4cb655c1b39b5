"""Blocks and tables of Criteo's layout through the readers, for tests."""

from pipelines.formats import tables, text
from pipelines.formats.layout import Layout, Wanted
from pipelines.formats.lines import LineMaker
from pipelines.schema import Schema

SCHEMA = Schema.criteo()


def read_block(block, labelled=True):
    """The rows of a block of lines."""
    wanted = Wanted(label=labelled)
    layout = Layout.of_text(SCHEMA, "day_0", None, wanted)
    return text.read_block(block, layout, wanted)


def batches(path, labelled):
    """The rows of a Parquet file, some at a time."""
    return tables.batches(path, layout_of(path, labelled))


def layout_of(path, labelled):
    """The layout of a Parquet file."""
    return tables.find_layout(path, SCHEMA, Wanted(label=labelled)).with_label()


def lines_of(path):
    """`ScoredLines` of each batch of a Parquet file."""
    layout = layout_of(path, False)
    maker = LineMaker(layout, is_table=True)
    return [maker(batch) for batch in tables.batches(path, layout)]
