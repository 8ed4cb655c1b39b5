"""Same weights, same real rows, same optimizer as a plain PyTorch DLRM."""

import json

import keras
import numpy as np
import pytest
from helpers import torch_python

import pipelines
import tf_dlrm
from tf_dlrm.interop import from_facebookresearch_dlrm

NUM_STEPS, BATCH_SIZE, WIDTH = 200, 64, 16
BOTTOM, TOP = (64, 32, WIDTH), (64, 32, 1)
# Tables: Adagrad in torch's form, an option of ours. MLPs: Keras has epsilon inside the
# root. It is 1e-30 there and 1e-15 in torch, the same to where float32 sees it.
# Accumulators start above 0, where rounding of a small gradient is no full step.
TORCH_OPTIONS = {
    "sgd": {"name": "sgd", "tables": {"lr": 0.1}, "mlps": {"lr": 0.1}},
    "adagrad": {
        "name": "adagrad",
        "tables": {"lr": 0.05, "eps": 1e-8, "initial_accumulator_value": 0.01},
        "mlps": {"lr": 0.02, "eps": 1e-15, "initial_accumulator_value": 0.01},
    },
    "adam": {
        "name": "adam",
        "num_steps": 20,
        "tables": {"lr": 1e-3, "weight_decay": 1e-5, "eps": 1e-8},
        "mlps": {"lr": 0.1},
    },
}


def make_optimizers(name):
    """The same in Keras: of the MLPs, and of the tables."""
    if name == "sgd":
        return keras.optimizers.SGD(0.1), None
    mlps = keras.optimizers.Adagrad(0.02, initial_accumulator_value=0.01, epsilon=1e-30)
    tables = tf_dlrm.optimizers.SparseAdagrad(
        0.05, initial_accumulator_value=0.01, epsilon=1e-8, epsilon_outside_root=True
    )
    return mlps, tables


class LossOfEachStep(keras.callbacks.Callback):
    """Keras reports the mean since the last reset."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])


def make_model(spec):
    keras.utils.set_random_seed(11)
    return tf_dlrm.DLRM(spec, BOTTOM, TOP)


def weights_by_torch_name(model):
    weights = {
        f"emb_l.{i}.weight": model.embedding.get_table(table.name)
        for i, table in enumerate(model.spec.tables)
    }
    for name, mlp in (("bot_l", model.bottom_mlp), ("top_l", model.top_mlp)):
        for i, layer in enumerate(mlp.dense_layers):
            weights[f"{name}.{2 * i}.weight"] = layer.kernel.numpy().T
            weights[f"{name}.{2 * i}.bias"] = layer.bias.numpy()
    return weights


@pytest.fixture(scope="module")
def trained(real_rows, tmp_path_factory):
    """The rows, the spec, and what torch made of them."""
    folder = tmp_path_factory.mktemp("torch")
    path = real_rows / "criteo_kaggle_sample.tsv.gz"
    parser = pipelines.criteo.Parser(pipelines.Vocabulary.build(path, min_count=3))
    spec = parser.spec(embedding_dim=WIDTH)
    dataset = pipelines.criteo.read(path, parser, batch_size=NUM_STEPS * BATCH_SIZE)
    features, label = next(iter(dataset))
    rows = {
        "dense": features["dense_features"].numpy(),
        "ids": features["sparse_features"].to_tensor().numpy()[:, :, 0],
        "label": label.numpy(),
    }
    assert rows["ids"].shape == (NUM_STEPS * BATCH_SIZE, 26)
    np.savez(folder / "rows.npz", **rows)
    np.savez(folder / "weights.npz", **weights_by_torch_name(make_model(spec)))
    job = {
        "sizes": [table.vocabulary_size for table in spec.tables],
        "bottom": BOTTOM,
        "top": TOP,
        "batch_size": BATCH_SIZE,
        "optimizers": TORCH_OPTIONS,
    }
    (folder / "job.json").write_text(json.dumps(job))
    return folder, spec, rows, torch_python.run("train", folder)


@pytest.mark.parametrize("name", ["sgd", "adagrad"])
def test_losses_of_200_steps_are_those_of_torch(name, trained):
    folder, spec, rows, losses = trained
    model, steps = make_model(spec), LossOfEachStep()
    mlps, tables = make_optimizers(name)
    model.compile(mlps, "binary_crossentropy", embedding_optimizer=tables)
    features = {"dense_features": rows["dense"], "sparse_features": rows["ids"]}
    model.fit(
        features,
        rows["label"],
        batch_size=BATCH_SIZE,
        shuffle=False,
        verbose=0,
        callbacks=[steps],
    )
    expected = np.array(losses[name])
    assert len(steps.losses) == len(expected) == NUM_STEPS
    assert expected[-50:].mean() < expected[:10].mean() - 0.02, "it did not learn"
    np.testing.assert_allclose(steps.losses, expected, atol=1e-4)
    # Weights too: torch's, read as a checkpoint, predict the same.
    with np.load(folder / f"trained_{name}.npz") as found:
        of_torch = from_facebookresearch_dlrm(dict(found), spec=spec)
    ours = model.predict(features, batch_size=4096, verbose=0)
    expected = of_torch.predict(features, batch_size=4096, verbose=0)
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_tables_after_20_steps_of_dense_adam_are_those_of_torch(trained):
    """Also the rows that no batch has read, which the penalty moves."""
    folder, spec, rows, losses = trained
    num_rows = len(losses["adam"]) * BATCH_SIZE
    assert num_rows == 20 * BATCH_SIZE
    model = make_model(spec)
    tables = tf_dlrm.optimizers.DenseAdam(
        1e-3, epsilon=1e-8, l2=1e-5, corrects_epsilon=True
    )
    model.compile(keras.optimizers.SGD(0.1), embedding_optimizer=tables)
    before = weights_by_torch_name(model)
    model.fit(
        {
            "dense_features": rows["dense"][:num_rows],
            "sparse_features": rows["ids"][:num_rows],
        },
        rows["label"][:num_rows],
        batch_size=BATCH_SIZE,
        shuffle=False,
        verbose=0,
    )
    after = weights_by_torch_name(model)
    with np.load(folder / "trained_adam.npz") as found:
        for name, values in after.items():
            np.testing.assert_allclose(values, found[name], atol=1e-5, err_msg=name)
            if name.startswith("emb_l"):
                assert (np.abs(values - before[name]).max(1) > 1e-3).all(), name
