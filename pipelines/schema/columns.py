"""The meaning of one column of a log: `Label`, `Dense`, `Sparse`; formats of files."""

import dataclasses
from collections.abc import Sequence

from pipelines.schema.checks import (
    Column,
    check_choice,
    check_column,
    check_count,
    check_name,
    check_number,
    refuse,
    set_name,
    texts,
)

TRANSFORMS = ("identity", "log1p", "signed_log1p", "standardize", "clip")
BUCKETS = ("log2", "quantile", "width")
COMBINERS = ("sum", "mean", "sqrtn")
TRUE_TEXTS = ("1", "true", "True", "TRUE", "1.0")
FALSE_TEXTS = ("0", "false", "False", "FALSE", "0.0")
DEFAULT_NUM_BUCKETS = 32


@dataclasses.dataclass(frozen=True)
class Label:
    """The column of the label.

    Args:
        column: Name or position of the column.
        positive: Texts that mean a click.
        negative: Texts that mean no click; `None`: all that are not in `positive`.
        threshold: Read the column as a number instead: a click is a number that is
            not below it, such as a rating of at least 4.
        soft: Whether the column holds probabilities from 0 to 1.
    """

    column: Column
    positive: Sequence[str] = TRUE_TEXTS
    negative: Sequence[str] | None = FALSE_TEXTS
    threshold: float | None = None
    soft: bool = False

    def __post_init__(self) -> None:
        check_column("label", self.column)
        object.__setattr__(self, "positive", texts("positive", self.positive))
        if self.negative is not None:
            object.__setattr__(self, "negative", texts("negative", self.negative))
            both = set(self.positive) & set(self.negative)
            if both:
                refuse("label", f"counts {min(both)!r} as a click and as none")
        if not self.positive:
            refuse("label", "must name a text that means a click", "positive=()")
        if self.threshold is not None:
            check_number("label", "threshold", self.threshold)
            if self.soft:
                refuse("label", "takes `threshold` or `soft`, not both")

    @property
    def is_number(self) -> bool:
        """True if the column is read as numbers."""
        return self.soft or self.threshold is not None


@dataclasses.dataclass(frozen=True)
class Dense:
    """A number that the model reads.

    Args:
        column: Name or position of the column.
        transform: The function of the number x that the model reads, as float32,
            computed in float64: `"identity"`; `"log1p"`, log(max(x, 0) + 1), as in
            the paper's code; `"signed_log1p"`, sign(x) log(|x| + 1); `"standardize"`,
            (x - mean) / deviation of the training rows; `"clip"`, x held between
            `low` and `high`.
        missing: The number in place of a missing one, before the transform. Default:
            0, for `"standardize"` the mean.
        name: Name of the feature; default: the column's.
        integer: Whether only integers (`-?[0-9]+`) are valid.
        low: Smallest number, for `"clip"`; default: no limit.
        high: Largest number, for `"clip"`; default: no limit.
    """

    column: Column
    transform: str = "identity"
    missing: float | None = None
    name: str = ""
    integer: bool = False
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        set_name(self)
        check_choice(self.name, "transform", self.transform, TRANSFORMS)
        for parameter in ("missing", "low", "high"):
            value = getattr(self, parameter)
            if value is not None:
                check_number(self.name, parameter, value)
        limits = (self.low is not None, self.high is not None)
        if any(limits) != (self.transform == "clip"):
            refuse(self.name, "takes `low` and `high` with transform='clip' only")
        if all(limits) and self.low > self.high:  # type: ignore[operator]
            refuse(self.name, "must have `low` below `high`", f"{self.low}")

    @property
    def is_learned(self) -> bool:
        """True if the transform has numbers that are learned from training rows."""
        return self.transform == "standardize"


