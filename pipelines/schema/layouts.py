"""The schemas that ship, by name: layouts of click logs that people have."""

import functools

from pipelines.schema.columns import Dense, Label, Sparse, Text
from pipelines.schema.schema import Schema

_INTEGERS = tuple(f"I{number}" for number in range(1, 14))
_CATEGORIES = tuple(f"C{number}" for number in range(1, 27))


def _criteo() -> Schema:
    """Return the layout of the Kaggle and Terabyte sets."""
    return Schema(
        label=Label("label", positive=("1",), negative=("0",)),
        dense=tuple(Dense(name, "log1p", integer=True) for name in _INTEGERS),
        sparse=tuple(Sparse(name, separator=",") for name in _CATEGORIES),
        format=Text("\t", False, ("label", *_INTEGERS, *_CATEGORIES)),
    )


_MAKERS = {"criteo": _criteo}
NAMES = tuple(_MAKERS)


@functools.cache
def get(name: str) -> Schema:
    """Return the schema of a name.

    Args:
        name: One of `NAMES`.

    Example:

    >>> from pipelines.schema import layouts
    >>> len(layouts.get("criteo").columns)
    40
    """
    return _MAKERS[name]()
