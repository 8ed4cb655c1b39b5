"""Check that values, such as those of a JSON file, have their declared types."""

import collections.abc
import reprlib
import types
import typing
from typing import Any, Literal

from pipelines.runtime import UserError


def check_types(values: dict[str, Any], hints: dict[str, Any]) -> None:
    """Check that values have their declared types; names without a type are skipped.

    Raises:
        ValueError: If a value has the wrong type; the message names it.
    """
    for name in hints.keys() & values.keys():
        if not _fits(values[name], hints[name]):
            hint = getattr(hints[name], "__name__", None)
            if hint is None or typing.get_args(hints[name]):
                hint = str(hints[name]).replace("typing.", "")
                hint = hint.replace("collections.abc.Sequence[str]", "a list of texts")
            raise UserError(
                f"`{name}` must be {hint}. Received: {name}="
                f"{reprlib.repr(values[name])}"
            )


def _fits(value, hint) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, each) for each in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (tuple, list, collections.abc.Sequence):
        whole = isinstance(value, list | tuple)
        return whole and all(_fits(each, arguments[0]) for each in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
