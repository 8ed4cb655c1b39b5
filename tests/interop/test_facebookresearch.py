"""Checkpoints of facebookresearch/dlrm: PyTorch's predictions, and without torch."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import torch_python
from helpers.oracle import NumpyDLRM
from helpers.torch_zip import Tensor, save

import tf_dlrm
from tf_dlrm.interop import from_facebookresearch_dlrm

NAMES = (
    "whole", "state_dict", "strided", "parameters", "data_parallel", "distributed",
    "itself", "cat", "mixed", "float16", "bfloat16", "float64",
)  # fmt: skip
SIZES, NUM_DENSE, WIDTH = (11, 7, 1, 23), 3, 8


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The files and predictions that torch wrote."""
    folder = tmp_path_factory.mktemp("checkpoints")
    assert torch_python.run("checkpoints", folder)["names"] == sorted(NAMES)
    return folder


def read_inputs(folder):
    """The rows as a batch of ours: ragged bags, some of them empty."""
    with np.load(folder / "inputs.npz") as inputs:
        bags = [
            tf.RaggedTensor.from_row_lengths(
                inputs[f"ids_{i}"], inputs["lengths"][:, i]
            )
            for i in range(len(SIZES))
        ]
        columns = {f"C{i + 1}": bag for i, bag in enumerate(bags)}
        dense = {f"I{i + 1}": inputs["dense"][:, i] for i in range(NUM_DENSE)}
    return dense | columns


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_those_of_torch(name, checkpoints):
    model = from_facebookresearch_dlrm(
        checkpoints / f"{name}.pt", self_interaction=name == "itself"
    )
    with np.load(checkpoints / "predictions.npz") as predictions:
        expected = predictions[name]
    assert expected.std() > 0.02  # predictions that do not differ show nothing
    np.testing.assert_allclose(model(read_inputs(checkpoints)), expected, atol=1e-5)


def test_mixed_dimensions_keep_their_widths(checkpoints, tmp_path):
    model = from_facebookresearch_dlrm(checkpoints / "mixed.pt")
    assert [table.embedding_dim for table in model.spec.tables] == [3, 5, 8, 8]
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    batch = read_inputs(checkpoints)
    np.testing.assert_array_equal(again(batch), model(batch))


def test_legacy_files_are_refused_with_the_way_out(checkpoints):
    with pytest.raises(ValueError, match=r"not in the zip format .* weights_only=True"):
        from_facebookresearch_dlrm(checkpoints / "legacy.old")


# Without torch


def linear(rng, inputs, outputs):
    kernel = rng.normal(size=(inputs, outputs)).astype("float32") / 2
    return kernel, rng.normal(size=outputs).astype("float32") / 2


def make_weights(num_pairs=10, sizes=SIZES):
    """Tables, bottom and top layers, kernels as `(inputs, outputs)`."""
    rng = np.random.default_rng(2)
    tables = [rng.normal(size=(n, WIDTH)).astype("float32") for n in sizes]
    bottom = [linear(rng, NUM_DENSE, 6), linear(rng, 6, WIDTH)]
    top = [linear(rng, WIDTH + num_pairs, 5), linear(rng, 5, 1)]
    return tables, bottom, top


def make_state(tables, bottom, top):
    """The state_dict: kernels transposed, layers at even places."""
    state = {f"emb_l.{i}.weight": table for i, table in enumerate(tables)}
    for name, layers in (("bot_l", bottom), ("top_l", top)):
        for i, (kernel, bias) in enumerate(layers):
            state[f"{name}.{2 * i}.weight"] = np.ascontiguousarray(kernel.T)
            state[f"{name}.{2 * i}.bias"] = bias
    return state


def make_rows(num_rows=19):
    rng = np.random.default_rng(6)
    dense = rng.normal(size=(num_rows, NUM_DENSE)).astype("float32")
    return dense, np.stack([rng.integers(0, n, num_rows) for n in SIZES], 1)


def predict(model, dense, ids):
    return model({"dense_features": dense, "sparse_features": ids}).numpy()


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_file_written_without_torch(itself, sharded, tmp_path):
    tables, bottom, top = make_weights(15 if itself else 10)
    state = make_state(tables, bottom, top)
    path = tmp_path / "model.pt"
    save(path, {"epoch": 3, "state_dict": {k: Tensor.of(v) for k, v in state.items()}})
    embedding = tf_dlrm.sharding.ShardedEmbeddingCollection if sharded else None
    model = from_facebookresearch_dlrm(
        path, self_interaction=itself, embedding=embedding
    )
    kind = embedding or tf_dlrm.layers.EmbeddingCollection
    assert type(model.embedding) is kind
    dense, ids = make_rows()
    oracle = NumpyDLRM(tables, ["sum"] * 4, range(4), bottom, top, itself)
    expected = oracle.forward(dense, [[[i] for i in row] for row in ids])
    np.testing.assert_allclose(predict(model, dense, ids), expected, atol=1e-5)
    for i, table in enumerate(tables):
        np.testing.assert_array_equal(model.embedding.get_table(f"C{i + 1}"), table)


