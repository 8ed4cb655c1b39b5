"""Exports of growing tables: slots and compact, in Python and the C library."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from helpers.devices import on_devices
from helpers.growing_model import make_data, make_model
from helpers.sharded_model import strategy_of

import tf_dlrm

pytestmark = pytest.mark.filterwarnings("ignore:Growing table .* full")


def make_trained(**options):
    model = make_model(**options)
    model.fit(make_data(120, 16, "padded"), verbose=0)
    return model


def make_requests():
    """Rows that were trained, and rows with ids that no table has."""
    rows = [*make_data(64, 64, "padded"), *make_data(64, 64, "padded", 9, 10**6)]
    return [features for features, _ in rows]


def answers(path, features):
    served = tf.saved_model.load(path).signatures["serving_default"]
    return served(**features)["probabilities"].numpy()


def check(model, folder, compact, table_dtype="float32", atol=1e-6):
    path = tf_dlrm.export_saved_model(
        model, folder, max_hotness=3, compact=compact, table_dtype=table_dtype
    )
    for features in make_requests():
        expected = model.predict(features, verbose=0)
        np.testing.assert_allclose(answers(path, features), expected, atol=atol)
    return path


def test_slots_and_compact_answer_alike(tmp_path):
    model = make_trained()
    paths = [check(model, tmp_path / str(c), c) for c in (False, True)]
    features = make_requests()[1]
    np.testing.assert_array_equal(*(answers(path, features) for path in paths))
    described = [
        json.loads(pathlib.Path(path, "assets.extra/tf_dlrm.json").read_text())
        for path in paths
    ]
    num_rows = sum(
        len(model.embedding.live_rows(table.name).ids) + table.growing.num_shared(70)
        for table in model.spec.tables
        if table.growing is not None
    )
    assert described[1]["table_bytes"] == 4 * 8 * (num_rows + 20 + 1)
    assert described[0]["table_bytes"] == 4 * 8 * (5 * 70 + 20 + 1)


@pytest.mark.integration
@pytest.mark.parametrize("compact", [False, True], ids=["slots", "compact"])
def test_the_c_library_answers_alike(compact, tmp_path):
    path = check(make_trained(), tmp_path / "model", compact)
    report = tf_dlrm.serving.verify_saved_model(path)
    assert max(report["largest_difference"].values()) < 1e-6


@pytest.mark.integration
@pytest.mark.parametrize("compact", [False, True], ids=["slots", "compact"])
def test_quantized_tables(compact, tmp_path):
    check(make_trained(), tmp_path / "model", compact, "int8", atol=0.02)


def export_sharded(folder, plan):
    with strategy_of(2).scope():
        model = make_trained(plan=plan)
    for compact in (False, True):
        check(model, f"{folder}/{compact}", compact)


@pytest.mark.integration
@pytest.mark.parametrize("plan", ["row_wise", "column_wise"])
def test_sharded_tables(plan, tmp_path):
    on_devices(2)(export_sharded)(str(tmp_path), plan)


def test_a_model_without_growing_tables_cannot_be_compact(tmp_path):
    table = tf_dlrm.EmbeddingTable("a", 8, 8)
    with pytest.raises(ValueError, match="Only growing tables can be compact"):
        tf_dlrm.export_saved_model(make_model(tables=[table]), tmp_path, compact=True)
