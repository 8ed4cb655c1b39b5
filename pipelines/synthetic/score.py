"""The score of true probabilities on the labels drawn from them, in blocks."""

import numpy as np

_BINS = 1 << 20
_LARGEST_LOGIT = 16.0


class Score:
    """AUC, log loss and entropy of a stream of rows of any length, in 16 MB of memory.

    AUC comes from a histogram of logits with bins of width 3e-5. Rows in the same bin
    count as ties; the error stays below 1e-5.
    """

    def __init__(self):
        self._counts = np.zeros((2, _BINS), np.int64)
        self._log_loss = 0.0
        self._entropy = 0.0
        self.num_rows = 0

    def add(self, labels: np.ndarray, probabilities: np.ndarray):
        """Add rows: labels 0 or 1, and their true probabilities in (0, 1)."""
        p = probabilities
        log_p, log_q = np.log(p), np.log1p(-p)
        self._log_loss -= np.where(labels == 1, log_p, log_q).sum()
        self._entropy -= (p * log_p + (1.0 - p) * log_q).sum()
        bins = (log_p - log_q + _LARGEST_LOGIT) * (_BINS / (2 * _LARGEST_LOGIT))
        bins = np.clip(bins, 0, _BINS - 1).astype(np.int64)
        np.add.at(self._counts, (labels.astype(np.int64), bins), 1)
        self.num_rows += len(labels)

    @property
    def click_rate(self) -> float:
        return float(self._counts[1].sum() / self.num_rows)

    @property
    def log_loss(self) -> float:
        return float(self._log_loss / self.num_rows)

    @property
    def entropy(self) -> float:
        return float(self._entropy / self.num_rows)

    @property
    def auc(self) -> float | None:
        """Share of (click, no click) pairs in the right order; `None` without pairs."""
        others, clicks = self._counts.astype(np.float64)
        pairs = others.sum() * clicks.sum()
        if not pairs:
            return None
        below = np.cumsum(others) - others
        return float(clicks @ (below + 0.5 * others) / pairs)
