"""Growing tables in schemas: fingerprints, records, and runs from logs to exports."""

import dataclasses
import json
import pathlib

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from helpers.criteo_oracle import siphash

import pipelines
import tf_dlrm
from pipelines import records
from pipelines.formats.fields import distinct_of_texts
from pipelines.prepare import Options, prepare
from pipelines.runs import RunConfig, train
from pipelines.schema.growing import Growing
from pipelines.vocabulary import Vocabulary
from pipelines.vocabulary.hashing import GrowingNumbering

pytestmark = pytest.mark.filterwarnings("ignore:Growing table .* full")


def fingerprint(value, table):
    """The documented id: of table number k, from 1."""
    if not value:
        return 0
    return 1 + siphash((table, 0x646C726D), value) % (2**63 - 2)


def test_a_schema_has_the_rules_of_the_library():
    own, rules = Growing(), tf_dlrm.GrowingIds()
    names = [field.name for field in dataclasses.fields(rules)]
    assert [field.name for field in dataclasses.fields(own)] == ["rows", *names]
    assert own.rules() == rules


def make_schema(growing=True, **options):
    sparse = [
        pipelines.Sparse("item", growing={"rows": 300, "evict": "lfu"}, **options),
        pipelines.Sparse("history", separator="|", table="item", **options),
        pipelines.Sparse("country", hash_buckets=50),
    ]
    if not growing:
        sparse[0] = pipelines.Sparse("item", min_count=1, **options)
    return pipelines.Schema("click", dense=["price"], sparse=sparse)


def write_log(folder, num_rows=600, name="log.csv", first=0):
    rng = np.random.default_rng(first)
    lines = ["click,price,item,history,country"]
    for row in range(num_rows):
        items = [f"item{first + int(i)}" for i in rng.zipf(1.5, 4) % 200]
        history = "|".join(items[1 : rng.integers(1, 5)])
        item = items[0] if row % 11 else ""
        lines.append(f"{rng.integers(0, 2)},{row / 7},{item},{history},c{row % 9}")
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_fingerprints_are_as_documented():
    """Test vectors, by an implementation of the hash in plain Python."""
    assert siphash((0x0706050403020100, 0x0F0E0D0C0B0A0908), bytes(range(15))) == (
        0xA129CA6149BE45E5  # of the paper
    )
    values = [b"", b"a", b"item7", b"0c1e8f72", b"longer than a word", b"\xff\x00"]
    found = distinct_of_texts(pa.array(values, pa.large_binary()))
    ids = GrowingNumbering(2**63 - 1, 3, 100).find(found)[found.codes]
    assert ids.dtype == np.int64
    assert ids.tolist() == [fingerprint(value, 3) for value in values]
    assert ids.tolist()[:3] == [0, 7919838578102032166, 1322956178104887761]


