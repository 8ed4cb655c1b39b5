"""Warm starts between schemas: rows go on where ids have something in common."""

import numpy as np
import pandas as pd
import pytest

from pipelines import Schema, Sparse, Vocabulary
from pipelines.runs import row_maps

BEFORE = pd.DataFrame({"click": [0, 1, 0], "c": ["a", "b", "c"], "n": [1, 2, 40]})
NOW = pd.DataFrame({"click": [0, 1, 0], "c": ["c", "d", "a"], "n": [1, 2, 40]})


def vocabulary(frame, *sparse):
    return Vocabulary.build(frame, 1, schema=Schema("click", ["n"], sparse))


def hashed(num_buckets=4):
    return Sparse("c", name="h", hash_buckets=num_buckets)


def test_hashed_and_listed_tables_of_one_schema():
    old, new = (vocabulary(frame, "c", hashed(9)) for frame in (BEFORE, NOW))
    maps = row_maps(old, new)
    ids = [{v: 1 + i for i, v in enumerate(x.values("c"))} for x in (old, new)]
    assert maps["c"][0] == 0 and len(maps["c"]) == 4
    for value, i in ids[0].items():
        assert maps["c"][i] == ids[1].get(value, -1)
    np.testing.assert_array_equal(maps["h"], np.arange(9))


OTHERS = {
    "listed, then hashed": ([Sparse("c", name="h")], [hashed(40)]),
    # As many rows as there are values: nothing else tells.
    "as many rows": ([Sparse("c", name="h")], [hashed(4)]),
    "hashed, then listed": ([hashed(4)], [Sparse("c", name="h")]),
}


@pytest.mark.parametrize("old, new", OTHERS.values(), ids=OTHERS.keys())
def test_a_table_that_is_hashed_once_is_refused(old, new):
    words = ("listed", "hashes") if not old[0].hash_buckets else ("hashed", "lists")
    text = f"The table h {words[0]} values before and {words[1]} them now"
    with pytest.raises(ValueError, match=text):
        row_maps(vocabulary(BEFORE, "c", *old), vocabulary(NOW, "c", *new))


def width(value):
    return Sparse("n", name="b", buckets="width", width=value)


def quantiles(value):
    return Sparse("n", name="b", buckets="quantile", num_buckets=value)


BUCKETS = {
    "width": (width(10), width(20), "`width` was 10, now 20"),
    "quantiles": (quantiles(2), quantiles(3), "`num_buckets` was 2, now 3"),
    "kind": (width(10), quantiles(3), "`buckets` was width, now quantile"),
    "none": (Sparse("n", name="b"), width(1), "`buckets` was None, now width"),
}


@pytest.mark.parametrize("old, new, text", BUCKETS.values(), ids=BUCKETS.keys())
def test_a_table_of_other_buckets_is_refused(old, new, text):
    with pytest.raises(ValueError, match=f"feature b has other buckets .* {text}"):
        row_maps(vocabulary(BEFORE, old), vocabulary(NOW, new))
    row_maps(vocabulary(BEFORE, old), vocabulary(NOW, old))
