"""Guesses of the label: its column, and the texts or numbers that mean a click."""

import pathlib

import numpy as np
import pytest
from helpers import generated_logs
from helpers.guessed_logs import role, save

import pipelines
from pipelines.schema import guess as guesses


def label_of(cells, tmp_path, name="click"):
    rows = [f"{cell},v{n % 7}" for n, cell in enumerate(cells)]
    guess = guesses.guess(save(tmp_path, "\n".join([f"{name},shop", *rows])))
    return guess.schema.label


def test_labels(tmp_path):
    one, other = ["0", "1", "0", "0"] * 50, ["False", "True"] * 50
    assert label_of(one, tmp_path) == pipelines.Label("click")
    assert label_of(other, tmp_path) == pipelines.Label("click")
    assert label_of(["0.0", "1.0"] * 50, tmp_path) == pipelines.Label("click")
    label = label_of(["-1", "1"] * 50, tmp_path)
    assert label.positive[0] == "1" and "-1" in label.negative
    label = label_of(["Yes", "No"] * 50, tmp_path, "is_click")
    assert (label.positive, label.negative) == (("Yes",), ("No",))
    assert label_of(["0.25", "0.5", "1"] * 50, tmp_path, "target").soft
    assert label_of(list("12345") * 30, tmp_path, "rating").threshold == 4
    assert label_of(["0", "3", "1"] * 50, tmp_path, "clicks").threshold == 1
    assert label_of(["1", "2", "1"] * 50, tmp_path, "label").threshold == 2
    assert label_of(one, tmp_path, "anything") == pipelines.Label("anything")


def test_which_column_is_the_label(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        f"{n},{rng.integers(2)},{rng.integers(2)},{rng.integers(2)},s{n % 4}"
        for n in range(300)
    ]
    text = "\n".join(["a,flag,is_click,purchase,shop", *rows])
    guess = guesses.guess(save(tmp_path, text))
    assert guess.schema.label.column == "is_click"
    assert role(guess, "purchase") == "left out"  # comes after the click
    assert guess.schema.dense_features == ("flag",)
    assert (
        guesses.guess(save(tmp_path, text), label="flag").schema.label.column == "flag"
    )
    text = "\n".join(["a,flag,b1,b2,shop", *rows])
    with pytest.raises(
        ValueError, match="Columns with two values: 'flag', 'b1', 'b2'.*`label`"
    ):
        guesses.guess(save(tmp_path, text))
    with pytest.raises(ValueError, match="There is no column 'x'. The columns: 'a', "):
        guesses.guess(save(tmp_path, text), label="x")
    with pytest.raises(ValueError, match="'shop' cannot be read as the label.*'s0'"):
        guesses.guess(save(tmp_path, text), label="shop")


def test_a_label_by_position(tmp_path):
    rows = [f"{n % 2},{n // 2 % 2},s{n % 5}" for n in range(200)]
    path = save(tmp_path, "\n".join(rows))
    guess = guesses.guess(path, label="1")
    assert guess.schema.text.columns == ("column_0", "label", "column_2")


def test_rows_of_criteo_without_a_label_have_none(tmp_path):
    (path,) = generated_logs.write_criteo(tmp_path, 500, 0)
    lines = pathlib.Path(path).read_text().splitlines()
    path = save(tmp_path, "\n".join(line.partition("\t")[2] for line in lines))
    with pytest.raises(ValueError, match="No column looks like the label"):
        guesses.guess(path)


def test_a_first_column_may_count_clicks(tmp_path):
    rows = [f"{n % 3 if n % 5 == 0 else 0}|s{n % 7}|{n}.5" for n in range(300)]
    label = guesses.guess(save(tmp_path, "\n".join(rows))).schema.label
    assert (label.column, label.threshold) == ("label", 1)
