"""The profile of a log's locality, and its file."""

import dataclasses
import functools
import gzip
import hashlib
import json
import os
import zlib
from pathlib import Path

import numpy as np

from pipelines.runtime import UserError
from pipelines.synthetic import tsv
from pipelines.synthetic.checks import check_directory, check_integer, check_sizes
from pipelines.synthetic.distances import (
    BIN_EDGES,
    BINS_PER_OCTAVE,
    EXACT_BELOW,
    NUM_BINS,
)
from pipelines.whole_files import replacing

FORMAT = "tf_dlrm trace profile"
FORMAT_VERSION = 1

Counts = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class FeatureProfile:
    """The locality of the accesses of one feature.

    Attributes:
        name: Name of the feature.
        vocabulary_size: Number of ids.
        num_distinct: Number of ids that were accessed.
        num_accesses: Number of accesses.
        distances: `(distance, count)` pairs by increasing distance: the number of
            accesses with each LRU stack distance. From 256, a distance is the smallest
            one of a bin, whose width is at most 1/16 of it
            (`pipelines.synthetic.distances.BIN_EDGES`).
        bag_sizes: `(size, count)` pairs by increasing size: the number of rows with
            bags of each size.

    Raises:
        ValueError: If the numbers contradict each other.
    """

    name: str
    vocabulary_size: int
    num_distinct: int
    num_accesses: int
    distances: Counts
    bag_sizes: Counts

    def __post_init__(self):
        check_sizes("vocabulary_size", [self.vocabulary_size])
        check_integer("num_distinct", self.num_distinct, 0)
        check_integer("num_accesses", self.num_accesses, 0)
        for name in ("distances", "bag_sizes"):
            pairs = tuple((int(key), int(count)) for key, count in getattr(self, name))
            object.__setattr__(self, name, pairs)
            keys = [key for key, _ in pairs]
            if keys != sorted(set(keys)) or any(min(pair) < 0 for pair in pairs):
                self._refuse(f"`{name}` must increase and have positive counts")
        if not np.isin([key for key, _ in self.distances], BIN_EDGES).all():
            self._refuse("`distances` must be starts of bins")
        if sum(size * count for size, count in self.bag_sizes) != self.num_accesses:
            self._refuse("`bag_sizes` must add up to `num_accesses`")
        if not self.num_distinct <= min(self.num_new, self.vocabulary_size):
            self._refuse(
                "`num_distinct` must be between `num_new` and `vocabulary_size`"
            )
        if self.distances and self.distances[-1][0] >= self.num_distinct:
            self._refuse("a distance must be below `num_distinct`")

    def _refuse(self, rule):
        raise UserError(f"The profile of {self.name!r} is not valid: {rule}.")

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return sum(count for _, count in self.bag_sizes)

    @property
    def num_new(self) -> int:
        """Number of accesses of new ids, which had not been accessed before."""
        return self.num_accesses - sum(count for _, count in self.distances)

    def counts(self) -> np.ndarray:
        """Return numbers of accesses, int64 `(1 + NUM_BINS,)`: new ids, then by bin."""
        counts = np.zeros(1 + NUM_BINS, np.int64)
        counts[0] = self.num_new
        if self.distances:
            edges, values = np.asarray(self.distances).T
            counts[1 + np.searchsorted(BIN_EDGES, edges)] = values
        return counts

    def hit_rate(self, cache_rows: int) -> float:
        """Return the share of accesses that an LRU cache hits.

        It is exact up to 256 rows; above, it is exact at the edges of bins and
        interpolated linearly between them, so the error is at most the share of one
        bin.

        Args:
            cache_rows: Number of rows in the cache, which evicts the least recently
                used row.
        """
        hits = np.concatenate([[0], np.cumsum(self.counts()[1:])])
        return float(np.interp(cache_rows, BIN_EDGES, hits) / max(self.num_accesses, 1))

    def merge(self, other: "FeatureProfile") -> "FeatureProfile":
        """Return the profile of this feature in two logs together."""
        return FeatureProfile(
            self.name,
            max(self.vocabulary_size, other.vocabulary_size),
            max(self.num_distinct, other.num_distinct),
            self.num_accesses + other.num_accesses,
            _add(self.distances, other.distances),
            _add(self.bag_sizes, other.bag_sizes),
        )


