"""Checks of the arguments of generators."""

from __future__ import annotations

import numbers
import os
from pathlib import Path

from pipelines.runtime import UserError

MAX_VOCABULARY_SIZE = (1 << 31) - 1  # ids are int32


def check_integer(name: str, value, minimum: int) -> None:
    """Refuse what is no integer of at least `minimum`."""
    if (
        not isinstance(value, numbers.Integral)
        or isinstance(value, bool)
        or value < minimum
    ):
        raise UserError(
            f"`{name}` must be an integer of at least {minimum}. "
            f"Received: {name}={value!r}."
        )


def check_click_rate(value) -> None:
    """Refuse a click rate that is not between 0 and 1."""
    if not 0.0 < value < 1.0:
        raise UserError(
            "`click_rate` must lie between 0 and 1, both excluded. "
            f"Received: click_rate={value}."
        )


def check_sizes(name: str, sizes, limit: int = MAX_VOCABULARY_SIZE) -> tuple[int, ...]:
    """Refuse vocabulary sizes outside of [1, `limit`]; return them as a tuple."""
    sizes = tuple(sizes)
    for number, size in enumerate(sizes):
        check_integer(f"{name}[{number}]", size, 1)
        if size > limit:
            raise UserError(
                f"`{name}` must be at most {limit:,}. "
                f"Received: {size:,} at position {number}."
            )
    return tuple(map(int, sizes))


def check_directory(name: str, path: str | os.PathLike) -> None:
    """Refuse a path in a directory that does not exist."""
    if not Path(path).parent.is_dir():
        raise UserError(
            f"`{name}` must lie in a directory that exists. "
            f"Received: {name}={os.fspath(path)!r}."
        )
