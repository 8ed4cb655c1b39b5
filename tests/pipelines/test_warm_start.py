"""`train --warm-start`: yesterday's model with today's vocabulary."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines import cli, runs
from pipelines.runs import build_model
from pipelines.runs.folder import RunFolder
from pipelines.runs.previous_run import PreviousRun, row_maps
from pipelines.synthetic import Planted
from pipelines.vocabulary import HashVocabulary, Vocabulary

pytestmark = pytest.mark.integration

OPTIONS = [
    "--bottom-mlp-dims", "16", "8", "--top-mlp-dims", "16", "1", "--embedding-dim", "8",
    "--batch-size", "256", "--jit-compile", "off", "--min-count", "4",
]  # fmt: skip
FEATURES = [f"C{i}" for i in range(1, 27)]


def run(*words, code=0):
    assert cli.main([str(word) for word in words]) == code


class CutError(Exception):
    pass


def stop_at_the_third(batch, logs):
    if batch == 2:
        raise CutError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A long yesterday and a short today, and runs of both.

    The warm run was cut before its first checkpoint, and gone on with.
    """
    folder = tmp_path_factory.mktemp("days")
    planted = Planted(vocabulary_sizes=(120,) * 26)
    first = 0
    for name, size in (("yesterday", 25_000), ("today", 2500), ("tomorrow", 5000)):
        planted.write(folder / f"{name}.tsv", size, first)
        first += size
    train = ["train", "--train", folder / "yesterday.tsv", *OPTIONS]
    run(*train, "--out", folder / "old")
    today = ["train", "--train", folder / "today.tsv", "--learning-rate", "0.01"]
    run(*today, *OPTIONS, "--out", folder / "cold")
    config = dataclasses.replace(
        RunFolder(folder / "old").read_config(), learning_rate=0.01
    )
    cut = keras.callbacks.LambdaCallback(on_train_batch_end=stop_at_the_third)
    options = {"warm_start": folder / "old"}
    with pytest.raises(CutError):
        runs.train(
            config, folder / "today.tsv", None, folder / "warm", None, [cut], **options
        )
    run("train", "--resume", "--out", folder / "warm")
    return folder


def tables_of(path):
    model = RunFolder(path).load_model(RunFolder(path).load_parser())
    return {t.name: model.embedding.get_table(t.name) for t in model.spec.tables}


@pytest.mark.slow
def test_it_beats_a_cold_start_on_the_next_day(folder):
    auc = {}
    for name in ("old", "cold", "warm"):
        source = ["--input", folder / "tomorrow.tsv"]
        run("evaluate", "--model", folder / name, *source)
        result = json.loads((folder / name / "evaluation.json").read_text())
        auc[name] = result["auc"]
    assert auc["warm"] > auc["cold"] + 0.02
    assert auc["warm"] > auc["old"] - 0.005


