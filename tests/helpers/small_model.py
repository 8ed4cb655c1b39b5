"""A small DLRM and data for the tests of the model."""

import numpy as np

import tf_dlrm
from tf_dlrm import EmbeddingTable, FeatureSpec, metrics

NUM_ROWS = 64


def make_spec(sizes=(11, 7, 30), width=4):
    tables = [EmbeddingTable(f"C{i}", size, width) for i, size in enumerate(sizes)]
    return FeatureSpec(("I0", "I1"), tables)


def make_model(**kwargs):
    return tf_dlrm.DLRM(make_spec(), (8, 4), (8, 1), **kwargs)


def make_data(sizes=(11, 7, 30)):
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(0, size, NUM_ROWS) for size in sizes], axis=1)
    dense = rng.normal(size=(NUM_ROWS, 2)).astype("float32")
    label = (rng.random(NUM_ROWS) < 0.5).astype("float32")
    return {"dense_features": dense, "sparse_features": ids}, label


def compiled(optimizer="adagrad", **kwargs):
    model = make_model()
    model.compile(optimizer, metrics=metrics.click_metrics(), **kwargs)
    return model


def predictions(model):
    return model.predict(make_data()[0], verbose=0)


def tables_of(model):
    return [model.embedding.get_table(table.name) for table in model.spec.tables]
