"""Options that the columns of a log rule out are refused before anything is read."""

import shutil

import numpy as np
import pytest

from pipelines import (
    Label,
    NegativeSampling,
    Parser,
    Schema,
    Sparse,
    Vocabulary,
    cli,
    prepare,
    read,
    records,
)

SOFT = Schema(Label("p", soft=True), sparse="item")


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.csv"
    rows = [f"{i % 5 / 4},i{i % 3}\n" for i in range(100)]
    path.write_text("p,item\n" + "".join(rows))
    return path


def run(capfd, *words):
    assert cli.main([str(word) for word in words]) == 2
    return " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("options", [[], ["--progressive"]], ids=["files", "days"])
def test_negatives_of_soft_labels_cannot_be_sampled(tmp_path, log, capfd, options):
    """A row of label 0.25 is three quarters no click: none of it would be left out."""
    SOFT.save(tmp_path / "soft.json")
    other = shutil.copy(log, tmp_path / "other.csv")
    text = run(
        capfd, "train", "--schema", tmp_path / "soft.json", "--train", log, other,
        "--out", tmp_path / "run", "--negative-sampling-rate", "0.5", *options,
    )  # fmt: skip
    assert "--negative-sampling-rate needs labels that are 0 or 1" in text


def test_nor_are_they_in_python(tmp_path, log):
    sampling = NegativeSampling(0.5)
    parser = Parser(Vocabulary.build(log, 1, schema=SOFT))
    options = prepare.Options(negative_sampling_rate=0.5)
    columns = records.Schema((), ("item",), (9,))
    with records.Writer(tmp_path / "records", columns, soft_labels=True) as writer:
        writer.append(np.float32([0, 0.5]), np.zeros((2, 0)), np.int32([[1], [2]]))
    calls = [
        lambda: read(log, parser, negative_sampling=sampling),
        lambda: prepare.prepare(log, tmp_path / "out", options, schema=SOFT),
        lambda: records.read(tmp_path / "records", negative_sampling=sampling),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="needs labels that are 0 or 1"):
            call()
    prepare.prepare(log, tmp_path / "out", prepare.Options(min_count=1), schema=SOFT)
    read(log, parser, negative_sampling=NegativeSampling(1.0))


NAMES = [f"c{i}" for i in range(26)]
WRONG = {
    "other features": (
        NAMES[:3],
        "with 26 sparse features, as MLPerf DLRM-v2 has; this schema has 3",
    ),
    "weights": (
        [Sparse("c0", separator="|", weight_separator=":"), *NAMES[1:]],
        "cannot be used with weights, which c0 has",
    ),
    "shared table": (
        [*NAMES[:25], Sparse("c25", table="c3")],
        "a separate table for each sparse feature; c25 reads c3",
    ),
}


@pytest.mark.parametrize("sparse, text", WRONG.values(), ids=WRONG.keys())
def test_bags_of_mlperf_need_its_features(tmp_path, sparse, text):
    path = tmp_path / "log.csv"
    path.write_text(",".join(["click", *NAMES]) + "\n1" + ",a" * 26 + "\n")
    options = prepare.Options(min_count=1, multi_hot="uniform")
    with pytest.raises(ValueError, match=text):
        prepare.prepare(
            path, tmp_path / "out", options, schema=Schema("click", [], sparse)
        )
    assert not (tmp_path / "out" / "vocabulary.tsv").exists()
    if len(sparse) == 26 and text.startswith("cannot"):
        prepare.prepare(
            path, tmp_path / "out", options, schema=Schema("click", [], NAMES)
        )
