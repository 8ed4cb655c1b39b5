"""`tf-dlrm evaluate` of an export: the metrics of its run, and with a correction."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

import pipelines
from pipelines import cli
from pipelines.schema import Schema

pytestmark = pytest.mark.integration

SCHEMA = Schema(
    label="click",
    dense=(pipelines.Dense("price", transform="log1p"),),
    sparse=(pipelines.Sparse("item"), pipelines.Sparse("tags", separator="|")),
    weight="importance",
    group="user",
    format=pipelines.Text(delimiter=",", header=True, quoted=True),
)
SMALL = (
    "--bottom-mlp-dims 8 4 --top-mlp-dims 8 1 --embedding-dim 4 --interaction dot "
    "--batch-size 128 --min-count 2"
)


def run(command):
    assert cli.main(command.split()) in (0, None)


def make_frame(num_rows, seed):
    random = np.random.default_rng(seed)
    item = random.integers(0, 9, num_rows)
    return pd.DataFrame(
        {
            "user": [f"u{u}" for u in random.integers(0, 40, num_rows)],
            "item": [f'an "item", {i}' if i else "" for i in item],
            "price": random.gamma(2.0, 5.0, num_rows).round(2),
            "tags": ["|".join(f"t{t}" for t in range(i % 4)) for i in item],
            "importance": random.integers(1, 4, num_rows) * 0.5,
            "click": (random.random(num_rows) < 0.1 + 0.08 * item).astype(int),
        }
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run, its export without and with a correction, and new rows."""
    folder = tmp_path_factory.mktemp("place")
    SCHEMA.save(folder / "schema.json")
    for name, num_rows, seed in (("train", 1500, 0), ("new", 900, 1)):
        make_frame(num_rows, seed).to_csv(folder / f"{name}.csv", index=False)
    frame = make_frame(900, 1)
    frame[frame.columns[::-1]].to_parquet(folder / "new.parquet")
    lines = (folder / "new.csv").read_text().splitlines()
    lines.insert(400, "u1,an item,cheap,,1.0,1")
    lines.insert(401, "u1,an item,3,,1.0,")
    (folder / "bad.csv").write_text("\n".join(lines) + "\n")
    run(
        f"train --schema {folder}/schema.json --train {folder}/train.csv "
        f"--out {folder}/run {SMALL}"
    )
    run(f"export --model {folder}/run --output {folder}/ctr")
    run(
        f"export --model {folder}/run --output {folder}/corrected "
        f"--calibrate platt --calibration-input {folder}/train.csv"
    )
    return folder


def evaluate(place, model, name, options=""):
    output = place / f"{model.replace('/', '-')}-{name}.json"
    run(
        f"evaluate --model {place}/{model} --input {place}/{name} "
        f"--output {output} --max-bad-share 0.1 {options}"
    )
    return json.loads(output.read_text()), output.with_suffix("")


@pytest.mark.parametrize("name", ["new.csv", "new.parquet", "bad.csv"])
def test_an_export_has_the_metrics_and_slices_of_its_run(place, name):
    options = "--slices item price tags user --group user"
    expected, expected_files = evaluate(place, "run", name, options)
    found, files = evaluate(place, "ctr", name, options)
    assert found["num_rows"] == 900
    assert found["num_bad_rows"] == (2 if name == "bad.csv" else 0)
    for metric in ("auc", "log_loss", "normalized_entropy", "calibration", "gauc"):
        assert found[metric] == pytest.approx(expected[metric], rel=1e-5), metric
    for ending in ("_slices.csv", "_reliability.csv"):
        tables = []
        for stem in (expected_files, files):
            with open(f"{stem}{ending}", newline="") as file:
                tables.append([*csv.DictReader(file)])
        for row, expected_row in zip(*tables, strict=True):
            for column, text in row.items():
                if column in ("column", "value"):
                    assert text == expected_row[column]
                elif text:
                    number = float(expected_row[column])
                    assert float(text) == pytest.approx(number, rel=1e-4)


def test_the_correction_of_an_export_takes_part(place, tmp_path):
    output = tmp_path / "p.csv"
    run(f"predict --model {place}/corrected --input {place}/new.csv --output {output}")
    scores = pd.read_csv(output)["probability"]
    frame = make_frame(900, 1)
    found, _ = evaluate(place, "corrected", "new.csv")
    plain, _ = evaluate(place, "ctr", "new.csv")
    weights = frame["importance"]
    loss = log_loss(frame["click"], scores, sample_weight=weights)
    assert found["log_loss"] == pytest.approx(loss, rel=1e-5)
    auc = roc_auc_score(frame["click"], scores, sample_weight=weights)
    assert found["auc"] == pytest.approx(auc, abs=1e-4)
    assert abs(found["calibration"] - plain["calibration"]) > 0.01
    assert found["auc"] == pytest.approx(plain["auc"], abs=1e-4)  # it is monotone


def test_files_are_written_beside_the_versions(place):
    version = next(path for path in (place / "ctr").iterdir() if path.is_dir())
    before = {path for path in version.rglob("*")}
    run(f"evaluate --model {version} --input {place}/new.csv")
    assert {path for path in version.rglob("*")} == before
    assert (place / "ctr/evaluation.json").exists()
    assert (place / "ctr/evaluation_reliability.png").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ("--which best", "is an exported model: leave --which out"),
        ("--slices nothing", "nothing"),
    ],
)
def test_mistakes_are_named(place, capsys, options, message):
    command = f"evaluate --model {place}/ctr --input {place}/new.csv {options}"
    assert cli.main(command.split()) == 2
    assert message in capsys.readouterr().err
