"""`evaluate --slices --group`: against scikit-learn on lines taken apart by hand."""

import csv
import json
import types

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

import pipelines
import tf_dlrm
from pipelines import cli
from pipelines.evaluation import evaluate, slice_columns
from pipelines.evaluation.slices import SlicedEvaluation
from pipelines.quarantine import Quarantine
from pipelines.runs.folder import RunFolder
from pipelines.schema import Schema
from pipelines.vocabulary import HashVocabulary

SMALL = [
    "--bottom-mlp-dims", "8", "4", "--top-mlp-dims", "8", "1",
    "--embedding-dim", "4", "--batch-size", "256", "--learning-rate", "0.1",
    "--initial-accumulator-value", "1e-6", "--jit-compile", "off",
]  # fmt: skip
NUM_ROWS = 4000
SCHEMA = Schema.criteo()


def run(*words, code=0):
    assert cli.main([str(word) for word in words]) == code


def write_rows(path, seed, num_rows=NUM_ROWS, bags=True):
    """C1 are users, C2 long values and bags of them, I1 has gaps and negatives."""
    rng = np.random.default_rng(seed)
    users = (300 * rng.random(num_rows) ** 2).astype(int)
    items = rng.integers(0, 12, (num_rows, 2))
    numbers = np.exp(rng.normal(3, 4, num_rows)).astype(int) - 2
    with open(path, "w") as file:
        for user, (item, second), number in zip(users, items, numbers):
            logit = -1 + 0.5 * (item - 5) * (user % 3 - 1)
            label = rng.random() < 1 / (1 + np.exp(-logit))
            value = f"a long value {item}" if item else ""
            if item % 4 == 1 and bags:
                value = f"{value},{'x' * second or value},{value}"
            dense = ["" if number % 5 == 4 else str(number), *["3"] * 12]
            sparse = [f"u{user}", value, *["7"] * 24]
            file.write("\t".join([str(int(label)), *dense, *sparse]) + "\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("train", "a", "b", "plain")):
        write_rows(folder / f"{name}.tsv", seed, bags=name != "plain")
    with open(folder / "b.tsv", "a") as file:
        file.write("no row\n")
    options = ["--out", folder / "run", "--min-count", "4"]
    run("train", "--train", folder / "train.tsv", *options, *SMALL)
    return folder


def read_csv(path):
    with open(path, newline="") as file:
        return [
            {
                k: v if k in ("column", "value") else float(v or "nan")
                for k, v in r.items()
            }
            for r in csv.DictReader(file)
        ]


def predict(folder, paths):
    """Labels, predictions and fields, of lines read by nothing but Python."""
    lines = [line for p in paths for line in open(p, "rb").read().splitlines()]
    lines = [line for line in lines if line.count(b"\t") == 39]
    parser = RunFolder(folder / "run").load_parser()
    model = RunFolder(folder / "run").load_model(parser)
    found = model.predict(parser.features(lines), batch_size=512, verbose=0)[:, 0]
    fields = [line.decode().split("\t") for line in lines]
    return np.array([int(f[0]) for f in fields]), found.astype(np.float64), fields


def bin_of(text):
    if not text:
        return "(missing)"
    number = int(text)
    if number < 0:
        return "negative"
    if number < 2:
        return str(number)
    low = 1 << (number.bit_length() - 1)
    return f"{low}-{2 * low - 1}"


def check(found, labels, predictions, values_of_rows, by_time=False):
    """Slices against scikit-learn; `values_of_rows` has a set of names for each row."""
    names = set().union(*values_of_rows)
    assert {row["value"] for row in found} == names
    order = [row["value"] if by_time else -row["num_rows"] for row in found]
    assert order == sorted(order)
    for row in found:
        own = np.array([row["value"] in values for values in values_of_rows])
        y, p = labels[own], np.clip(predictions[own], 1e-7, 1 - 1e-7)
        assert (row["num_rows"], row["num_clicks"]) == (own.sum(), y.sum())
        # Batches of other sizes round the predictions otherwise.
        loss = log_loss(y, p, labels=[0, 1])
        assert row["log_loss"] == pytest.approx(loss, rel=1e-5)
        assert row["mean_prediction"] == pytest.approx(p.mean(), rel=1e-5)
        if y.any():
            assert row["calibration"] == pytest.approx(p.sum() / y.sum(), rel=1e-5)
        if 0 < y.sum() < len(y):
            assert row["auc"] == pytest.approx(roc_auc_score(y, p), abs=2e-3)
        else:
            assert np.isnan(row["auc"])


TIMED = pipelines.Schema(
    label="click",
    dense=["price"],
    sparse=["item"],
    time="ts",
    format=pipelines.Text(),
)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_slices_by_time_are_those_of_pandas_and_scikit_learn(ending, tmp_path, capsys):
    """Seconds, milliseconds, ISO 8601 with offsets; three days around midnight UTC."""
    rng, num_rows = np.random.default_rng(0), 400
    times = pd.Timestamp("2026-02-27 21:00", tz="UTC") + pd.to_timedelta(
        rng.integers(0, 54 * 3600, num_rows), "s"
    )
    times = times.where(np.arange(num_rows) > 1, pd.Timestamp("2026-02-28", tz="UTC"))
    frame = pd.DataFrame(
        {
            "click": rng.integers(0, 2, num_rows),
            "price": rng.random(num_rows).round(3),
            "item": [f"i{n}" for n in rng.integers(0, 9, num_rows)],
            "ts": times.tz_convert("Asia/Kolkata"),
        }
    )
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        frame.to_parquet(path)
    else:
        forms = [
            lambda time: str(int(time.timestamp())),
            lambda time: str(int(time.timestamp()) * 1000),
            lambda time: str(time.tz_convert("UTC").value),  # nanoseconds
            lambda time: time.isoformat(),  # ends in +05:30
            lambda time: time.tz_convert("UTC").strftime("%Y-%m-%d %H:%M:%S"),
        ]
        texts = [forms[i % len(forms)](time) for i, time in enumerate(frame["ts"])]
        frame.assign(ts=texts).to_csv(path, index=False)
    parser = pipelines.Parser(HashVocabulary(50, schema=TIMED))
    model = tf_dlrm.DLRM(parser.spec(4), (4,), (1,))
    model.compile("sgd", metrics=tf_dlrm.metrics.click_metrics())
    names = ("ts:day", "ts:hour", "ts:hour_of_day")
    slices = SlicedEvaluation(names)
    evaluate(model, parser, [str(path)], quarantine=Quarantine(), slices=slices)
    slices.print()
    printed = capsys.readouterr().out
    assert "ts:day: 4 values, in order of time. " in printed
    assert "\n(other) " in printed and "\n2026-03-02 02:00 " in printed  # of 54 hours
    slices.write_csv(tmp_path / "slices.csv")
    found = read_csv(tmp_path / "slices.csv")
    rows = pipelines.read(path, parser, batch_size=num_rows)
    predictions = model.predict(rows, verbose=0)[:, 0].astype(np.float64)
    keys = [times.strftime("%Y-%m-%d"), times.strftime("%Y-%m-%d %H:00")]
    for name, key in zip(names, [*keys, times.strftime("%H:00")], strict=True):
        own = [row for row in found if row["column"] == name]
        sizes = frame.groupby(np.asarray(key)).size()
        assert {row["value"]: row["num_rows"] for row in own} == sizes.to_dict()
        check(own, frame["click"].to_numpy(), predictions, [{k} for k in key], True)
    assert len([row for row in found if row["column"] == "ts:day"]) == 4


def test_a_column_may_have_the_name_of_a_period():
    slice_columns.check_name("slices", "day", TIMED)  # a missing one is reported later


def test_times_that_are_no_dates_are_one_slice():
    times = slice_columns.Times("day")
    rows = types.SimpleNamespace(
        times=np.array([14102100.0, 1.7e9, 2026013110.0, -5.0, 1e30])
    )
    coded = times.read(types.SimpleNamespace(rows=rows), None)
    names = [times.names(np.array([code]))[0] for code in coded.codes]
    assert names == ["(no date)", "2023-11-14", *3 * ["(no date)"]]


@pytest.mark.parametrize(
    "schema, message",
    [(TIMED, "column, 'ts'. Received: item:day"), (SCHEMA, "it does not name")],
)
def test_only_the_event_time_has_days(schema, message):
    with pytest.raises(ValueError, match=message):
        SlicedEvaluation(["item:day"]).check(schema)


@pytest.mark.integration
def test_slices_of_lines_and_gauc(data, tmp_path, capsys):
    paths = [data / "a.tsv", data / "b.tsv"]
    out = tmp_path / "e.json"
    command = ["evaluate", "--model", data / "run", "--input", *paths]
    command += ["--max-bad-share", "0.01"]
    capsys.readouterr()
    run(*command, "--output", tmp_path / "plain.json")
    whole = capsys.readouterr().out
    run(*command, "--output", out, "--slices", "C2", "I1", "file", "--group", "C1")
    printed = capsys.readouterr().out
    result, plain = (json.loads(p.read_text()) for p in (out, tmp_path / "plain.json"))
    for name in plain.keys() - {
        "input",
        "best_possible",
    }:  # the rest of the evaluation is as it was
        expected = plain[name]
        if not isinstance(expected, str):
            expected = pytest.approx(expected, rel=1e-5)
        assert result[name] == expected, name
    assert "slices" not in plain and not (tmp_path / "plain_slices.csv").exists()
    assert (tmp_path / "e_reliability.csv").exists() and "All slices" not in whole
    labels, predictions, fields = predict(data, paths)
    found = read_csv(tmp_path / "e_slices.csv")
    by_column = {
        name: [row for row in found if row["column"] == name]
        for name in ("C2", "I1", "file")
    }
    assert len(found) == sum(map(len, by_column.values()))
    bags = [set(f[15].split(",")) - {""} or {"(empty)"} for f in fields]
    check(by_column["C2"], labels, predictions, bags)
    assert any(len(bag) > 1 for bag in bags)
    check(by_column["I1"], labels, predictions, [{bin_of(f[1])} for f in fields])
    files = [{str(paths[i >= NUM_ROWS])} for i in range(len(fields))]
    check(by_column["file"], labels, predictions, files)
    users = np.array([f[14] for f in fields])
    areas, sizes = [], []
    for user in np.unique(users):
        own = users == user
        if 0 < labels[own].sum() < own.sum():
            areas.append(roc_auc_score(labels[own], predictions[own]))
            sizes.append(own.sum())
    # Two predictions in one bucket of the histogram count as a tie.
    assert result["gauc"] == pytest.approx(np.average(areas, weights=sizes), abs=1e-4)
    assert result["gauc_share_of_rows"] == sum(sizes) / len(labels)
    assert result["gauc_groups"] == len(areas)
    assert result["gauc_groups_left_out"] == len(np.unique(users)) - len(areas)
    assert result["gauc_by"] == "C1" and result["slices"] == ["C2", "I1", "file"]
    assert f"GAUC by C1: {result['gauc']:.5f}, the mean AUC of" in printed
    assert (
        "AUC is undefined for" in printed
        and "lowest AUC among values with at least 1%" in printed
    )


@pytest.mark.integration
def test_rare_values_are_one_slice(data, tmp_path, capsys):
    command = ["evaluate", "--model", data / "run", "--input", data / "a.tsv"]
    out = tmp_path / "e.json"
    run(*command, "--output", out, "--slices", "C1", "--min-slice-rows", "20")
    printed = capsys.readouterr().out
    *slices, other = read_csv(tmp_path / "e_slices.csv")
    assert other["value"] == "(other)" and np.isnan(other["auc"])
    assert min(row["num_rows"] for row in slices) >= 20
    assert sum(row["num_rows"] for row in [*slices, other]) == NUM_ROWS
    labels, predictions, fields = predict(data, [data / "a.tsv"])
    shown = {row["value"] for row in slices}
    rare = np.array([f[14] not in shown for f in fields])
    expected = {
        "num_rows": rare.sum(),
        "num_clicks": labels[rare].sum(),
        "mean_prediction": predictions[rare].mean(),
        "calibration": predictions[rare].sum() / labels[rare].sum(),
        "log_loss": log_loss(labels[rare], predictions[rare]),
    }
    for name, value in expected.items():
        assert other[name] == pytest.approx(value, rel=1e-5), name
    # On the screen the tail is summed up once more.
    lines = printed.splitlines()
    (last,) = [line for line in lines if line.startswith("(other)")]
    start = next(i for i, line in enumerate(lines) if line.startswith("value   "))
    shown = lines[start + 1 : lines.index(last) + 1]
    assert len(shown) == 13, shown
    end = lines[start].index("rows") + len("rows")
    counts = [line[:end].rsplit(maxsplit=1)[-1] for line in shown]
    assert sum(int(count.replace(",", "")) for count in counts) == NUM_ROWS


@pytest.mark.breadth(0)
@pytest.mark.parametrize("bags", [True, False], ids=["bags", "one each"])
def test_slices_of_records_are_those_of_their_lines(bags, data, tmp_path):
    source = data / ("a.tsv" if bags else "plain.tsv")
    vocabulary = ["--vocabulary", data / "run" / "vocabulary.tsv"]
    run("prepare", "--input", source, "--out", tmp_path / "r", *vocabulary)
    command = ["evaluate", "--model", data / "run", "--slices", "C1", "C2", "I1"]
    command += ["--group", "C2"]
    options = ["--split", "train", "--output", tmp_path / "r.json"]
    run(*command, "--input", tmp_path / "r", *options)
    run(*command, "--input", source, "--output", tmp_path / "l.json")
    lines, records = (
        {(r["column"], r["value"]): r for r in read_csv(tmp_path / f"{n}_slices.csv")}
        for n in "lr"
    )
    known = set(RunFolder(data / "run").read_vocabulary().values("C2"))
    compared = 0
    for (column, value), row in records.items():
        same = lines.get((column, value))
        if column == "I1" and value.startswith("0"):
            continue  # missing and negative ones, too
        if value == "(empty or rare)":
            continue
        compared += 1
        assert column == "I1" or column == "C1" or value.encode() in known
        for name in ("num_rows", "num_clicks", "log_loss", "auc", "calibration"):
            assert row[name] == pytest.approx(same[name], rel=1e-4, nan_ok=True)
    assert compared > 200
    zeros = [lines["I1", name] for name in ("(missing)", "negative", "0")]
    zero = records["I1", "0, negative or (missing)"]
    assert zero["num_rows"] == sum(row["num_rows"] for row in zeros)
    first, second = (json.loads((tmp_path / f"{n}.json").read_text()) for n in "lr")
    assert second["auc"] == pytest.approx(first["auc"], rel=1e-5)
    if not bags:  # no value is rare, so the groups are the same
        assert second["gauc"] == pytest.approx(first["gauc"], rel=1e-5)


def test_records_of_multi_hot_rows_are_sliced_by_their_own_values():
    """Bags of 3 and 2 ids; one is missing."""
    from pipelines.records.batch import Batch

    lengths = np.array([[3, 2], [3, 0], [3, 2]], np.uint16)
    ids = np.array([4, 9, 9, 6, 1, 2, 9, 9, 4, 4, 9, 0, 1], np.int32)
    batch = Batch(np.zeros(3), np.zeros((3, 13)), ids, lengths)
    hashed = HashVocabulary(10)
    first = slice_columns.IdValues("C1", 0, hashed, is_expanded=True)
    second = slice_columns.IdValues("C2", 1, hashed, is_expanded=True)
    assert first.read(None, batch).codes.tolist() == [5, 3, 5]
    assert second.read(None, batch).codes.tolist() == [7, 0, 1]
    assert second.names(np.array([7, 0, 1])) == ["id 6", "(missing)", "(empty)"]
    bags = slice_columns.IdValues("C1", 0, hashed, is_expanded=False)
    rows, codes = slice_columns.once_a_row(bags.read(None, batch))
    pairs = sorted(zip(rows.tolist(), codes.tolist()))
    assert pairs == [(0, 5), (0, 10), (1, 3), (1, 10), (2, 5), (2, 10)]
    empty = slice_columns.IdValues("C2", 1, hashed, is_expanded=False)
    rows, codes = slice_columns.once_a_row(empty.read(None, batch))
    pairs = sorted(zip(rows.tolist(), codes.tolist()))
    assert pairs == [(0, 2), (0, 7), (1, 0), (2, 1), (2, 2)]


def test_codes_are_one_for_each_key_however_they_come():
    rng = np.random.default_rng(0)
    codes, known, size = slice_columns.Codes(), {}, 0
    for _ in range(60):
        keys = np.unique(rng.integers(0, 3000, rng.integers(0, 200)).astype(np.uint64))
        found, new = codes.find(keys, size)
        size += len(new)
        assert [key for key in keys.tolist() if key not in known] == keys[new].tolist()
        for key, code in zip(keys.tolist(), found.tolist()):
            assert known.setdefault(key, code) == code
    assert sorted(known.values()) == list(range(size))


def test_bins_of_integers_have_the_same_bounds_in_lines_and_records():
    from pipelines.formats.encoding import transform

    class Block:
        class rows:
            column = [float((1 << k) + d) for k in range(19) for d in (-1, 0, 1)]
            numbers = [np.array(column)] * 13

    dense = transform(Block.rows.numbers, SCHEMA, {}, len(Block.rows.column))
    lines = slice_columns.NumberBins("I1", SCHEMA, is_transformed=False)
    records = slice_columns.NumberBins("I1", SCHEMA, is_transformed=True)
    codes = lines.read(Block, None).codes
    batch = type("Batch", (), {"dense": dense})
    np.testing.assert_array_equal(records.read(None, batch).codes, codes)
    names = lines.names(codes)
    assert names == [bin_of(str(int(number))) for number in Block.rows.column]


@pytest.mark.integration
def test_mistakes_are_named(data, tmp_path, capsys):
    command = ["evaluate", "--model", data / "run", "--input", data / "a.tsv"]
    cases = [
        (["--slices", "C27"], "--slices must name a column: C1, C2, C3, "),
        (
            ["--slices", "C1", "C1"],
            "--slices must name each column once. Received: C1 C1",
        ),
        (["--group", "user"], "--group must name a column"),
        (["--slices", "C1", "--min-slice-rows", "0"], "--min-slice-rows must be at"),
    ]
    for options, message in cases:
        for dry in ([], ["--dry-run"]):
            run(*command, *options, *dry, code=2)
            assert message in capsys.readouterr().err, options
    run(*command, "--slices", "C1", "--group", "C2", "--dry-run")
    assert "e_slices.csv" not in capsys.readouterr().out
    run("prepare", "--input", data / "plain.tsv", "--out", tmp_path / "r",
        "--vocabulary", data / "run" / "vocabulary.tsv")  # fmt: skip
    command[-1] = tmp_path / "r"
    run(*command, "--split", "train", "--slices", "file", code=2)
    assert "Records do not contain the file" in capsys.readouterr().err
