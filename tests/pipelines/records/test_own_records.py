"""Records with ids of their own, without a vocabulary, through the commands."""

import numpy as np
import pytest

from pipelines import cli, records

SMALL = [
    "--bottom-mlp-dims", "8", "4", "--top-mlp-dims", "8", "1", "--embedding-dim", "4",
    "--batch-size", "128", "--epochs", "2", "--jit-compile", "off",
]  # fmt: skip


def write(folder, seed, soft_labels=False):
    rng = np.random.default_rng(seed)
    schema = records.Schema(["a", "b"], ["user", "item"], [50, 90])
    users, items = rng.integers(0, 50, 3000), rng.integers(0, 90, 3000)
    chances = users / 50
    labels = chances if soft_labels else rng.random(3000) < chances
    with records.Writer(folder, schema, soft_labels=soft_labels) as writer:
        dense, ids = rng.normal(size=(3000, 2)), np.stack([users, items], 1)
        writer.append(np.float32(labels), dense, ids)
    return str(folder)


def run(*words, code=0):
    assert cli.main([str(word) for word in words]) == code


@pytest.mark.integration
def test_they_train_evaluate_and_export(tmp_path, capsys):
    train, valid = write(tmp_path / "train", 0), write(tmp_path / "valid", 1)
    run("train", "--train", train, "--out", tmp_path / "run", *SMALL)
    run("evaluate", "--model", tmp_path / "run", "--input", valid, "--split", "train")
    metrics = (tmp_path / "run" / "evaluation.json").read_text()
    assert '"num_rows": 3000' in metrics
    run("export", "--model", tmp_path / "run", "--output", tmp_path / "saved")
    assert "serving_default, serving_ragged;" in capsys.readouterr().out
    lines = tmp_path / "lines.csv"
    lines.write_text("a,b,user,item\n1,2,3,4\n")
    scores = tmp_path / "scores.csv"
    run(
        *("predict", "--model", tmp_path / "run", "--input", lines),
        *("--output", scores), code=2,
    )  # fmt: skip
    assert "records without a vocabulary" in capsys.readouterr().err
    run(
        *("train", "--train", valid, "--out", tmp_path / "next"),
        *("--warm-start", tmp_path / "run"),
    )
    assert "Warm start from" in capsys.readouterr().out


@pytest.mark.integration
def test_soft_labels_train(tmp_path):
    folder = write(tmp_path / "soft", 0, soft_labels=True)
    with pytest.raises(ValueError, match="soft_labels=True"):
        schema = records.Schema(["a"], ["user"], [5])
        with records.Writer(tmp_path / "hard", schema) as writer:
            writer.append([0.5], [[1.0]], [[1]])
    (features, label), *_ = records.read(folder, batch_size=3000)
    chances = features["sparse_features"].to_tensor()[:, 0, 0].numpy() / 50
    np.testing.assert_array_equal(label, np.float32(chances))
    run("train", "--train", folder, "--out", tmp_path / "run", *SMALL)
