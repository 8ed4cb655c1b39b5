"""Numbers as categories, in NumPy: the name of the bucket that holds a number.

The parser computes the same names in TensorFlow operations. Both compare numbers with
the same table of edges, so they agree bit for bit.
"""

import decimal
import functools
import math
from collections.abc import Sequence

import numpy as np

from pipelines.formats.line_rules import LARGEST, SMALLEST
from pipelines.schema import Sparse


@functools.cache
def log2_edges() -> np.ndarray:
    """Return the edges of `"log2"`, float64: exp(√k) for k = 1, 2, ..., rounded up.

    Of these edges, floor(ln(x)²) are at most x, for any float64 x: exp(√k) is never a
    float64 itself, so x exceeds it exactly if x is at least the next float64 above it.
    """
    with decimal.localcontext(prec=40):
        last = int(decimal.Decimal(LARGEST).ln() ** 2)
        exact = [decimal.Decimal(k).sqrt().exp() for k in range(1, last + 1)]
        edges = [float(edge) for edge in exact]
        edges = [
            edge if decimal.Decimal(edge) >= true else math.nextafter(edge, math.inf)
            for edge, true in zip(edges, exact, strict=True)
        ]
    array = np.array(edges)
    array.flags.writeable = False
    return array


def bucket_texts(
    feature: Sparse, numbers: np.ndarray, edges: Sequence[float] | None = None
) -> np.ndarray:
    """Return the category of each number, as bytes.

    Args:
        feature: A `Sparse` with `buckets`: `"log2"` gives `b"=%d" % floor(x)` up to 2
            and `b"%d" % floor(ln(x)²)` above; `"width"` gives floor(x / width);
            `"quantile"` gives the number of edges that are at most x.
        numbers: float64 `(N,)`, finite.
        edges: The learned edges in ascending order, for `"quantile"`.

    Returns:
        `(N,)` objects, bytes.

    Example:

    >>> import numpy as np
    >>> from pipelines.formats.buckets import bucket_texts
    >>> from pipelines.schema import Sparse
    >>> bucket_texts(Sparse("I1", buckets="log2"), np.array([-1.5, 2.0, 20.0])).tolist()
    [b'=-2', b'=2', b'8']
    """
    numbers = np.asarray(numbers, np.float64)
    numbers = np.where(np.abs(numbers) < SMALLEST, 0.0, numbers)
    if feature.buckets == "width":
        with np.errstate(over="ignore"):
            return _as_texts(np.floor(numbers / feature.width))
    if feature.buckets == "quantile":
        return _as_texts(_count_edges(np.asarray(edges, np.float64), numbers))
    is_small = numbers <= 2
    texts = np.empty(len(numbers), object)
    texts[is_small] = _as_texts(np.floor(numbers[is_small]), b"=%.0f")
    texts[~is_small] = _as_texts(_count_edges(log2_edges(), numbers[~is_small]))
    return texts


def _count_edges(edges: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return np.searchsorted(edges, numbers, side="right")


def _as_texts(numbers: np.ndarray, form: bytes = b"%.0f") -> np.ndarray:
    # + 0.0 turns -0 into 0. Whole numbers are written in full, as with `%d`.
    distinct, positions = np.unique(numbers + 0.0, return_inverse=True)
    texts = np.empty(len(distinct), object)
    texts[:] = [form % number for number in distinct.tolist()]
    return texts[positions]
