"""Tables in fewer bytes: what is stored, what is served."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from test_export import make_features, make_model, serve

import tf_dlrm
from tf_dlrm import EmbeddingTable, FeatureSpec
from tf_dlrm.serving import quantization

BITS = {"int8": 8, "int4": 4}
RATIOS = {"int8": 0.27, "int4": 0.15, "float16": 0.51, "bfloat16": 0.51}


def by_hand(stored, width, bits):
    """Value by value, in float64, from the bytes as they are documented."""
    rows = []
    half = -(-width // 2)
    for row in stored:
        scale, offset = np.frombuffer(row[-4:].tobytes(), "<f2").astype(np.float64)
        integers = [
            int(row[i])
            if bits == 8
            else int(row[i]) & 15
            if i < half
            else int(row[i - half]) >> 4
            for i in range(width)
        ]
        rows.append([scale * q + offset for q in integers])
    return np.array(rows)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("width", [1, 7, 8, 64])
def test_values_are_within_half_a_step(bits, width):
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.integers(-6, 4, (200, 1))
    rows = (rng.normal(size=(200, width)) * sizes + sizes / 3).astype("float32")
    rows[0], rows[1], rows[2] = 0, 0.3, np.linspace(-1, 1, width)
    stored = quantization.quantize(rows, bits)
    assert stored.dtype == np.uint8
    assert stored.shape == (200, quantization.row_bytes(width, bits))
    expected = by_hand(stored, width, bits)
    got = quantization.dequantize(tf.constant(stored), width, bits).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-12)
    assert not got[0].any()
    scale = np.frombuffer(stored[:, -4:].tobytes(), "<f2")[::2].astype(float)
    error = np.abs(expected - rows.astype(float)).max(axis=1)
    assert (error <= scale / 2 * (1 + 1e-5) + 1e-9 * sizes[:, 0]).all()
    span = rows.max(axis=1) - rows.min(axis=1).astype(float)
    offset_steps = np.abs(rows.min(axis=1)) * 2**-10
    allowed = (span + offset_steps + 6e-8) / (2**bits - 1) * (1 + 2**-10) + 6e-8
    assert (scale <= allowed).all()


@pytest.mark.integration
def test_sizes_and_signatures(tmp_path):
    tables = [EmbeddingTable(f"C{i}", 5_000, 64) for i in range(3)]
    model = tf_dlrm.DLRM(FeatureSpec(("I0",), tables), (8, 64), (8, 1))
    sizes, described = {}, {}
    for dtype in ("float32", *RATIOS):
        path = pathlib.Path(
            tf_dlrm.export_saved_model(
                model, tmp_path / dtype, table_dtype=dtype, candidate_features=["C1"]
            )
        )
        (data,) = (path / "variables").glob("*.data*")
        sizes[dtype] = data.stat().st_size
        described[dtype] = json.loads((path / "assets.extra/tf_dlrm.json").read_text())
        assert described[dtype]["table_dtype"] == dtype
        assert described[dtype]["signatures"] == described["float32"]["signatures"]
    whole = described["float32"]["table_bytes"]
    dense = sizes["float32"] - whole
    for dtype, ratio in RATIOS.items():
        assert described[dtype]["table_bytes"] <= ratio * whole
        assert sizes[dtype] - dense <= ratio * whole
    found = tf_dlrm.serving.verify_saved_model(tmp_path / "int4")
    assert max(found["largest_difference"].values()) <= 1e-6


def rounded(table, dtype):
    if dtype in BITS:
        stored = quantization.quantize(table, BITS[dtype])
        return by_hand(stored, table.shape[1], BITS[dtype]).astype("float32")
    return tf.cast(tf.cast(table, dtype), "float32").numpy()


@pytest.mark.breadth(0)
@pytest.mark.parametrize(
    ("dtype", "hotness"),
    [("int8", 3), ("int4", 1), ("float16", 1), ("bfloat16", 3)],
)
def test_what_is_served_is_the_model_with_rounded_tables(dtype, hotness, tmp_path):
    model = make_model()
    features = make_features(hotness)  # with missing ids
    path = tf_dlrm.export_saved_model(
        model, tmp_path, max_hotness=hotness, table_dtype=dtype
    )
    got = serve(path, features)["probabilities"]
    for table in model.spec.tables:
        values = rounded(model.embedding.get_table(table.name), dtype)
        model.embedding.set_table(table.name, values)
    expected = model.predict(features, verbose=0)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.integration
def test_shards_are_quantized_where_they_lie(tmp_path):
    tables = [EmbeddingTable(f"C{i}", n, 8) for i, n in enumerate((50, 7, 30))]
    spec = FeatureSpec(("I0", "I1"), tables)
    plan = dict(zip(("C0", "C1", "C2"), ("column_wise", "row_wise", "table_wise")))
    layer = tf_dlrm.sharding.ShardedEmbeddingCollection(tables, plan, seed=3)
    model = tf_dlrm.DLRM(spec, (8, 8), (8, 1), embedding=layer)
    features = make_features(1)
    features["sparse_features"] %= 7
    path = tf_dlrm.export_saved_model(model, tmp_path, table_dtype="int8")
    got = serve(path, features)["probabilities"]
    np.testing.assert_allclose(got, model.predict(features, verbose=0), atol=2e-3)
    found = tf_dlrm.serving.verify_saved_model(path)
    assert max(found["largest_difference"].values()) <= 1e-6


@pytest.mark.integration
def test_what_cannot_be_stored_is_refused(tmp_path):
    model = make_model()
    with pytest.raises(ValueError, match="`table_dtype` must be one of .* 'int2'"):
        tf_dlrm.export_saved_model(model, tmp_path, table_dtype="int2")
    model.embedding.set_table("C1", np.full((7, 8), 1e5, "float32"))
    for dtype in ("int8", "float16"):
        with pytest.raises(ValueError, match=r"contains 1e\+05, which exceeds float16"):
            tf_dlrm.export_saved_model(model, tmp_path, table_dtype=dtype)
    assert not list(tmp_path.glob("[0-9]*"))
    tf_dlrm.export_saved_model(model, tmp_path, table_dtype="bfloat16")
