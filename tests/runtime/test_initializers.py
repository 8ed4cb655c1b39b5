"""Initial rows that are given, and functions that a file cannot hold."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_dlrm
from tf_dlrm import EmbeddingTable, FeatureSpec

ROWS = np.arange(20, dtype=np.float32).reshape(5, 4) / 7


@pytest.mark.parametrize(
    "rows", [ROWS, ROWS.astype(np.float64), tf.constant(ROWS), ROWS.tolist()]
)
def test_given_rows_are_those_of_the_table_in_every_copy(rows, tmp_path):
    table = EmbeddingTable("a", 5, 4, initializer=rows)
    spec = FeatureSpec(("d",), [table])
    model = tf_dlrm.DLRM(spec, (8, 4), (8, 1))
    model.save(tmp_path / "m.keras")
    copies = {
        "the model": model,
        "load_model": keras.models.load_model(tmp_path / "m.keras"),
        "from_config": tf_dlrm.DLRM.from_config(model.get_config()),
        "clone_model": keras.models.clone_model(model),
        "from_json": tf_dlrm.DLRM(
            FeatureSpec.from_json(spec.to_json()), (8, 4), (8, 1)
        ),
        "model_from_json": keras.models.model_from_json(model.to_json()),
    }
    for copy in copies.values():
        np.testing.assert_array_equal(copy.embedding.get_table("a"), ROWS)
    sharded = tf_dlrm.sharding.ShardedEmbeddingCollection([table])
    np.testing.assert_array_equal(sharded.get_table("a"), ROWS)


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (5,), (5, 4, 1)])
def test_rows_of_another_shape_name_the_table(shape):
    with pytest.raises(ValueError, match=r"table 'a' must have its shape \(5, 4\)"):
        EmbeddingTable("a", 5, 4, initializer=np.zeros(shape))


def test_too_many_rows_name_the_way_to_go():
    rows = np.zeros((1 << 17, 64), np.float32)
    with pytest.raises(ValueError, match="16 MiB of rows.*set_table"):
        EmbeddingTable("a", *rows.shape, initializer=rows)


def make_closure():
    return lambda shape, dtype=None: tf.zeros(shape, dtype)


class Callable:
    def __call__(self, shape, dtype=None):
        return tf.zeros(shape, dtype)


@pytest.mark.parametrize(
    "function",
    [lambda shape, dtype=None: tf.zeros(shape, dtype), make_closure(), Callable()],
    ids=["lambda", "closure", "object"],
)
def test_functions_that_a_file_cannot_hold_are_refused(function):
    with pytest.raises(TypeError, match="table 'a' is a function that cannot be saved"):
        EmbeddingTable("a", 5, 4, initializer=function)
