"""`Schema`: the columns of a click log and their meaning, without TensorFlow."""

import collections
import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.runtime import UserError
from pipelines.schema import json_form
from pipelines.schema.checks import Column, check_column, refuse
from pipelines.schema.columns import Dense, Label, Parquet, Sparse, Text
from pipelines.whole_files import write_text

if TYPE_CHECKING:
    from pipelines.files import Paths


@dataclasses.dataclass(frozen=True)
class Schema:
    """The columns of a click log and their meaning.

    Columns that the schema does not name are ignored. Parquet files are read as
    Parquet, whatever `format` says, and their columns by name.

    Args:
        label: Name or position of the label's column, or a `Label`.
        dense: Numbers: names of columns, or `Dense`.
        sparse: Categories: names of columns, or `Sparse`.
        weight: Column of sample weights, finite numbers of at least 0. Default: no
            weights.
        time: Column of the event time, a number or an ISO 8601 time, by which rows
            are split. Default: split by the order of the rows.
        group: Column whose values are the groups of GAUC, such as users.
        format: `Text` or `Parquet`.

    Raises:
        ValueError: If there is no sparse feature, a name repeats, features that share
            a table have different settings for it, or a column does not fit the
            format.

    Example:

    >>> import pipelines
    >>> schema = pipelines.Schema(
    ...     label="click",
    ...     dense=[pipelines.Dense("price", transform="log1p")],
    ...     sparse=["country", pipelines.Sparse("history", separator="|")],
    ... )
    >>> schema.sparse_features, schema.columns
    (('country', 'history'), ('click', 'price', 'country', 'history'))
    """

    label: Label
    dense: tuple[Dense, ...] = ()
    sparse: tuple[Sparse, ...] = ()
    weight: Column | None = None
    time: Column | None = None
    group: Column | None = None
    format: Text | Parquet = Text()

    def __post_init__(self) -> None:
        if isinstance(self.label, str | int):
            object.__setattr__(self, "label", Label(self.label))
        for name, kind in (("dense", Dense), ("sparse", Sparse)):
            features = getattr(self, name)
            if isinstance(features, str | int | kind):
                features = (features,)
            features = tuple(
                kind(feature) if isinstance(feature, str | int) else feature
                for feature in features
            )
            if not all(isinstance(feature, kind) for feature in features):
                refuse(name, f"must contain names or {kind.__name__} objects", features)
            object.__setattr__(self, name, features)
        # Table by table: the order of features in a `FeatureSpec`.
        by_table: dict[str, list[Sparse]] = {}
        for feature in self.sparse:
            by_table.setdefault(feature.table, []).append(feature)
        ordered = tuple(f for features in by_table.values() for f in features)
        object.__setattr__(self, "sparse", ordered)
        if not self.sparse:
            raise UserError(
                "A schema needs at least one category (`sparse`): a DLRM without "
                "embeddings is a plain MLP, for which you need no tf_dlrm."
            )
        names = [feature.name for feature in (*self.dense, *self.sparse)]
        repeated = [name for name, n in collections.Counter(names).items() if n > 1]
        if repeated:
            raise UserError(
                f"Each feature must have its own name. Received twice: "
                f"{repeated[0]!r}. If two features read one column, give one a `name`."
            )
        for name in ("weight", "time", "group"):
            if getattr(self, name) is not None:
                check_column(name, getattr(self, name))
        for table, features in by_table.items():
            _check_table(table, features)
        self._check_positions()

    def _check_positions(self) -> None:
        text = self.text
        for feature in self.sparse:
            for parameter in ("separator", "weight_separator"):
                separator = getattr(feature, parameter)
                if separator is not None and text.delimiter in separator:
                    if not text.quoted:
                        refuse(
                            feature.name,
                            f"has the format's delimiter as its `{parameter}`",
                            repr(separator),
                        )
        for column in self.columns:
            if isinstance(column, int) and isinstance(self.format, Parquet):
                refuse("format", f"is Parquet, whose column {column} needs a name")
        if isinstance(self.format, Text) and not self.format.header:
            known = self.format.columns
            for column in self.columns:
                if isinstance(column, str) and column not in known:
                    raise UserError(
                        f"Files without a header do not say which column {column!r} "
                        "is: list the names of all columns in `format.columns`, or "
                        "use positions. Received: columns="
                        f"{list(known) if len(known) < 50 else len(known)}"
                    )

    @property
    def text(self) -> Text:
        """The text format; for `Parquet`, one with tabs, a header and quotes.

        A quoted line can hold any cell of a table.
        """
        if isinstance(self.format, Text):
            return self.format
        return Text("\t", quoted=True, missing=self.format.missing)

    @property
    def missing(self) -> tuple[bytes, ...]:
        """The cells that mean "missing", as bytes."""
        return tuple(text.encode() for text in self.format.missing)

    @functools.cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns that are read, each once: label, dense, sparse, then the rest."""
        others = (self.weight, self.time, self.group)
        features = (*self.dense, *self.sparse)
        columns = [self.label.column, *(feature.column for feature in features)]
        columns += [column for column in others if column is not None]
        return tuple(dict.fromkeys(columns))

    @functools.cached_property
    def dense_features(self) -> tuple[str, ...]:
        """Names of the dense features."""
        return tuple(feature.name for feature in self.dense)

    @functools.cached_property
    def sparse_features(self) -> tuple[str, ...]:
        """Names of the sparse features, table by table."""
        return tuple(feature.name for feature in self.sparse)

    @functools.cached_property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """Positions in `sparse` of the features of each table, by table name."""
        tables: dict[str, list[int]] = {}
        for position, feature in enumerate(self.sparse):
            tables.setdefault(feature.table, []).append(position)
        return {name: tuple(positions) for name, positions in tables.items()}

    @functools.cached_property
    def table_of(self) -> tuple[int, ...]:
        """Of each feature in `sparse` the position of its table in `tables`."""
        names = list(self.tables)
        return tuple(names.index(feature.table) for feature in self.sparse)

    def option(self, table: str, name: str) -> Any:
        """Return the option of a table, such as `"min_count"`, that a feature gives.

        Args:
            table: Name of the table.
            name: An option on which features that share a table agree.

        Returns:
            The value, or `None` if no feature gives one.
        """
        options = (getattr(self.sparse[i], name) for i in self.tables[table])
        return next((option for option in options if option is not None), None)

    @property
    def is_learned(self) -> bool:
        """True if a transform or bucket learns numbers from the training rows."""
        return any(feature.is_learned for feature in (*self.dense, *self.sparse))

    @property
    def has_id_weights(self) -> bool:
        """True if the values of some bag have weights."""
        return any(feature.weight_separator is not None for feature in self.sparse)

    @property
    def has_growing(self) -> bool:
        """True if a table has growing ids, which are 63-bit fingerprints of values."""
        return any(feature.growing is not None for feature in self.sparse)

    def spec(self, sizes: Sequence[int], embedding_dim: int = 16) -> Any:
        """Return the `tf_dlrm.FeatureSpec` of a model.

        Args:
            sizes: Rows of each table, in the order of `tables`.
            embedding_dim: Width of tables for which the schema sets no width.
        """
        from tf_dlrm import EmbeddingTable, FeatureSpec

        tables = []
        for (name, positions), size in zip(self.tables.items(), sizes, strict=True):
            features = [self.sparse[position] for position in positions]
            combiners = [f.combiner for f in features if f.is_bag]
            growing = self.option(name, "growing")
            tables.append(
                EmbeddingTable(
                    name,
                    size,
                    self.option(name, "embedding_dim") or embedding_dim,
                    combiner=combiners[0] if combiners else features[0].combiner,
                    features=[feature.name for feature in features],
                    growing=growing and growing.rules(),
                )
            )
        return FeatureSpec(dense=self.dense_features, tables=tables)

    def without(self, *features: str) -> "Schema":
        """Return the schema without some features, such as those known after a click.

        Args:
            *features: Names of dense or sparse features.

        Raises:
            ValueError: If there is no such feature, or no sparse feature is left.
        """
        names = [*self.dense_features, *self.sparse_features]
        unknown = [name for name in features if name not in names]
        if unknown:
            raise UserError(
                f"There is no feature {unknown[0]!r}. The features: "
                f"{', '.join(map(repr, names[:50]))}."
            )
        return dataclasses.replace(
            self,
            dense=tuple(f for f in self.dense if f.name not in features),
            sparse=tuple(f for f in self.sparse if f.name not in features),
        )

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of the whole schema."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def summary(self) -> str:
        """Return a table for display: each feature with its column and transform.

        Example:

        >>> import pipelines
        >>> print(pipelines.Schema("click", "price", "country").summary())
        feature  column   kind      table
        label    click    1 or 0
        price    price    number
        country  country  category  country
        CSV with a header; missing: ""
        """
        from pipelines.schema.summary import summarize

        return summarize(self)

    # Files

    def to_json(self) -> str:
        """Return the schema as JSON text, without settings that have their defaults."""
        return json_form.write(self)

    @classmethod
    def from_json(cls, text: str) -> "Schema":
        """Make a schema from JSON text, from `to_json` or written by hand.

        Raises:
            ValueError: If the text is not JSON, or a key or value is wrong; the
                message names it.
        """
        return cls(**json_form.read(text))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Schema":
        """Read a schema from a JSON file, or return a built-in one.

        Args:
            path: The file, or the name of a built-in schema such as `"criteo"`
                (`pipelines.schema.layouts`).

        Raises:
            FileNotFoundError: If there is no such file or name.
            ValueError: If the file is not a valid schema; the message says where.
        """
        from pipelines.schema import layouts

        if isinstance(path, str) and path in layouts.NAMES:
            return layouts.get(path)
        path = os.fspath(path)
        if os.path.isdir(path):
            raise UserError(f"{path!r} is a folder. Name the JSON file of a schema.")
        if not os.path.exists(path):
            names = ", ".join(layouts.NAMES)
            raise FileNotFoundError(
                f"There is no schema file {path!r}, and no built-in schema of that "
                f"name. Built-in schemas: {names}. `tf-dlrm schema` guesses one."
            )
        try:
            with open(path, encoding="utf-8") as file:
                return cls.from_json(file.read())
        except UnicodeDecodeError:
            raise UserError(f"{path}: not text in UTF-8.") from None
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def guess(
        cls, paths: "Paths | Any", num_rows: int = 100_000, label: str | None = None
    ) -> "Schema":
        """Guess the schema of a log from its first rows.

        The guess finds the format, label, numbers, categories, bags, event time, user
        and weight, and leaves out columns that no model can learn from, such as row
        ids.

        Args:
            paths: The files: text of any delimiter and compression, or Parquet. Rows
                are read from the first; only the column names of the others are
                compared. Or a pandas or polars `DataFrame`.
            num_rows: Largest number of rows to read.
            label: Name of the label's column; default: look for it.

        Returns:
            The schema. `pipelines.schema.guess` also returns the reasons.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a file contains no rows of columns, or no column looks like
                the label; the message says what the file looks like.

        Example:

        >>> import os, tempfile
        >>> import pipelines
        >>> path = os.path.join(tempfile.mkdtemp(), "clicks.csv")
        >>> with open(path, "w") as file:
        ...     print("click,price,country", file=file)
        ...     for n in range(99):
        ...         print(n % 2, n / 7, "DE" if n % 3 else "FR", sep=",", file=file)
        >>> schema = pipelines.Schema.guess(path)
        >>> schema.label.column, schema.dense_features
        ('click', ('price',))
        """
        from pipelines.schema.guess import guess

        return guess(paths, num_rows, label).schema

    def save(self, path: str | os.PathLike) -> None:
        """Write the schema to a JSON file; an existing file is replaced."""
        write_text(path, self.to_json() + "\n")

    @classmethod
    def criteo(cls) -> "Schema":
        """Return Criteo's layout: label, I1 .. I13, C1 .. C26, tab-separated."""
        from pipelines.schema import layouts

        return layouts.get("criteo")


def _check_table(table: str, features: Sequence[Sparse]) -> None:
    """Raise an error if features that share a table have different settings for it."""
    for parameter in ("embedding_dim", "min_count", "hash_buckets", "growing"):
        values = {getattr(feature, parameter) for feature in features} - {None}
        if len(values) > 1:
            names = ", ".join(feature.name for feature in features)
            refuse(table, f"is read by {names} with different `{parameter}`", values)
    combiners = {feature.combiner for feature in features if feature.is_bag}
    if len(combiners) > 1:
        refuse(table, "is read with different `combiner`", sorted(combiners))