def test_names_of_a_spec():
    spec = tf_dlrm.FeatureSpec(
        ("age", "price", "hour"),
        [tf_dlrm.EmbeddingTable(n, s, WIDTH) for n, s in zip("abcd", SIZES)],
    )
    state = make_state(*make_weights())
    model = from_facebookresearch_dlrm(state, spec=spec)
    assert model.spec == spec
    plain = from_facebookresearch_dlrm({"state_dict": state})
    dense, ids = make_rows()
    np.testing.assert_array_equal(
        predict(model, dense, ids), predict(plain, dense, ids)
    )


def without(name):
    return lambda state: state.pop(name)


def renamed(name, other):
    return lambda state: state.update({other: state.pop(name)})


@pytest.mark.parametrize(
    "change, message",
    [
        (without("bot_l.2.bias"), r"'bot_l.2' must have a weight \(outputs, 6\)"),
        (without("bot_l.0.weight"), "'bot_l.0' must have a weight"),
        (without("emb_l.1.weight"), "Tables are missing"),
        (without("emb_l.3.weight"), "which matches no interaction of . tables"),
        (renamed("emb_l.1.weight", "emb_l.1.weight_q"), r"\(--qr-flag\)"),
        (renamed("emb_l.1.weight", "v_W_l.1"), "--weighted-pooling"),
        (renamed("emb_l.1.weight", "emb.1"), r"unknown: \['emb.1'\]"),
        (lambda s: s.update({"emb_l.1.weight": 3}), "must be a tensor. Received: 3"),
        (lambda s: s.update({"emb_l.1.weight": s["top_l.2.bias"]}), "rows, width"),
        (lambda s: s.update({"emb_l.1.proj.weight": s["emb_l.1.weight"][:, 1:]}),
         r"must be \(outputs, 8\)"),
        (lambda s: s.update({"top_l.2.bias": s["bot_l.2.bias"]}), "'top_l.2' must"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(change, message):
    state = make_state(*make_weights())
    change(state)
    with pytest.raises(ValueError, match=message):
        from_facebookresearch_dlrm(state)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"interaction": "cat"}, "which matches no interaction of . tables"),
        ({"self_interaction": True}, "self_interaction=True"),
        ({"spec": tf_dlrm.FeatureSpec.criteo([5] * 26)}, "`spec` must have the tables"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        from_facebookresearch_dlrm(make_state(*make_weights()), **options)


def test_combiner_of_a_spec():
    tables = [
        tf_dlrm.EmbeddingTable(n, s, WIDTH, "mean") for n, s in zip("abcd", SIZES)
    ]
    spec = tf_dlrm.FeatureSpec(("x", "y", "z"), tables)
    with pytest.raises(ValueError, match="combiner='sum'"):
        from_facebookresearch_dlrm(make_state(*make_weights()), spec)


def test_ambiguous_width_asks():
    """One table of width 1: the pair and the embedding are one value each."""
    ones = np.ones((1, 1), "float32")
    state = {"emb_l.0.weight": ones, "top_l.0.weight": np.ones((1, 2), "float32")}
    state |= {"bot_l.0.weight": ones, "bot_l.0.bias": ones[0], "top_l.0.bias": ones[0]}
    with pytest.raises(ValueError, match="which matches both interactions of 1 tables"):
        from_facebookresearch_dlrm(state)
    model = from_facebookresearch_dlrm(state, interaction="cat")
    assert isinstance(model.interaction, tf_dlrm.layers.CatInteraction)
    model = from_facebookresearch_dlrm(state, interaction="dot")
    assert isinstance(model.interaction, tf_dlrm.layers.DotInteraction)


def test_no_state_dict_at_all(tmp_path):
    path = tmp_path / "list.pt"
    save(path, [1, 2])
    with pytest.raises(ValueError, match="must be a state_dict.*list"):
        from_facebookresearch_dlrm(path)
    with pytest.raises(FileNotFoundError):
        from_facebookresearch_dlrm(tmp_path / "absent.pt")
