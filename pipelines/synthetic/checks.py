"""Check the arguments of generators."""

import numbers
import os
from pathlib import Path

from pipelines.runtime import UserError

MAX_VOCABULARY_SIZE = (1 << 31) - 1  # ids are int32


def check_integer(name: str, value, minimum: int) -> None:
    """Check that a value is an integer of at least `minimum`."""
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
    """Check that a click rate is between 0 and 1, both excluded."""
    if not 0.0 < value < 1.0:
        raise UserError(
            "`click_rate` must be between 0 and 1, both excluded. "
            f"Received: click_rate={value}."
        )


def check_sizes(name: str, sizes, limit: int = MAX_VOCABULARY_SIZE) -> tuple[int, ...]:
    """Check that vocabulary sizes are in [1, `limit`]; return them as a tuple."""
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
    """Check that the directory of a path exists."""
    if not Path(path).parent.is_dir():
        raise UserError(
            f"`{name}` must be in an existing directory. "
            f"Received: {name}={os.fspath(path)!r}."
        )