@dataclasses.dataclass(frozen=True)
class Sparse:
    """A category, or a bag of categories, that the model looks up.

    Args:
        column: Name or position of the column.
        name: Name of the feature; default: the column's.
        separator: Text between the values of a cell that holds several, a bag; empty
            values in it are skipped. Default: a cell is one value.
        weight_separator: Text between a value and its weight, such as ":" in
            `a:0.5|b:2`; a value without one weighs 1. Needs a `separator`.
        max_values: Most values of a cell; those after the first `max_values` are left
            out. Default: no limit.
        table: Name of the table; default: the feature's. Features that name the same
            table share its rows and its vocabulary.
        combiner: How the rows of a bag become one vector: "sum", "mean" or "sqrtn".
        min_count: Times a value must occur in the training rows to have a row of its
            own; default: that of the run.
        hash_buckets: Number of rows, if values are hashed rather than counted.
        embedding_dim: Width of the table; default: that of the run.
        buckets: Take a number as a category: `"log2"`, floor(ln(x)²) for x > 2, as in
            the winning solution of Criteo's contest; `"quantile"`, by
            `num_buckets` quantiles of the training rows; `"width"`, floor(x / width).
        num_buckets: Number of quantiles; default: 32.
        width: Width of a bucket, for `"width"`.
    """

    column: Column
    name: str = ""
    separator: str | None = None
    weight_separator: str | None = None
    max_values: int | None = None
    table: str = ""
    combiner: str = "sum"
    min_count: int | None = None
    hash_buckets: int | None = None
    embedding_dim: int | None = None
    buckets: str | None = None
    num_buckets: int | None = None
    width: float | None = None

    def __post_init__(self) -> None:
        set_name(self)
        if not self.table:
            object.__setattr__(self, "table", self.name)
        check_name(self.table)
        check_choice(self.name, "combiner", self.combiner, COMBINERS)
        least = {"max_values": 1, "min_count": 1, "hash_buckets": 2}
        least |= {"embedding_dim": 1, "num_buckets": 2}
        for parameter, minimum in least.items():
            check_count(self.name, parameter, getattr(self, parameter), minimum)
        for parameter in ("separator", "weight_separator"):
            text = getattr(self, parameter)
            if text is not None and (not isinstance(text, str) or not text):
                refuse(self.name, f"needs a text as `{parameter}`", repr(text))
        if self.separator is None and (self.weight_separator or self.max_values):
            given = "weight_separator" if self.weight_separator else "max_values"
            refuse(self.name, f"takes `{given}` with a `separator` only")
        if self.weight_separator is not None and (
            self.weight_separator in self.separator  # type: ignore[operator]
            or self.separator in self.weight_separator  # type: ignore[operator]
        ):
            refuse(self.name, "needs two separators that differ", self.separator)
        self._check_buckets()

    def _check_buckets(self) -> None:
        if self.buckets is not None:
            check_choice(self.name, "buckets", self.buckets, BUCKETS)
            if self.separator is not None:
                refuse(self.name, "takes `separator` or `buckets`, not both")
        if (self.width is not None) != (self.buckets == "width"):
            refuse(self.name, "takes `width` with buckets='width', which needs it")
        if self.width is not None:
            check_number(self.name, "width", self.width)
            if not self.width > 0:
                refuse(self.name, "needs a positive `width`", self.width)
        if self.num_buckets is not None and self.buckets != "quantile":
            refuse(self.name, "takes `num_buckets` with buckets='quantile' only")
        if self.buckets == "quantile" and self.num_buckets is None:
            object.__setattr__(self, "num_buckets", DEFAULT_NUM_BUCKETS)

    @property
    def is_learned(self) -> bool:
        """True if the buckets have edges that are learned from training rows."""
        return self.buckets == "quantile"

    @property
    def is_bag(self) -> bool:
        """True if a cell may hold several values."""
        return self.separator is not None


@dataclasses.dataclass(frozen=True)
class Text:
    """A text format: one row a line.

    Args:
        delimiter: The one byte between columns.
        header: Whether each file starts with a line of column names.
        columns: Names of the columns in their order, for files without a header; with
            one, the order of the columns that `serving_lines` takes.
        missing: Cells that mean "missing".
        quoted: Whether fields may be quoted as in RFC 4180: a field in double quotes
            may hold delimiters, line ends and, doubled, quotes.
    """

    delimiter: str = ","
    header: bool = True
    columns: Sequence[str] = ()
    missing: Sequence[str] = ("",)
    quoted: bool = False

    def __post_init__(self) -> None:
        one_byte = isinstance(self.delimiter, str) and len(self.delimiter.encode()) == 1
        if not one_byte or self.delimiter in '\n\r"\0':
            refuse(
                "format",
                "needs a `delimiter` of one byte, no quote, line end or NUL",
                repr(self.delimiter),
            )
        object.__setattr__(self, "columns", texts("columns", self.columns))
        if len(set(self.columns)) < len(self.columns):
            refuse("format", "names a column twice in `columns`")
        object.__setattr__(self, "missing", texts("missing", self.missing))


@dataclasses.dataclass(frozen=True)
class Parquet:
    """Parquet files, or folders of them.

    Args:
        missing: Texts that mean "missing", as null does.
    """

    missing: Sequence[str] = ("",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "missing", texts("missing", self.missing))