def test_a_schema_in_json():
    schema = make_schema()
    again = pipelines.Schema.from_json(schema.to_json())
    assert again == schema
    assert again.option("item", "growing") == Growing(rows=300, evict="lfu")
    content = json.loads(schema.to_json())["sparse"][0]
    assert content == {"column": "item", "growing": {"rows": 300, "evict": "lfu"}}
    default = pipelines.Sparse("a", growing=True, min_count=3)
    assert default.growing == Growing(min_count=3)
    table, _ = Vocabulary.without_values(schema).schema.spec([300, 50]).tables
    assert table.growing == tf_dlrm.GrowingIds(evict="lfu")
    assert table.vocabulary_size == 300 and table.features == ("item", "history")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growing": 3}, "true or an object"),
        ({"growing": {"row": 3}}, "with fields of rows"),
        ({"growing": {"rows": 1}}, "at least 2"),
        ({"growing": {"evict": "old"}}, "evict"),
        ({"growing": True, "hash_buckets": 9}, "not both"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        pipelines.Sparse("a", **options)
    with pytest.raises(ValueError, match="cannot grow"):
        pipelines.vocabulary.SharedHashVocabulary(9, make_schema())


def expected_ids(lines):
    """The ids of each row: of its item, its history and its country."""
    rows = []
    for line in lines:
        _, _, item, history, country = line.split(",")
        bags = [[item], [v for v in history.split("|") if v] or [""]]
        ids = [[fingerprint(v.encode(), 1) for v in bag] for bag in bags]
        rows.append([*ids, [1 + siphash((2, 0x646C726D), country.encode()) % 49]])
    return rows


def test_readers_agree(tmp_path):
    """The fast reader, the parser, records and frames give the documented ids."""
    import pandas

    path, schema = write_log(tmp_path), make_schema()
    lines = pathlib.Path(path).read_text().splitlines()[1:]
    expected = expected_ids(lines)
    vocabulary = Vocabulary.without_values(schema)
    parser = pipelines.Parser(vocabulary)
    vocabulary.save(tmp_path / "vocabulary")
    assert pipelines.vocabulary.load(tmp_path / "vocabulary") == vocabulary
    manifest = prepare(path, tmp_path / "records", Options(), schema=schema)
    assert manifest.schema.id_dtype == "<i8"
    frame = pandas.read_csv(path, dtype=str, keep_default_na=False)
    frame = frame.astype({"click": int, "price": float})
    datasets = [
        pipelines.read(path, parser, batch_size=100),
        records.read(tmp_path / "records", 100),
        pipelines.from_dataframe(frame, parser, label="click", batch_size=100),
    ]
    for dataset in datasets:
        ids = [row for f, _ in dataset for row in f["sparse_features"].to_list()]
        assert ids == expected
    parsed = parser(tf.constant(lines))[0]["sparse_features"]
    assert parsed.to_list() == expected


def config(**options):
    defaults = {"epochs": 1, "batch_size": 50, "embedding_dim": 8, "jit_compile": "off"}
    dims = {"bottom_mlp_dims": (16, 8), "top_mlp_dims": (16, 1)}
    return RunConfig(**{**defaults, **dims, **options})


@pytest.mark.integration
def test_a_run_from_log_to_export(tmp_path, capsys):
    path, schema = write_log(tmp_path), make_schema()
    folder, results = train(config(), path, path, tmp_path / "run", schema=schema)
    seen = results["growing"]["item"]
    assert 100 < seen["num_ids"] <= 201 and seen["evictions"] == 0
    assert "growing table" in capsys.readouterr().out
    parser = folder.load_parser()
    model = folder.load_model(parser)
    assert model.embedding.occupancy("item").num_ids == seen["num_ids"]
    lines = pathlib.Path(path).read_text().splitlines()[1:40]
    features, _ = parser(tf.constant(lines))
    expected = model.predict(features, verbose=0)
    for compact in (False, True):
        exported = tf_dlrm.export_saved_model(
            model, tmp_path / str(compact), preprocessor=parser, compact=compact
        )
        served = tf.saved_model.load(exported).signatures["serving_lines"]
        answers = served(lines=tf.constant(lines))["probabilities"]
        np.testing.assert_allclose(answers, expected, atol=1e-6)
        tf_dlrm.serving.verify_saved_model(exported)


@pytest.mark.integration
def test_a_run_on_days(tmp_path):
    days = [write_log(tmp_path, 300, f"day{d}.csv", 100 * d) for d in range(3)]
    folder, results = train(
        config(), days, None, tmp_path / "run", schema=make_schema(), progressive=True
    )
    assert len(results["days"]) == 2
    assert results["growing"]["item"]["claims"] > 200


@pytest.mark.integration
def test_ids_expire_by_event_time(tmp_path):
    """Nothing else lets ids go here; a run without event time refuses the rule."""
    source = pipelines.synthetic.Drifting(num_ids=30, drift=0.9)
    source.write_days(tmp_path / "days", 5, 400)
    rules = {"rows": 80, "evict": None, "expire_after_seconds": 130_000}
    schema = source.schema({**rules, "fallback": "none"})
    days = sorted(map(str, (tmp_path / "days").glob("*.csv")))
    folder, results = train(
        config(), days, None, tmp_path / "run", schema=schema, progressive=True
    )
    model = folder.load_model(folder.load_parser())
    for table, seen in results["growing"].items():
        assert seen["evictions"] > 20 and seen["fallback_share"] < 0.05, table
        assert model.embedding.occupancy(table).num_ids <= 80
    with pytest.raises(ValueError, match="needs event time"):
        train(config(), days, None, tmp_path / "other", schema=schema)


class Stop(keras.callbacks.Callback):
    """Interrupt a run after some batches."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 7:
            raise KeyboardInterrupt


@pytest.mark.integration
def test_a_resumed_run_equals_one_without_interruption(tmp_path):
    """Bit for bit: ids, evictions, counts, rows."""
    path = write_log(tmp_path, first=5)
    rules = {"rows": 40, "min_count": 2, "fallback": "none"}
    schema = make_schema()
    sparse = [pipelines.Sparse("item", growing=rules), *schema.sparse[2:]]
    schema = pipelines.Schema("click", dense=schema.dense, sparse=sparse)
    whole, _ = train(config(epochs=2), path, None, tmp_path / "whole", schema=schema)
    options = {"schema": schema, "checkpoints": {"every_steps": 3}}
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        train(config(epochs=2), path, None, cut, callbacks=[Stop()], **options)
    resumed, _ = train(config(epochs=2), path, None, cut, resume=True, **options)
    layers = [f.load_model(f.load_parser()).embedding for f in (whole, resumed)]
    assert layers[0].occupancy("item").evictions > 0
    assert layers[0].occupancy("item") == layers[1].occupancy("item")
    for name in ("get_ids", "get_table"):
        one, other = (getattr(layer, name)("item") for layer in layers)
        np.testing.assert_array_equal(one, other)


@pytest.mark.integration
def test_warm_starts(tmp_path):
    """From growing to growing, to a vocabulary, and back: rows follow their values."""
    path = write_log(tmp_path)
    growing, listed = make_schema(), make_schema(growing=False)
    folders = [tmp_path / str(number) for number in range(4)]
    first, _ = train(config(), path, None, folders[0], schema=growing)
    still = config(learning_rate=1e-30, embedding_learning_rate=1e-30)  # rows stay
    runs = [first]
    for number, schema in enumerate((growing, listed, growing), 1):
        before = folders[number - 1]
        folder, _ = train(
            still, path, None, folders[number], schema=schema, warm_start=before
        )
        runs.append(folder)
    models = [run.load_model(run.load_parser()) for run in runs]
    ids = models[0].embedding.live_rows("item").ids
    values = {fingerprint(f"item{i}".encode(), 1): f"item{i}" for i in range(200)}
    vocabulary = runs[2].read_vocabulary()
    number_of = {v.decode(): i + 1 for i, v in enumerate(vocabulary.values("item"))}
    old = models[0].embedding.live_rows("item").rows
    table = models[2].embedding.get_table("item")
    for model in (models[1], models[3]):
        held = model.embedding.live_rows("item")
        places = np.searchsorted(held.ids, ids)
        np.testing.assert_array_equal(held.ids[places], ids)
        np.testing.assert_array_equal(held.rows[places], old)
    for item, row in zip(ids, old):
        place = number_of[values[item]] if item else 0
        np.testing.assert_array_equal(table[place], row)