@dataclasses.dataclass(frozen=True)
class Profile:
    """The locality of a log: LRU stack distances and bag sizes of its features.

    It contains no ids and no rows of the log. `profile` measures arrays,
    `profile_logs` measures files, and `Trace` generates rows with the same profile.

    Args:
        features: The `FeatureProfile` of each sparse feature, for the same rows.

    Raises:
        ValueError: If there are no features or no rows, or the numbers of rows differ.

    Example:

    >>> import pathlib, tempfile
    >>> from pipelines.synthetic import Profile, profile
    >>> measured = profile([3, 5, 3, 3, 5])
    >>> measured.features[0].distances, measured.features[0].num_new
    (((0, 1), (1, 2)), 2)
    >>> measured.features[0].hit_rate(cache_rows=1)
    0.2
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "profile.json"
    >>> measured.save(path)
    >>> Profile.load(path) == measured
    True
    """

    features: tuple[FeatureProfile, ...]

    def __post_init__(self):
        object.__setattr__(self, "features", tuple(self.features))
        rows = {feature.num_rows for feature in self.features}
        if len(rows) != 1 or rows == {0}:
            raise UserError(
                "`features` must be at least one profile, and all of the same rows. "
                f"Received: {len(self.features)} profiles of {sorted(rows)} rows."
            )
        if len(set(self.names)) != len(self.names):
            raise UserError(
                f"Names of features must be distinct. Received: {self.names}."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features."""
        return tuple(feature.name for feature in self.features)

    @property
    def vocabulary_sizes(self) -> tuple[int, ...]:
        """Number of ids of each feature."""
        return tuple(feature.vocabulary_size for feature in self.features)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.features[0].num_rows

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the profile, in hex."""
        text = json.dumps(self._content(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def merge(self, other: "Profile") -> "Profile":
        """Add the profile of another log, such as another day.

        Accesses, distances and bags add up. Both logs started without accessed ids, so
        new ids are as frequent as in logs of their length. The larger vocabulary size
        is used, as it is not known how many ids the logs have in common.

        Args:
            other: A profile of the same features.

        Raises:
            ValueError: If its features have other names.
        """
        if other.names != self.names:
            raise UserError(
                "Only profiles of the same features can be merged. "
                f"Received: {self.names} and {other.names}."
            )
        pairs = zip(self.features, other.features, strict=True)
        return Profile(tuple(one.merge(two) for one, two in pairs))

    def save(self, path: str | os.PathLike) -> None:
        """Write JSON text; the file appears complete or not at all.

        Args:
            path: File to write, compressed if its name ends in ".gz".

        Raises:
            ValueError: If its directory does not exist.
        """
        check_directory("path", path)
        content = {**self._content(), "sha256": self.digest}
        with replacing(path) as file:
            file.write(json.dumps(content).encode() + b"\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Profile":
        """Read a file that `save` wrote.

        Args:
            path: The file.

        Raises:
            ValueError: If it is not a profile, is of a newer version, or is damaged.
        """
        path = Path(path)
        try:
            with tsv.opened(path) as file:
                content = json.loads(file.read())
            is_profile = content["format"] == FORMAT
        except (ValueError, KeyError, TypeError, RecursionError):
            is_profile = False
        except (EOFError, gzip.BadGzipFile, zlib.error):
            is_profile = False
        if not is_profile:
            raise UserError(f"{path}: not a profile of tf_dlrm, or it is damaged.")
        if content.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{path}: the profile has format version "
                f"{content.get('format_version')}; this version of tf_dlrm reads "
                f"{FORMAT_VERSION}. Update tf_dlrm, or measure the log again."
            )
        try:
            features = [FeatureProfile(**feature) for feature in content["features"]]
            profile = cls(tuple(features))
            is_whole = content == {**profile._content(), "sha256": profile.digest}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: the profile is damaged ({error}).") from error
        if not is_whole:
            raise UserError(f"{path}: the profile is damaged: its checksum is wrong.")
        return profile

    def _content(self):
        features = [dataclasses.asdict(feature) for feature in self.features]
        for feature in features:
            for name in ("distances", "bag_sizes"):
                feature[name] = [list(pair) for pair in feature[name]]
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "exact_below": EXACT_BELOW,
            "bins_per_octave": BINS_PER_OCTAVE,
            "features": features,
        }


def _add(one: Counts, two: Counts) -> Counts:
    total = dict(one)
    for key, count in two:
        total[key] = total.get(key, 0) + count
    return tuple(sorted(total.items()))
