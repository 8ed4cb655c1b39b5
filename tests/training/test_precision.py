"""One warning, with the ratio, where bfloat16 is slower than float32."""

import re
import warnings

import pytest
from helpers.small_model import make_data, make_model

from tf_dlrm.runtime import accelerators
from tf_dlrm.training import precision


@pytest.fixture
def seconds(monkeypatch):
    """The seconds of a product, by dtype; and the products that were measured."""
    seconds, measured = {"float32": 1.0, "bfloat16": 3.5}, []

    def measure(dtype, inner, outer):
        measured.append((dtype, inner, outer))
        return seconds[dtype]

    monkeypatch.setattr(precision, "measure", measure)
    monkeypatch.setitem(precision._state, "is_measured", False)
    seconds["measured"] = measured
    return seconds


def fit(dtype):
    model = make_model(dtype=dtype)
    model.compile("sgd", run_eagerly=True)
    model.fit(*make_data(), verbose=0)


def test_it_warns_once(seconds):
    words = "takes 3.5 times as long.*Use dtype='float32'"
    with pytest.warns(RuntimeWarning, match=words) as record:
        fit("mixed_bfloat16")
    sizes = re.search(r"of a 128 x (\d+) and a (\d+) x (\d+)", str(record[0].message))
    # The largest: bottom MLP (2, 8, 4), 6 pairs and 4 dense features, top MLP (8, 1).
    assert sizes.groups() == ("10", "10", "8")
    assert seconds["measured"] == [("bfloat16", 10, 8), ("float32", 10, 8)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit("mixed_bfloat16")
    assert len(seconds["measured"]) == 2


@pytest.mark.parametrize("case", ["float32", "fast", "accelerator"])
def test_it_does_not_warn(seconds, case, monkeypatch):
    seconds["bfloat16"] = 1.1 if case == "fast" else 3.5
    model = make_model(dtype="float32" if case == "float32" else "mixed_bfloat16")
    model.compile("sgd")
    if case == "accelerator":
        monkeypatch.setattr(accelerators, "first", lambda: "/device:CPU:0")
    precision.warn_if_slow(model)
    assert len(seconds["measured"]) == (2 if case == "fast" else 0)


def test_a_product_takes_some_time():
    assert 0 < precision.measure("bfloat16", 8, 4) < 10
