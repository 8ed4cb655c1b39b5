"""`Growing`: a table of a schema that takes new ids while it is trained."""

import dataclasses
from typing import Any

from pipelines.schema.checks import check_choice, check_count, refuse

DEFAULT_ROWS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Growing:
    """The rows of a growing table and the rules by which ids claim them.

    The fields but `rows` are those of `tf_dlrm.GrowingIds`.

    Args:
        rows: Number of rows, the table's `vocabulary_size`.
        max_probes: Number of rows that an id can claim.
        min_count: Number of occurrences after which an id is admitted.
        admission: `None`, `"sketch"` or a probability.
        evict: `"lru"`, `"lfu"` or `None`.
        expire_after_steps: Number of steps after which an id expires; default: never.
        expire_after_seconds: The same in event time, in units of the schema's `time`;
            for runs that are progressive.
        fallback: `"shared"`, `"none"` or `"error"`.
        seed: Seed of initial rows and of admission by probability.
    """

    rows: int = DEFAULT_ROWS
    max_probes: int = 128
    min_count: int = 1
    admission: str | float | None = None
    evict: str | None = "lru"
    expire_after_steps: int | None = None
    expire_after_seconds: int | None = None
    fallback: str = "shared"
    seed: int = 0

    def __post_init__(self) -> None:
        counts = "max_probes", "min_count", "expire_after_steps", "expire_after_seconds"
        check_count("growing", "rows", self.rows, 2, 2**40)
        for name in counts:
            check_count("growing", name, getattr(self, name), 1, 2**40)
        check_choice("growing", "evict", self.evict or "lru", ("lru", "lfu"))
        check_choice("growing", "fallback", self.fallback, ("shared", "none", "error"))

    def rules(self) -> Any:
        """Return the `tf_dlrm.GrowingIds`."""
        from tf_dlrm import GrowingIds

        options = dataclasses.asdict(self)
        del options["rows"]
        return GrowingIds(**options)


def read(feature: str, value: Any, min_count: int | None) -> Growing | None:
    """Return the `Growing` of a feature from what its schema says.

    Args:
        feature: Name of the feature, for messages.
        value: `True`, an object with fields of `Growing`, a `Growing`, or `None`.
        min_count: The feature's `min_count`, the default of that of `Growing`.

    Raises:
        ValueError: If the value is something else, or a field is unknown.
    """
    if value is None or value is False:
        return None
    if isinstance(value, Growing):
        return value
    options = {} if value is True else value
    if not isinstance(options, dict):
        refuse(feature, "must have `growing` true or an object", repr(value))
    known = [field.name for field in dataclasses.fields(Growing)]
    unknown = [name for name in options if name not in known]
    if unknown:
        refuse(feature, f"has `growing` with fields of {', '.join(known)}", unknown)
    if min_count is not None:
        options = {"min_count": min_count, **options}
    return Growing(**options)
