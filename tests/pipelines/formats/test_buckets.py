"""Numbers as categories: NumPy, TensorFlow and plain Python give the same texts."""

import decimal

import numpy as np
import pytest
import tensorflow as tf
from helpers import row_oracle

from pipelines.formats import cell_ops
from pipelines.formats.buckets import bucket_texts, log2_edges
from pipelines.schema import Sparse

EDGES = [-2.5, 0.0, 1.0, 1e10]
FEATURES = [
    Sparse("x", buckets="log2"),
    Sparse("x", buckets="quantile"),
    Sparse("x", buckets="width", width=0.1),
    Sparse("x", buckets="width", width=1000),
]


def make_numbers():
    rng = np.random.default_rng(0)
    largest = float(np.finfo(np.float32).max)
    special = [0.0, -0.0, 1.0, 2.0, np.nextafter(2.0, 3), 1e-37, -1e-37, 2.5, -2.5]
    special += [largest, -largest, *EDGES, 0.3, -0.05, 999.9999999999999, 1e22]
    edges = log2_edges()[rng.integers(0, len(log2_edges()), 40)]
    numbers = np.exp(rng.uniform(-5, 88, 300)) * rng.choice([-1, 1], 300)
    around = [np.nextafter(edges, 0), edges, np.nextafter(edges, np.inf)]
    return np.concatenate([special, numbers, *around])


@pytest.mark.parametrize("feature", FEATURES, ids=lambda f: f"{f.buckets} {f.width}")
def test_texts_of_buckets(feature):
    numbers = make_numbers()
    numbers = numbers[np.abs(numbers) <= np.finfo(np.float32).max]
    learned = {"x": {"edges": EDGES}}
    expected = [row_oracle._bucket(x, feature, learned) for x in numbers.tolist()]
    assert bucket_texts(feature, numbers, EDGES).tolist() == expected
    tiny = np.array([-1e-40, -5e-324, 0.0])
    assert len(set(bucket_texts(feature, tiny, EDGES))) == 1
    assert bucket_texts(feature, numbers[:0], EDGES).tolist() == []
    graph = tf.function(lambda x: cell_ops.bucket_texts(feature, x, EDGES))
    assert graph(tf.constant(numbers)).numpy().tolist() == expected


def test_edges_are_the_first_numbers_of_their_buckets():
    edges = log2_edges()
    assert len(edges) == 7871 and not edges.flags.writeable
    with decimal.localcontext(prec=60):
        for k in (1, 2, 3, 4, 100, 5000, 7871):
            below = np.nextafter(edges[k - 1], 0)
            for number, bucket in ((edges[k - 1], k), (below, k - 1)):
                assert int(decimal.Decimal(float(number)).ln() ** 2) == bucket
