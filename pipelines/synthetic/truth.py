"""The click probabilities of generated logs."""

import numpy as np

from pipelines.synthetic import distributions

PAIRS = ((5, 14), (6, 14), (8, 17), (17, 23))  # C5 with C14, ...
RANK = 2  # dimensions of the latent vectors
ID_COLUMNS = (3, 5, 6, 8, 14, 17, 20, 23)  # columns whose single ids have effects
HEAD = 50  # only this number of most frequent values of a column have effects

_INTEGER_SHARE = 0.3  # share of the variance of the main effects
_STARTS_AT_1 = np.asarray([column.shift == 1 for column in distributions.INTEGERS])
_BUMP = 0.5  # largest bump, relative to a slope of 1
_STEP = 0.5
_PILOT_ROWS = 1 << 16
_PILOT, _INTEGERS, _IDS, _LATENTS = range(4)  # streams of random numbers


def stream(seed: int, *key: int) -> np.random.Generator:
    """Return a generator of random numbers that depends only on `seed` and `key`."""
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key))
    )


class Truth:
    """The log odds of a click, drawn once from a seed.

    With t = log(max(x, 0) + 1) of an integer, standardized, and id r of a column c,

        logit = bias + sum_j f_j(t_j) + sum_c e_c[r_c]
                     + sum_{(a, b) in PAIRS} w_ab (l_a[r_a] . l_b[r_b])

    f_j is a straight line, a slight bump and, in columns whose values start at 1, a
    step for "missing". c runs over `ID_COLUMNS`. e_c and the latent vectors l_c are 0
    for a missing value and for all but the `HEAD` most frequent values, which occur
    often enough in a million rows to be learned. l_c has mean 0 and equal variance in
    every direction, so a single id predicts nothing of the effect of its pair.

    Everything is a function of a row after `pipelines.criteo.Parser`: missing and
    negative integers are 0, missing and rare ids share row 0. A model of parsed rows
    can therefore reach the optimum.

    Args:
        seed: Seed of the random effects.
        click_rate: Mean click probability, which determines the bias.
        vocabulary_sizes: Number of values of each categorical column.
        main_effect: Standard deviation of f and e together.
        pair_effect: Standard deviation of all pair terms together.
    """

    def __init__(
        self,
        seed: int,
        click_rate: float,
        vocabulary_sizes: tuple[int, ...],
        main_effect: float,
        pair_effect: float,
    ):
        frequencies = [
            distributions.rank_probabilities(size, min(size, HEAD)) * (1.0 - missing)
            for size, missing in zip(
                vocabulary_sizes, distributions.missing_shares(), strict=True
            )
        ]
        self._set_ids(seed, frequencies, main_effect * np.sqrt(1.0 - _INTEGER_SHARE))
        self._set_pairs(seed, frequencies, pair_effect)

        pilot = distributions.sample_features(
            stream(seed, _PILOT), _PILOT_ROWS, vocabulary_sizes
        )
        integers, _, categories = pilot
        self._set_integers(seed, integers, main_effect * np.sqrt(_INTEGER_SHARE))
        self.bias = 0.0
        self.bias = bias_for(click_rate, self.logits(integers, categories))

    def _set_ids(self, seed, frequencies, deviation):
        # The last two entries stay 0: all ranks from HEAD, and -1 for missing.
        self.id_effects = np.zeros((len(frequencies), HEAD + 2))
        for column in ID_COLUMNS:
            p = frequencies[column - 1]
            effects = stream(seed, _IDS, column).standard_normal(p.size)
            variance = p @ effects**2 - (p @ effects) ** 2
            if variance > 1e-12:
                effects *= deviation / np.sqrt(variance * len(ID_COLUMNS))
                self.id_effects[column - 1, : p.size] = effects

    def _set_pairs(self, seed, frequencies, deviation):
        self.latents, strengths = {}, {}
        for column in sorted({column for pair in PAIRS for column in pair}):
            p = frequencies[column - 1]
            vectors = stream(seed, _LATENTS, column).standard_normal((p.size, RANK))
            vectors, strengths[column] = _whiten(vectors, p)
            self.latents[column] = np.zeros((HEAD + 2, RANK))
            self.latents[column][: p.size] = vectors
        self.pair_weights = {}
        for a, b in PAIRS:
            # The columns are independent: Var(l_a . l_b) = trace(cov_a cov_b).
            variance = np.trace(strengths[a] @ strengths[b])
            self.pair_weights[a, b] = (
                deviation / np.sqrt(variance * len(PAIRS)) if variance > 1e-6 else 0.0
            )

    def _set_integers(self, seed, integers, deviation):
        t = _log(integers)
        self.centers, self.scales = t.mean(axis=0), t.std(axis=0)
        rng = stream(seed, _INTEGERS)
        self.slopes = rng.choice((-1.0, 1.0), distributions.NUM_INTEGERS)
        self.bumps = rng.uniform(-_BUMP, _BUMP, distributions.NUM_INTEGERS)
        self.steps = (
            rng.uniform(-_STEP, _STEP, distributions.NUM_INTEGERS) * _STARTS_AT_1
        )
        scale = deviation / np.sqrt(distributions.NUM_INTEGERS)
        scale = scale / self._integer_terms(integers).std(axis=0)
        self.slopes *= scale
        self.bumps *= scale
        self.steps *= scale

    def _integer_terms(self, integers):
        z = (_log(integers) - self.centers) / self.scales
        terms = self.slopes * z + self.bumps * np.exp(-0.5 * z * z)
        return terms + self.steps * (integers <= 0)

    def logits(self, integers: np.ndarray, categories: np.ndarray) -> np.ndarray:
        """Return the log odds of rows: float64 `(rows,)`.

        Args:
            integers: Integers `(rows, 13)`, 0 for a missing value.
            categories: Ranks `(rows, 26)`, -1 for a missing value.
        """
        logits = self.bias + self._integer_terms(integers).sum(axis=1)
        ranks = np.minimum(categories.T, HEAD)
        for column_ranks, effects in zip(ranks, self.id_effects, strict=True):
            logits += effects[column_ranks]
        for (a, b), weight in self.pair_weights.items():
            products = self.latents[a][ranks[a - 1]] * self.latents[b][ranks[b - 1]]
            logits += weight * products.sum(axis=1)
        return logits


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits))


def _log(integers: np.ndarray) -> np.ndarray:
    return np.log1p(np.maximum(integers, 0).astype(np.float64))


def _whiten(vectors: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors of mean 0 and identity covariance under `p`, and the covariance.

    The covariance has a 0 for each direction that a too small vocabulary cannot fill.
    """
    vectors = vectors - p @ vectors / p.sum()
    values, directions = np.linalg.eigh(vectors.T @ (p[:, None] * vectors))
    scales = np.where(values > 1e-9, 1.0 / np.sqrt(np.maximum(values, 1e-9)), 0.0)
    vectors = vectors @ (directions * scales) @ directions.T
    return vectors, vectors.T @ (p[:, None] * vectors)


def bias_for(click_rate: float, logits: np.ndarray) -> float:
    """Return the number to add to `logits` for a mean probability of `click_rate`."""
    low, high = -60.0, 60.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if sigmoid(logits + middle).mean() < click_rate:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)
