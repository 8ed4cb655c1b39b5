"""The roles of a log's columns, `Label`, `Dense` and `Sparse`, and file formats."""

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
from pipelines.schema.growing import Growing
from pipelines.schema.growing import read as read_growing

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
        positive: Strings that mean a click.
        negative: Strings that mean no click. With `None`, every other string does.
        threshold: Smallest number that counts as a click, such as a rating of 4; the
            column is then read as numbers.
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
                refuse("label", f"has {min(both)!r} in both `positive` and `negative`")
        if not self.positive:
            refuse("label", "needs a string that means a click", "positive=()")
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
        transform: The function of the number x that the model reads, computed in
            float64 and rounded to float32: `"identity"`; `"log1p"`,
            log(max(x, 0) + 1), as in the paper's code; `"signed_log1p"`,
            sign(x) log(|x| + 1); `"standardize"`, (x - mean) / deviation, with mean
            and deviation of the training rows; `"clip"`, x limited to `low` .. `high`.
        missing: The number to use for missing cells, before the transform. Default:
            0, or with `"standardize"` the mean.
        name: Name of the feature; default: the column's name.
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
            refuse(
                self.name,
                "must have `low` or `high` with transform='clip', and neither with "
                "another transform",
                f"transform={self.transform!r}, low={self.low}, high={self.high}",
            )
        if all(limits) and self.low > self.high:  # type: ignore[operator]
            refuse(
                self.name,
                "must not have `low` above `high`",
                f"low={self.low}, high={self.high}",
            )

    @property
    def is_learned(self) -> bool:
        """True if the transform learns numbers from the training rows."""
        return self.transform == "standardize"


@dataclasses.dataclass(frozen=True)
class Sparse:
    """A category, or a bag of categories, that the model looks up.

    Args:
        column: Name or position of the column.
        name: Name of the feature; default: the column's name.
        separator: Text between the values of a bag, a cell that holds several; empty
            values are skipped. Default: each cell is one value.
        weight_separator: Text between a value and its weight, such as ":" in
            `a:0.5|b:2`; a value without a weight has weight 1. Needs a `separator`.
        max_values: Largest number of values read from a cell; the rest are dropped.
            Default: no limit.
        table: Name of the table; default: the feature's name. Features with the same
            table share its rows and its vocabulary.
        combiner: How the rows of a bag become one vector: "sum", "mean" or "sqrtn".
        min_count: How often a value must occur in the training rows to have its own
            row; default: the value of the run.
        hash_buckets: Number of rows, to hash values instead of counting them.
        growing: `True`, or an object with `rows` and the fields of
            `tf_dlrm.GrowingIds`: the table takes new values while it is trained, and
            no pass counts them. Default: a vocabulary.
        embedding_dim: Width of the table; default: the value of the run.
        buckets: Use a number as a category: `"log2"`, floor(ln(x)²) for x > 2, as in
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
    growing: Growing | dict | bool | None = None

    def __post_init__(self) -> None:
        set_name(self)
        if not self.table:
            object.__setattr__(self, "table", self.name)
        check_name(self.table)
        check_choice(self.name, "combiner", self.combiner, COMBINERS)
        least = {"max_values": 1, "min_count": 1, "hash_buckets": 2}
        least |= {"embedding_dim": 1, "num_buckets": 2}
        for parameter, minimum in least.items():
            most = 2**20 if parameter == "num_buckets" else 2**40
            check_count(self.name, parameter, getattr(self, parameter), minimum, most)
        for parameter in ("separator", "weight_separator"):
            text = getattr(self, parameter)
            if text is not None and (not isinstance(text, str) or not text):
                refuse(
                    self.name, f"needs a non-empty string as `{parameter}`", repr(text)
                )
        if self.separator is None and (self.weight_separator or self.max_values):
            parameter = "weight_separator" if self.weight_separator else "max_values"
            refuse(self.name, f"has `{parameter}`, which needs a `separator`")
        if self.weight_separator is not None and (
            self.weight_separator in self.separator  # type: ignore[operator]
            or self.separator in self.weight_separator  # type: ignore[operator]
        ):
            refuse(
                self.name,
                "needs a `separator` and a `weight_separator` that do not contain each "
                "other",
                f"{self.separator!r} and {self.weight_separator!r}",
            )
        self._check_buckets()
        growing = read_growing(self.name, self.growing, self.min_count)
        object.__setattr__(self, "growing", growing)
        if growing is not None and self.hash_buckets is not None:
            refuse(self.name, "takes `growing` or `hash_buckets`, not both")

    def _check_buckets(self) -> None:
        if self.buckets is not None:
            check_choice(self.name, "buckets", self.buckets, BUCKETS)
            if self.separator is not None:
                refuse(self.name, "takes `separator` or `buckets`, not both")
        if (self.width is not None) != (self.buckets == "width"):
            refuse(
                self.name,
                "must have `width` with buckets='width', and only then",
                f"buckets={self.buckets!r}, width={self.width}",
            )
        if self.width is not None:
            check_number(self.name, "width", self.width)
            if not self.width > 0:
                refuse(self.name, "needs a positive `width`", self.width)
        if self.num_buckets is not None and self.buckets != "quantile":
            refuse(
                self.name,
                "has `num_buckets`, which needs buckets='quantile'",
                f"buckets={self.buckets!r}",
            )
        if self.buckets == "quantile" and self.num_buckets is None:
            object.__setattr__(self, "num_buckets", DEFAULT_NUM_BUCKETS)

    @property
    def is_learned(self) -> bool:
        """True if the buckets learn their edges from the training rows."""
        return self.buckets == "quantile"

    @property
    def is_bag(self) -> bool:
        """True if a cell may hold several values."""
        return self.separator is not None


@dataclasses.dataclass(frozen=True)
class Text:
    """A text format with one row per line.

    Args:
        delimiter: The byte between columns.
        header: Whether each file starts with a line of column names.
        columns: Names of all columns in order, for files without a header. For files
            with a header, the order of the columns that `serving_lines` takes.
        missing: Cells that mean "missing".
        quoted: Whether fields may be quoted as in RFC 4180: a field in double quotes
            may contain delimiters, line breaks and doubled quotes.
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
                "needs a `delimiter` of one byte, other than a quote, line break or "
                "NUL",
                repr(self.delimiter),
            )
        object.__setattr__(self, "columns", texts("columns", self.columns))
        if len(set(self.columns)) < len(self.columns):
            refuse("format", "must not repeat a name in `columns`", self.columns)
        object.__setattr__(self, "missing", texts("missing", self.missing))


@dataclasses.dataclass(frozen=True)
class Parquet:
    """Parquet files, or folders of them.

    Args:
        missing: Strings that mean "missing", like null.
    """

    missing: Sequence[str] = ("",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "missing", texts("missing", self.missing))
