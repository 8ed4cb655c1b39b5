"""What docs/how_to/migrate/ shows of tf_dlrm runs, and what it names exists.

The page on TFRS runs in tests/interop/tfrs_cases.py, where TFRS is.
"""

import inspect
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from helpers import guide, torch_zip

import tf_dlrm
from pipelines import cli
from pipelines.synthetic import Planted

pytestmark = pytest.mark.integration

FOLDER = "how_to/migrate"
FACEBOOKRESEARCH = "how_to/migrate/facebookresearch.md"


def test_keras_rs():
    model = guide.run_page("how_to/migrate/keras_rs.md", {})["model"]
    assert model.spec.sparse_features == ("seen", "shown", "user")
    seen = tf.ragged.constant([[1, 2, 3], []], dtype=tf.int64)
    batch = {"age": [20.0, 30.0], "hour": [1.0, 2.0], "seen": seen}
    batch = {**batch, "shown": [4, 4999], "user": [0, 899]}
    batch = {k: v if k == "seen" else np.array(v) for k, v in batch.items()}
    assert model.train_on_batch(batch, np.array([0.0, 1.0])) > 0


def test_facebookresearch_dlrm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    sizes = rng.integers(3, 40, 26)

    def linear(inputs, outputs):
        return rng.normal(size=(outputs, inputs)) / 9, rng.normal(size=outputs) / 9

    state = {f"emb_l.{i}.weight": rng.normal(size=(n, 4)) for i, n in enumerate(sizes)}
    for name, *shape in (("bot_l.0", 13, 4), ("top_l.0", 4 + 27 * 13, 1)):
        state[f"{name}.weight"], state[f"{name}.bias"] = linear(*shape)
    tensors = {k: torch_zip.Tensor.of(v.astype("float32")) for k, v in state.items()}
    torch_zip.save("dlrm.pt", {"state_dict": tensors, "epoch": 1})
    np.savez(
        "kaggleAdDisplayChallenge_processed.npz",
        X_int=rng.integers(0, 1000, (50, 13)).astype("int32"),
        X_cat=np.stack([rng.integers(0, n, 50) for n in sizes], 1).astype("int32"),
        y=np.zeros(50),
    )
    names = guide.run_page(FACEBOOKRESEARCH, {})
    assert names["probabilities"].shape == (50, 1)
    assert names["probabilities"].std() > 0.01


def test_the_command_of_facebookresearch_dlrm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Planted().write("train.txt", 1500)
    Planted().write("valid.txt", 300, first_row=1500)
    (command,) = guide.all_commands(FACEBOOKRESEARCH)
    assert cli.main(command) in (0, None)
    assert list((tmp_path / "runs" / "kaggle").glob("*.keras"))


def test_torchrec(capsys):
    names = guide.run_page("how_to/migrate/torchrec.md", {})
    assert "row_wise" in capsys.readouterr().out
    # Bags of "shown", then of "seen", then of "user", of three rows each.
    lengths = np.array([1, 0, 2, 0, 3, 0, 1, 1, 1])
    bags = [[7], [], [8, 9], [], [1, 2, 3], [], [4], [5], [6]]
    values = np.concatenate(bags).astype("int64")
    ragged = names["from_keyed_jagged"](values, lengths, 3)
    assert ragged.to_list() == [bags[0::3], bags[1::3], bags[2::3]]
    assert ragged.shape.as_list() == [3, 3, None]
    model, dense = names["model"], np.zeros((3, 13), "float32")
    batch = {"dense_features": dense, "sparse_features": ragged}
    assert model.train_on_batch(batch, np.array([0.0, 1.0, 1.0])) > 0


def test_flags_and_names_of_ours_exist():
    """Of the second column: options of tf-dlrm, and what is in tf_dlrm."""
    text = guide.read(FACEBOOKRESEARCH)
    rows = re.findall(r"^\| `--.*?\| (.*) \|$", text, re.M)
    assert len(rows) > 30
    theirs = {"--num-indices-per-lookup", "--num-indices-per-lookup-fixed"}
    theirs |= {"--loss-weights"}
    named = {flag for row in rows for flag in re.findall(r"--[a-z][a-z-]+", row)}
    known = set()
    for command in ("train", "generate", "prepare", "benchmark", "export"):
        shown = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", command, "--help-all"],
            capture_output=True,
            text=True,
        ).stdout
        known |= set(re.findall(r"--[a-z][a-z-]+", shown))
    assert named - theirs <= known
    pages = [path.read_text() for path in (guide.DOCS / FOLDER).glob("*.md")]
    for name in re.findall(r"`(tf_dlrm(?:\.\w+)+)", "".join(pages)):
        found = tf_dlrm
        for part in name.split(".")[1:]:
            found = getattr(found, part)


@pytest.mark.parametrize(
    "function, options",
    [
        (tf_dlrm.DLRM, ("self_interaction", "feature_mlp_dims", "embedding")),
        (tf_dlrm.layers.CrossInteraction, ("num_layers", "rank", "use_bias")),
        (tf_dlrm.layers.MLP, ("activation", "final_activation", "use_bias")),
        (tf_dlrm.sharding.plan, ("device_memory_bytes", "batch_size", "hotness")),
        (tf_dlrm.EmbeddingTable, ("initializer", "combiner", "features")),
        (tf_dlrm.interop.from_tfrs, ("dense", "embedding")),
        (tf_dlrm.export_saved_model, ("table_dtype",)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_options_that_are_named_exist(function, options):
    assert set(options) <= set(inspect.signature(function).parameters)