@pytest.mark.slow
def test_the_report_counts_what_the_vocabularies_have_in_common(folder):
    data = RunFolder(folder / "warm").read_data()
    assert data["warm_start"] == str(folder / "old")
    steps = -(-25_000 // 256)
    assert data["first_step"] == data["warm_started"]["iterations"] == steps
    old, new = (RunFolder(folder / n).read_vocabulary() for n in ("old", "warm"))
    changed = 0
    for name, table in zip(FEATURES, data["warm_started"]["tables"], strict=True):
        before, now = set(old.values(name)), set(new.values(name))
        assert table["name"] == name
        assert table["num_kept"] == 1 + len(before & now)
        assert table["num_new"] == len(now - before)
        assert table["num_dropped"] == len(before - now)
        # A row and its accumulators, 8 float32 each.
        assert table["num_bytes"] == table["num_kept"] * 2 * 8 * 4
        changed += len(now ^ before)
    assert changed > 100
    model = RunFolder(folder / "warm").load_model(
        RunFolder(folder / "warm").load_parser()
    )
    assert int(model.optimizer.iterations) == steps + 10


def test_rows_of_kept_values_are_predicted_as_yesterday(folder, capsys):
    config = RunFolder(folder / "warm").read_config()
    old, new = (RunFolder(folder / name).load_parser() for name in ("old", "warm"))
    previous = PreviousRun(folder / "old", config)
    model = build_model.make_model(config, new.spec(config.embedding_dim))
    build_model.compile_model(model, config, 10, previous.first_step)
    report = previous.warm_up(model, new.vocabulary)["warm_started"]
    printed = capsys.readouterr().out
    assert f"the step count continues from {previous.first_step}" in printed
    assert report["iterations"] == previous.first_step
    for table in report["tables"]:
        counts = [f"{table[n]:,}" for n in ("num_kept", "num_new", "num_dropped")]
        assert re.search(rf"^{table['name']}\s+" + r"\s+".join(counts), printed, re.M)
    lines = tf.constant((folder / "tomorrow.tsv").read_bytes().splitlines())
    features = [parser.features(lines) for parser in (old, new)]
    ids = [f["sparse_features"].to_tensor()[:, :, 0].numpy() for f in features]
    same = ((ids[0] > 0) == (ids[1] > 0)).all(1)  # in both vocabularies, or in none
    assert 100 < same.sum() < len(same) and (ids[0] != ids[1])[same].any()
    yesterday = RunFolder(folder / "old").load_model(old)
    expected, found = (
        m.predict(f, batch_size=5000, verbose=0)[same, 0]
        for m, f in zip((yesterday, model), features)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_it_is_the_same_on_several_devices_and_where_it_was_cut(folder):
    """Yesterday's tables lay on one device, today's on two. This run is not cut."""
    out = folder / "sharded"
    words = ["train", "--train", folder / "today.tsv", "--warm-start", folder / "old"]
    words += ["--learning-rate", "0.01", "--devices", "2", "--out", out]
    command = [sys.executable, "-m", "pipelines.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warm start from" in done.stdout and (out / "plan.json").exists()
    reports = [RunFolder(p).read_data()["warm_started"] for p in (out, folder / "warm")]
    assert reports[0] == reports[1]
    # Options are those of yesterday's run, where no others are given.
    config = RunFolder(folder / "old").read_config()
    assert RunFolder(out).read_config() == dataclasses.replace(
        config, learning_rate=0.01
    )
    found, expected = tables_of(out), tables_of(folder / "warm")
    for name in FEATURES:
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5, err_msg=name)


def test_mistakes_are_named(folder, tmp_path, capsys):
    train = ["train", "--train", folder / "today.tsv", "--out", tmp_path / "r"]
    warm = [*train, "--warm-start", folder / "old"]
    cases = [
        ([*warm, "--top-mlp-dims", "9", "1"], "--top-mlp-dims was [16, 1], now [9, 1]"),
        ([*warm, "--optimizer", "adam"], "--optimizer was adagrad, now adam"),
        ([*warm, "--run", "demo"], "--embedding-dim was 8, now 16"),
        ([*warm, "--negative-sampling-rate", "0.5"], "-rate was 1.0, now 0.5"),
        ([*train, "--warm-start", tmp_path], "not the folder of a run"),
    ]
    for command, message in cases:
        for dry in ([], ["--dry-run"]):
            run(*command, *dry, code=2)
            assert message in capsys.readouterr().err, command
    run(*warm, "--hash-buckets", "50", code=2)
    assert "set --hash-buckets in both" in capsys.readouterr().err
    shutil.copytree(folder / "warm", tmp_path / "cut")
    (tmp_path / "cut" / "model.keras").unlink()
    shutil.copytree(folder / "old", tmp_path / "older")
    other = ["--warm-start", tmp_path / "older"]
    run("train", "--resume", "--out", tmp_path / "cut", *other, code=2)
    assert "--warm-start was old, now older" in capsys.readouterr().err
    run(*warm, "--dry-run")
    assert f"start from the weights of {folder / 'old'}" in capsys.readouterr().out
    assert not (tmp_path / "r" / "model.keras").exists()


def test_maps_of_vocabularies():
    rng = np.random.default_rng(0)
    pool = [f"v{i}".encode() for i in range(60)] + [
        b"a long value %d" % i for i in range(40)
    ]
    columns = [
        [
            [pool[i] for i in rng.permutation(100)[: rng.integers(0, 70)]]
            for _ in FEATURES
        ]
        for _ in range(2)
    ]
    maps = row_maps(*(Vocabulary(each) for each in columns))
    assert list(maps) == FEATURES
    for name, before, now in zip(FEATURES, *columns):
        ids = {value: i for i, value in enumerate(now, start=1)}
        expected = [0, *(ids.get(value, -1) for value in before)]
        assert maps[name].tolist() == expected


def test_maps_of_hashes():
    maps = row_maps(HashVocabulary(9), HashVocabulary(9))
    assert all(maps[name].tolist() == list(range(9)) for name in FEATURES)
    with pytest.raises(ValueError, match="`hash_buckets` was 9, now 10"):
        row_maps(HashVocabulary(9), HashVocabulary(10))
    with pytest.raises(ValueError, match="in both runs or in neither"):
        row_maps(HashVocabulary(9), Vocabulary([[]] * 26))


def test_the_learning_rate_falls_over_the_steps_of_this_run():
    config = dataclasses.replace(runs.get("demo"), learning_rate_decay="linear")
    from tf_dlrm import FeatureSpec

    rates = []
    for first in (0, 100):
        model = build_model.make_model(config, FeatureSpec.criteo([3] * 26, 16))
        build_model.compile_model(model, config, 10, first)
        optimizer = model.optimizer
        found = []
        for step in (0, 1, 5, 9, 10):
            optimizer.iterations.assign(first + step)
            found.append(float(optimizer.learning_rate))
        rates.append(found)
    expected = [0.02 * (1 - step / 10) for step in (0, 1, 5, 9, 10)]
    for found in rates:
        np.testing.assert_allclose(found, expected, atol=1e-8)
