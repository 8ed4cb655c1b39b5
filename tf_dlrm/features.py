"""Description of a model's input, without tensors: `EmbeddingTable`, `FeatureSpec`."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import keras

from tf_dlrm import growing_ids
from tf_dlrm.growing_ids import GrowingIds
from tf_dlrm.runtime import initializers
from tf_dlrm.runtime.errors import UserError

COMBINERS = ("sum", "mean", "sqrtn")
NUM_CRITEO_INTEGERS = 13
NUM_CRITEO_CATEGORICALS = 26


def _check_name(kind: str, name: Any) -> str:
    if not isinstance(name, str) or not name or "/" in name:
        raise UserError(
            f"{kind} must be a non-empty string without '/'. Received: {name!r}"
        )
    return name


def _check_count(argument: str, value: Any, table: str) -> int:
    is_count = hasattr(value, "__index__") and not isinstance(value, bool)
    if not is_count or int(value) < 1:
        raise UserError(
            f"`{argument}` of table '{table}' must be a positive integer. "
            f"Received: {argument}={value!r}"
        )
    return int(value)


def _get_regularizer(identifier: Any, table: str) -> keras.Regularizer | None:
    if isinstance(identifier, (str, dict)):
        try:
            identifier = keras.regularizers.get(identifier)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"`regularizer` of table '{table}' must be a Keras regularizer, its "
                f"name or its config. {error}"
            ) from None
    if identifier is None or _can_be_saved(identifier):
        return identifier
    raise TypeError(
        f"`regularizer` of table '{table}' must be a keras.Regularizer with "
        "`get_config`, so that it can be saved with a model, or None. Received: "
        f"{identifier!r}"
    )


def _can_be_saved(regularizer: Any) -> bool:
    own = getattr(type(regularizer), "get_config", None)
    is_regularizer = isinstance(regularizer, keras.Regularizer)
    return is_regularizer and own is not keras.Regularizer.get_config


@dataclasses.dataclass(frozen=True)
class EmbeddingTable:
    """One embedding table and the sparse features that read it.

    Args:
        name: Name of the table, unique in its `FeatureSpec`.
        vocabulary_size: Number of rows; ids are `0 .. vocabulary_size - 1`.
        embedding_dim: Width of a row.
        combiner: How the rows of a bag become one vector: `"sum"` is Σwx,
            `"mean"` is Σwx / Σw, `"sqrtn"` is Σwx / sqrt(Σw²). Without weights, w is
            1. An empty bag gives zeros.
        initializer: Keras initializer (object, name or config), which is called with
            the table's shape, or the initial rows themselves: an array
            `(vocabulary_size, embedding_dim)` of at most 16 MiB. Default: uniform in
            `±1 / sqrt(vocabulary_size)`, as in the paper.
        features: Names of the features that read this table. Default: one feature
            with the same name as the table.
        trainable: Whether training changes the rows.
        regularizer: Keras regularizer (object, name or config) of the rows that a batch
            reads. The loss, in training and evaluation, includes
            `regularizer(rows)`, where `rows` is the matrix of the distinct rows that
            the global batch looks up: each row counts once, whatever its number of
            ids, their features and weights. The gradient of this penalty is added to
            that of the rows before the optimizer's step. It must be a sum over rows or
            values, such as `"l1"`, `"l2"`, `"l1l2"` or a subclass of
            `keras.Regularizer`. Rows outside the batch do not change; for decay of the
            whole table, use a dense optimizer such as `optimizers.DenseAdam`.
        growing: `tf_dlrm.GrowingIds`, by which ids claim rows while the table is
            trained. Ids are then any int64 from 0 to 2^63 - 1, and `vocabulary_size` is
            the number of rows. Default: id i reads row i.

    Raises:
        ValueError: If an argument breaks a rule above; the message names it.
        TypeError: If the initializer or regularizer cannot be saved to a file, such as
            a lambda.

    Example:

    >>> import tf_dlrm
    >>> table = tf_dlrm.EmbeddingTable("C1", vocabulary_size=1461, embedding_dim=16)
    >>> table.features
    ('C1',)

    Reference:
        Naumov et al. 2019, arXiv 1906.00091, section 2.1.
    """

    name: str
    vocabulary_size: int
    embedding_dim: int
    combiner: str = "sum"
    initializer: Any = None
    features: Sequence[str] = None  # type: ignore[assignment]  # its name
    trainable: bool = True
    regularizer: Any = None
    growing: GrowingIds | None = None

    def __post_init__(self) -> None:
        _check_name("`name` of an EmbeddingTable", self.name)
        sizes = {
            argument: _check_count(argument, getattr(self, argument), self.name)
            for argument in ("vocabulary_size", "embedding_dim")
        }
        if self.combiner not in COMBINERS:
            raise UserError(
                f"`combiner` of table '{self.name}' must be one of {COMBINERS}. "
                f"Received: combiner={self.combiner!r}"
            )
        features = (self.name,) if self.features is None else self.features
        if isinstance(features, str) or not features:
            raise UserError(
                f"`features` of table '{self.name}' must be a non-empty sequence of "
                f"names, or None. Received: features={features!r}"
            )
        for feature in features:
            _check_name(f"A feature of table '{self.name}'", feature)
        shape = (sizes["vocabulary_size"], sizes["embedding_dim"])
        values = {
            **sizes,
            "features": tuple(features),
            "initializer": initializers.get(self.initializer, self.name, shape),
            "trainable": bool(self.trainable),
            "regularizer": _get_regularizer(self.regularizer, self.name),
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)
        object.__setattr__(self, "growing", growing_ids.get(self.growing, self))
        if self.growing is not None:
            growing_ids.check_initializer(self.initializer, self.name)

    @property
    def num_parameters(self) -> int:
        """Number of values in the table."""
        return self.vocabulary_size * self.embedding_dim

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON-safe values."""
        config = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        config["features"] = list(self.features)
        if self.initializer is not None:
            config["initializer"] = keras.initializers.serialize(self.initializer)
        if self.regularizer is None:  # files are as before there were regularizers
            del config["regularizer"]
        else:
            config["regularizer"] = keras.regularizers.serialize(self.regularizer)
        if self.growing is None:  # as above
            del config["growing"]
        else:
            config["growing"] = self.growing.get_config()
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "EmbeddingTable":
        """Create a table from the result of `get_config()`."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EmbeddingTable):
            return NotImplemented
        return self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((self.name, self.vocabulary_size, self.embedding_dim))


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """The columns of a model: dense features and embedding tables, in order.

    Args:
        dense: Names of the dense (real-valued) features, in the order of the
            columns of `dense_features`; `()` for none.
        tables: The `EmbeddingTable`s. The columns of `sparse_features` are their
            features, table by table.

    Raises:
        ValueError: If two tables or two features have the same name, or if there is no
            table.
        TypeError: If `tables` holds anything but `EmbeddingTable` objects.

    Example:

    >>> import tf_dlrm
    >>> spec = tf_dlrm.FeatureSpec(
    ...     dense=("age",),
    ...     tables=(tf_dlrm.EmbeddingTable("country", 200, 8),
    ...             tf_dlrm.EmbeddingTable("item", 10_000, 8,
    ...                                    features=("clicked", "shown"))))
    >>> spec.sparse_features
    ('country', 'clicked', 'shown')
    >>> tf_dlrm.FeatureSpec.from_json(spec.to_json()) == spec
    True
    """

    dense: Sequence[str]
    tables: Sequence[EmbeddingTable]

    def __post_init__(self) -> None:
        if isinstance(self.dense, str) or self.dense is None:
            raise UserError(
                "`dense` must be a sequence of feature names, () for none. "
                f"Received: dense={self.dense!r}"
            )
        if isinstance(self.tables, EmbeddingTable) or not self.tables:
            raise UserError(
                "`tables` must be a non-empty sequence of EmbeddingTable. "
                f"Received: tables={self.tables!r}"
            )
        for table in self.tables:
            if not isinstance(table, EmbeddingTable):
                raise TypeError(
                    "`tables` must hold tf_dlrm.EmbeddingTable objects. "
                    f"Received: {table!r}"
                )
        object.__setattr__(self, "dense", tuple(self.dense))
        object.__setattr__(self, "tables", tuple(self.tables))
        for feature in self.dense:
            _check_name("A name in `dense`", feature)
        _check_unique("table", [table.name for table in self.tables])
        _check_unique("feature", [*self.dense, *self.sparse_features])

    @property
    def sparse_features(self) -> tuple[str, ...]:
        """Names of the sparse features, in the order of their columns."""
        return tuple(name for table in self.tables for name in table.features)

    @property
    def num_dense(self) -> int:
        """Number of dense features."""
        return len(self.dense)

    @property
    def num_sparse(self) -> int:
        """Number of sparse features; several may read one table."""
        return len(self.sparse_features)

    @classmethod
    def criteo(
        cls,
        vocabulary_sizes: Sequence[int] | int,
        embedding_dim: int = 16,
        combiner: str = "sum",
    ) -> "FeatureSpec":
        """Create the spec of Criteo's click logs: I1 .. I13 and tables for C1 .. C26.

        Args:
            vocabulary_sizes: The number of rows of each of the 26 tables, or a single
                number for one table named "shared" that all 26 features read.
            embedding_dim: Width of all tables.
            combiner: How the rows of a bag are pooled: `"sum"`, `"mean"` or `"sqrtn"`.

        Raises:
            ValueError: If there are not 26 sizes.
        """
        dense = [f"I{i}" for i in range(1, NUM_CRITEO_INTEGERS + 1)]
        sparse = [f"C{i}" for i in range(1, NUM_CRITEO_CATEGORICALS + 1)]
        if hasattr(vocabulary_sizes, "__index__"):
            size = int(vocabulary_sizes)
            shared = EmbeddingTable(
                "shared", size, embedding_dim, combiner, features=sparse
            )
            return cls(dense, [shared])
        sizes = list(vocabulary_sizes)
        if len(sizes) != NUM_CRITEO_CATEGORICALS:
            raise UserError(
                "`vocabulary_sizes` must have one size for each of the "
                f"{NUM_CRITEO_CATEGORICALS} categorical columns C1 .. C26. "
                f"Received: {len(sizes)} sizes"
            )
        tables = [
            EmbeddingTable(name, size, embedding_dim, combiner)
            for name, size in zip(sparse, sizes)
        ]
        return cls(dense, tables)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON-safe values."""
        return {
            "dense": list(self.dense),
            "tables": [table.get_config() for table in self.tables],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FeatureSpec":
        """Create a spec from the result of `get_config()`."""
        tables = [EmbeddingTable.from_config(table) for table in config["tables"]]
        return cls(dense=config["dense"], tables=tables)

    def to_json(self) -> str:
        """Return the spec as JSON text."""
        return json.dumps(self.get_config(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "FeatureSpec":
        """Create a spec from the text that `to_json()` returned.

        Raises:
            ValueError: If it is other text.
        """
        problem = "its keys or values are others"
        try:
            return cls.from_config(json.loads(text))
        except UserError:
            raise
        except RecursionError:
            problem = "it is nested too deeply"
        except json.JSONDecodeError as error:
            problem = f"it is not JSON ({error})"
        except (KeyError, TypeError, ValueError):
            pass
        raise UserError(f"The text is not a spec that `to_json` wrote: {problem}.")


def _check_unique(kind: str, names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(
            f"Each {kind} name must be unique in a FeatureSpec. Received more than "
            f"once: {', '.join(repeated)}"
        )
