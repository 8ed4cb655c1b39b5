"""One hashed table for all features: ids, training, records, reload, serving."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from pipelines import cli, criteo, prepare, records, runs, vocabulary
from pipelines.runs.config import RunConfig
from pipelines.synthetic import Planted
from pipelines.vocabulary import HashVocabulary, SharedHashVocabulary

pytestmark = pytest.mark.integration

CONFIG = RunConfig(
    embedding_dim=4,
    bottom_mlp_dims=(8, 4),
    top_mlp_dims=(8, 1),
    hash_buckets=101,
    shared_table=True,
    batch_size=100,
    optimizer="sgd",
    learning_rate=0.5,
    jit_compile="off",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    Planted().write(folder / "a.tsv", 1000)
    return folder


@pytest.fixture(scope="module")
def run(data):
    folder, _ = runs.train(CONFIG, data / "a.tsv", None, data / "run")
    return folder


def test_ids_are_those_of_a_table_for_each_feature(data):
    """The feature is part of the hash: equal values are other rows."""
    lines = tf.constant((data / "a.tsv").read_bytes().splitlines())
    shared, apart = (
        criteo.Parser(kind(101)) for kind in (SharedHashVocabulary, HashVocabulary)
    )
    found, expected = (p(lines)[0]["sparse_features"] for p in (shared, apart))
    np.testing.assert_array_equal(found.flat_values, expected.flat_values)
    (table,) = shared.spec(4).tables
    assert (table.name, table.vocabulary_size) == ("shared", 101)
    assert table.features == apart.spec(4).sparse_features
    assert shared.spec(4).dense == apart.spec(4).dense


def test_a_file_keeps_that_it_is_shared(tmp_path):
    SharedHashVocabulary(101).save(tmp_path / "v.tsv")
    loaded = vocabulary.load(tmp_path / "v.tsv")
    assert loaded.is_shared and loaded == SharedHashVocabulary(101)
    assert loaded != HashVocabulary(101) and loaded != SharedHashVocabulary(102)
    assert loaded.sizes == [101] * 26
    with pytest.raises(ValueError, match="of kind 'shared hash'"):
        HashVocabulary.load(tmp_path / "v.tsv")
    with pytest.raises(ValueError, match="`num_rows` must be an integer"):
        SharedHashVocabulary([5] * 26)
    with pytest.raises(ValueError, match="at least 2"):
        SharedHashVocabulary(1)


def test_rows_that_several_features_read_get_all_gradients(data):
    """A step of SGD on one row, against the gradient of the pooled vectors."""
    import tf_dlrm

    parser = criteo.Parser(SharedHashVocabulary(3))  # all values are row 1 or 2
    model = tf_dlrm.DLRM(parser.spec(4), (8, 4), (8, 1))
    model.compile("sgd")
    line = (data / "a.tsv").read_bytes().splitlines()[0]
    features, label = parser(tf.constant([line]))
    ids = features["sparse_features"].to_tensor().numpy()[0, :, 0]
    before = model.embedding.get_table("shared")
    with tf.GradientTape() as tape:
        pooled = tf.constant(before[ids][None])
        tape.watch(pooled)
        score = model.score(features["dense_features"], pooled, training=True)
        loss = tf.keras.losses.binary_crossentropy(label[:, None], score)
    gradient = tape.gradient(loss, pooled).numpy()[0]
    expected = before.astype(np.float64)
    np.add.at(expected, ids, -0.01 * gradient)
    model.train_on_batch(features, label)
    assert len(set(ids)) < 26
    np.testing.assert_allclose(model.embedding.get_table("shared"), expected, rtol=1e-5)


def test_it_reloads_and_serves(run, data, tmp_path):
    parser = run.load_parser()
    assert parser.vocabulary.is_shared
    model = run.load_model(parser)
    assert model.embedding.get_table("shared").shape == (101, 4)
    lines = tf.constant((data / "a.tsv").read_bytes().splitlines()[:50])
    expected = model(parser.features(lines), training=False).numpy()
    path = runs.export(run, tmp_path)
    served = tf.saved_model.load(path).signatures["serving_tsv"](lines=lines)
    np.testing.assert_allclose(served["probabilities"], expected, atol=1e-6)


def test_records_train_it(data, tmp_path, capsys):
    out = str(tmp_path / "records")
    command = ["prepare", "--input", str(data / "a.tsv"), "--out", out]
    command += ["--hash-buckets", "101"]
    assert cli.main([*command, "--shared-table"]) == 0
    assert "1,000 rows; 101 ids of 26 features" in capsys.readouterr().out
    lines = tf.constant((data / "a.tsv").read_bytes().splitlines())
    expected, _ = criteo.Parser(SharedHashVocabulary(101))(lines)
    found = [f["sparse_features"].flat_values for f, _ in records.read(out, 300)]
    np.testing.assert_array_equal(
        tf.concat(found, 0), expected["sparse_features"].flat_values
    )
    folder, results = runs.train(CONFIG, out, None, tmp_path / "run")
    assert np.isfinite(results["metrics"]["loss"])
    assert folder.read_vocabulary() == SharedHashVocabulary(101)
    apart = tmp_path / "apart"
    prepare.prepare(data / "a.tsv", apart, prepare.Options(hash_buckets=101))
    with pytest.raises(ValueError, match="apart has a table for each feature"):
        runs.train(CONFIG, apart, None, tmp_path / "other")


def test_mistakes_are_named(data, tmp_path, capsys):
    with pytest.raises(ValueError, match="`shared_table` requires hash_buckets"):
        dataclasses.replace(CONFIG, hash_buckets=None)
    with pytest.raises(ValueError, match="`shared_table` requires hash_buckets"):
        prepare.Options(shared_table=True)
    HashVocabulary(101).save(tmp_path / "v.tsv")
    with pytest.raises(ValueError, match="has a table for each feature"):
        runs.train(
            CONFIG, data / "a.tsv", None, tmp_path / "r", vocabulary.load(
                tmp_path / "v.tsv"
            )
        )  # fmt: skip
    command = ["train", "--train", f"{data}/a.tsv", "--out", f"{tmp_path}/o"]
    command += ["--vocabulary", f"{tmp_path}/v.tsv", "--hash-buckets", "7"]
    assert cli.main([*command, "--shared-table"]) == 2
    assert "has no effect with --vocabulary" in capsys.readouterr().err
