"""Numbers as categories, in NumPy: the text of the bucket that a number falls in.

The parser computes the same texts in TensorFlow operations. Both compare numbers with
one table of edges, so they agree to the last bit.
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

    A float64 x has floor(ln(x)²) edges that are not above it: exp(√k) is never a
    float64 itself, so x reaches it just where it reaches the next float64 above.
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
    """Return the value, a text, that each number is as a category.

    Args:
        feature: A `Sparse` with `buckets`: `"log2"` gives `b"=%d" % floor(x)` up to 2
            and `b"%d" % floor(ln(x)²)` above; `"width"` gives floor(x / width);
            `"quantile"` gives the number of edges that are not above x.
        numbers: float64 `(N,)`, finite.
        edges: The learned edges, rising, for `"quantile"`.

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
    # + 0.0: no text of -0. Whole numbers are written in full, as `%d` does.
    distinct, positions = np.unique(numbers + 0.0, return_inverse=True)
    texts = np.empty(len(distinct), object)
    texts[:] = [form % number for number in distinct.tolist()]
    return texts[positions]
