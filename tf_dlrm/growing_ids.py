"""`GrowingIds`: how tables take new ids while training, and give old ones up."""

import dataclasses
from typing import Any

import keras

from tf_dlrm.runtime.errors import UserError

EVICTIONS = ("lru", "lfu", None)
FALLBACKS = ("shared", "none", "error")
SHARED_PART = 64  # one row of this many is a shared row
LARGEST_ID = (1 << 63) - 1
# Initializers whose values do not depend on the shape of the table.
_INITIALIZERS = ("Zeros", "Ones", "Constant", "RandomUniform", "RandomNormal")


@dataclasses.dataclass(frozen=True)
class GrowingIds:
    """Rules by which ids claim rows of a table in training.

    The ids of such a table are any int64 from 0 to 2^63 - 1, for example fingerprints
    of raw values; -1 is no id. The table has `vocabulary_size` rows. The first S of
    them are slots, which ids claim; with `fallback="shared"`, the last
    `max(1, vocabulary_size // 64)` rows are shared rows instead. The slots of an id are
    `(h + k) % S` for k = 0, 1, ... below `max_probes`, where h is
    `murmur_hash3_2x64(id, 0, 0)`.

    **A lookup in training** sees the ids of the global batch in order: row by row,
    feature by feature, and within a bag by position.

    1. Each id that has a slot keeps it. The slot's `last_seen` becomes the number of
       the training step, and its `hits` grow by the number of occurrences.
    2. The other distinct ids follow one after another, in the order of their first
       positions. An id that is admitted (see below) claims the first empty slot of its
       range; else the first slot whose id has expired; else, with `evict="lru"`, the
       slot with the smallest `last_seen`, or with `"lfu"`, the smallest `hits` and
       among these the smallest `last_seen`. Among equals, the first of the range is
       chosen. No id that this step has looked up, and no protected id, is replaced.
    3. A claimed slot is taken over in place. Its row gets initial values that are
       keyed by (seed, name of the table, id), and the optimizer's state of the row is
       its initial state. They depend on neither the slot nor its history.
    4. An id without a slot reads the `fallback`.

    The result depends on the ids alone, not on the number of devices. Evaluation,
    prediction and exports claim nothing. A lookup of a frozen table claims nothing.

    **Admission.** Each occurrence of an id without a slot counts.

    - `admission=None`: exact counts, in a counting table with as many slots as the
      table, in which an id can replace the one that was seen least recently. (If all
      slots of the range were seen in this step, the id is not counted.) The count of
      an id restarts from 0 when it claims a row.
    - `admission="sketch"`: counts of a count-min sketch with 4 hashes and W cells per
      hash, where W is the smallest power of two that is at least S, in 16 W bytes. All
      cells are halved after W counted occurrences. A count is never too small, except
      for halving. It is too large by more than 2.7 with a probability of at most 2 %.
    - a number p between 0 and 1: in each step in which an id without a slot occurs, it
      is admitted with probability p, keyed by (seed, id, step).

    Args:
        max_probes: Number of slots of an id.
        min_count: Number of occurrences after which an id is admitted.
        admission: `None`, `"sketch"` or a probability, see above.
        evict: Which id gives up its slot if the range is full: `"lru"`, `"lfu"`, or
            `None` for none (only expired ids).
        expire_after_steps: Number of training steps without an occurrence after which
            an id has expired. Default: never.
        expire_after_seconds: The same in event time, which
            `embedding.advance_clock(seconds)` sets. Default: never.
        fallback: What an id without a slot reads: `"shared"`, a shared row by hash, row
            `S + (h // S) % (number of shared rows)`; `"none"`, no row, like a missing
            id; or `"error"`, which raises an error. An id out of range raises an error
            in any case.
        seed: Integer seed of initial rows and of admission by probability.

    Raises:
        ValueError: If an argument breaks a rule above; the message names it.

    Example:

    >>> import numpy as np, tf_dlrm
    >>> table = tf_dlrm.EmbeddingTable(
    ...     "item", vocabulary_size=1000, embedding_dim=8,
    ...     growing=tf_dlrm.GrowingIds(expire_after_steps=10_000))
    >>> layer = tf_dlrm.layers.EmbeddingCollection([table])
    >>> rows = layer.claim(np.array([[3 << 40], [5], [3 << 40]]))
    >>> bool(rows[0] == rows[2]), layer.occupancy("item").num_ids
    (True, 2)

    Reference:
        The probing is that of MPZCH, arXiv 2602.17050, and of
        `torch.ops.fbgemm.zero_collision_hash`.
    """

    max_probes: int = 128
    min_count: int = 1
    admission: str | float | None = None
    evict: str | None = "lru"
    expire_after_steps: int | None = None
    expire_after_seconds: int | None = None
    fallback: str = "shared"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_probes", "min_count"):
            self._check_count(name)
        for name in ("expire_after_steps", "expire_after_seconds"):
            if getattr(self, name) is not None:
                self._check_count(name)
        if None not in (self.expire_after_steps, self.expire_after_seconds):
            _refuse("have `expire_after_steps` or `expire_after_seconds`, not both")
        if not hasattr(self.seed, "__index__") or isinstance(self.seed, bool):
            _refuse("have an integer `seed`", seed=self.seed)
        object.__setattr__(self, "seed", int(self.seed))
        if self.evict not in EVICTIONS:
            _refuse(f"have `evict` in {EVICTIONS}", evict=self.evict)
        if self.fallback not in FALLBACKS:
            _refuse(f"have `fallback` in {FALLBACKS}", fallback=self.fallback)
        self._check_admission()

    def _check_count(self, name):
        value = getattr(self, name)
        if not hasattr(value, "__index__") or isinstance(value, bool) or value < 1:
            _refuse(f"have a positive integer as `{name}`", **{name: value})
        object.__setattr__(self, name, int(value))

    def _check_admission(self):
        own = self.admission
        if own is None:
            return
        if own == "sketch":
            if self.min_count == 1:
                _refuse("have a `min_count` above 1 with admission='sketch'")
            return
        if not isinstance(own, float) or not 0 < own < 1:
            _refuse(
                "have `admission` None, 'sketch', or a probability between 0 and 1",
                admission=own,
            )
        if self.min_count != 1:
            _refuse("have `min_count` or a probability of admission, not both")

    def num_shared(self, vocabulary_size: int) -> int:
        """Return the number of shared rows of a table."""
        return max(1, vocabulary_size // SHARED_PART) * (self.fallback == "shared")

    def num_slots(self, vocabulary_size: int) -> int:
        """Return the number of rows of a table that ids can claim."""
        return vocabulary_size - self.num_shared(vocabulary_size)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON-safe values."""
        return dataclasses.asdict(self)


def get(identifier: Any, table: Any) -> GrowingIds | None:
    """Return the rules of a table, from an object or its config.

    Args:
        identifier: A `GrowingIds`, its config, or `None`.
        table: The `EmbeddingTable`.

    Raises:
        ValueError: If the rules do not fit the table.
        TypeError: If `identifier` is something else.
    """
    if identifier is None:
        return None
    if isinstance(identifier, dict):
        identifier = GrowingIds(**identifier)
    if not isinstance(identifier, GrowingIds):
        raise TypeError(
            f"`growing` of table '{table.name}' must be a tf_dlrm.GrowingIds or None. "
            f"Received: growing={identifier!r}"
        )
    if identifier.num_slots(table.vocabulary_size) < 1:
        raise UserError(
            f"Table '{table.name}' needs at least 2 rows, a slot and a shared row. "
            "Choose a larger `vocabulary_size`, or `fallback='none'`. Received: "
            f"vocabulary_size={table.vocabulary_size}"
        )
    return identifier


def check_initializer(initializer: Any, table: str) -> None:
    """Raise an error if the initial row of an id would depend on the table's shape."""
    if isinstance(initializer, type):
        initializer = initializer()
    name = type(initializer).__name__
    is_keras = type(initializer).__module__.startswith("keras.")
    if initializer is not None and not (is_keras and name in _INITIALIZERS):
        raise UserError(
            f"`initializer` of the growing table '{table}' must be None or one of "
            f"{', '.join(_INITIALIZERS)} of Keras, because each id gets its own "
            f"initial row. Received: {initializer!r}"
        )


def distribution(initializer: Any, vocabulary_size: int) -> tuple[str, float, float]:
    """Return the distribution of the initial values of a growing table.

    Args:
        initializer: The initializer of the table, see `check_initializer`.
        vocabulary_size: Number of rows of the table.

    Returns:
        `("uniform", low, high)` or `("normal", mean, deviation)`.
    """
    if initializer is None:
        limit = vocabulary_size**-0.5
        return "uniform", -limit, limit
    if isinstance(initializer, type):
        initializer = initializer()
    if isinstance(initializer, keras.initializers.RandomUniform):
        return "uniform", float(initializer.minval), float(initializer.maxval)
    if isinstance(initializer, keras.initializers.RandomNormal):
        return "normal", float(initializer.mean), float(initializer.stddev)
    constants = {"Zeros": 0.0, "Ones": 1.0}
    value = constants.get(type(initializer).__name__)
    value = float(initializer.value) if value is None else value
    return "uniform", value, value


def _refuse(rule: str, **received: Any) -> None:
    text = ", ".join(f"{name}={value!r}" for name, value in received.items())
    raise UserError(f"GrowingIds must {rule}." + (f" Received: {text}" if text else ""))
