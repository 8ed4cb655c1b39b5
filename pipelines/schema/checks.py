"""Checks of the values of a schema, with messages that name the feature."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.runtime import UserError

Column = str | int


def refuse(name: str, rule: str, *received: Any) -> None:
    ending = f" Received: {str(received[0])[:200]}" if received else ""
    raise UserError(f"{name!r} {rule}.{ending}")


def check_name(name: Any) -> None:
    if not isinstance(name, str) or not name or re.search(r"[/\t\r\n]", name):
        raise UserError(
            "The name of a feature or table must be a non-empty string without '/', "
            f"tabs or line breaks. Received: {name!r}. Give the feature a `name`."
        )


def set_name(feature: Any) -> None:
    check_column("column", feature.column)
    if not feature.name:
        if isinstance(feature.column, int):
            refuse(f"column {feature.column}", "is a position, so it needs a `name`")
        object.__setattr__(feature, "name", feature.column)
    check_name(feature.name)


def check_column(place: str, column: Any) -> None:
    is_position = isinstance(column, int) and not isinstance(column, bool)
    if not (isinstance(column, str) and column) and not (is_position and column >= 0):
        refuse(place, "must be a column's name or its position, from 0", repr(column))


def check_choice(name: str, parameter: str, value: Any, choices: Sequence) -> None:
    if value not in choices:
        refuse(name, f"has a `{parameter}` that is not one of {choices}", repr(value))


def check_count(
    name: str, parameter: str, value: Any, least: int, most: int = 2**40
) -> None:
    is_count = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (is_count and value >= least):
        refuse(name, f"needs an integer of at least {least} as `{parameter}`", value)
    if value is not None and value > most:
        refuse(name, f"needs an integer of at most {most:,} as `{parameter}`", value)


def check_number(name: str, parameter: str, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or abs(value) > np.finfo("f4").max:
        refuse(name, f"needs a finite number as `{parameter}`", value)


def texts(parameter: str, values: Any) -> tuple[str, ...]:
    if isinstance(values, str) or not all(isinstance(text, str) for text in values):
        raise UserError(
            f"`{parameter}` must be a sequence of strings. Received: {values!r}"
        )
    return tuple(values)
