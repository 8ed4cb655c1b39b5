"""The layouts that ship, against generated rows and a reader of a few lines."""

import collections
import csv
import inspect
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import generated_logs

from pipelines.schema import Parquet, Schema, layouts

NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
MORE = {
    name: (getattr(generated_logs, f"write_{name}"), layouts.get(name))
    for name in ("criteo_x4", "avazu_x1", "frappe", "movielens_ratings")
}
ALL = {**generated_logs.LAYOUTS, **MORE}
NUM_ROWS = 300


def rows_of(path, schema):
    """Rows of a file as dicts of texts by column."""
    if isinstance(schema.format, Parquet):
        yield from pq.read_table(path).to_pylist()
        return
    quoting = csv.QUOTE_MINIMAL if schema.text.quoted else csv.QUOTE_NONE
    with open(path, newline="", encoding="utf-8") as file:
        lines = csv.reader(file, delimiter=schema.text.delimiter, quoting=quoting)
        names = next(lines) if schema.text.header else schema.text.columns
        for cells in lines:
            assert len(cells) == len(names)
            yield dict(zip(names, cells))


def click_of(cell, label):
    """The label of a cell, by the contract."""
    if label.threshold is not None:
        return int(float(cell) >= label.threshold)
    if str(cell) in label.positive:
        return 1
    assert str(cell) in label.negative, cell
    return 0


@pytest.mark.parametrize("name", ALL)
def test_rows_of_a_layout_are_as_its_schema_says(name, tmp_path):
    write, schema = ALL[name]
    num_rows = 60 if name == "wide" else NUM_ROWS
    paths = write(tmp_path, num_rows, 0)
    clicks = []
    for path in paths:
        for row in rows_of(path, schema):
            assert set(schema.columns) <= set(row)
            clicks.append(click_of(row[schema.label.column], schema.label))
            for feature in schema.dense:
                cell = row[feature.column]
                if cell is not None and cell not in schema.format.missing:
                    assert NUMBER.fullmatch(str(cell)), (feature.name, cell)
                    assert not feature.integer or str(cell).lstrip("-").isdigit()
            for feature in schema.sparse:
                cell = row[feature.column]
                assert "\n" not in str(cell)
                is_list = isinstance(cell, list)
                if feature.weight_separator:
                    for piece in filter(None, cell.split(feature.separator)):
                        _, _, weight = piece.rpartition(feature.weight_separator)
                        assert NUMBER.fullmatch(weight)
                assert feature.is_bag or not is_list
            if schema.weight is not None:
                assert float(row[schema.weight]) >= 0
    assert len(clicks) == num_rows
    assert 0.05 < sum(clicks) / num_rows < 0.75


def values_of(cell, feature):
    """The values of a cell, by the contract but for their weights."""
    if feature.is_bag:
        pieces = cell if isinstance(cell, list) else (cell or "").split(",")
        if isinstance(cell, str):
            pieces = cell.split(feature.separator)
        if feature.weight_separator:
            pieces = [piece.rpartition(feature.weight_separator)[0] for piece in pieces]
        return [piece for piece in pieces if piece]
    return [cell]


def table_of(paths, schema):
    """Labels, dense numbers (rows, features) and the values of each category."""
    rows = [row for path in paths for row in rows_of(path, schema)]
    labels = [click_of(row[schema.label.column], schema.label) for row in rows]
    dense = np.zeros((len(rows), len(schema.dense)))
    for place, feature in enumerate(schema.dense):
        for number, row in enumerate(rows):
            cell = row[feature.column]
            if cell is not None and cell not in schema.format.missing:
                dense[number, place] = float(cell)
    dense = np.sign(dense) * np.log1p(np.abs(dense))
    values = [[values_of(row[f.column], f) for row in rows] for f in schema.sparse]
    return np.array(labels), dense, values


@pytest.mark.breadth(4)
@pytest.mark.parametrize("name", ALL)
def test_a_model_can_learn_the_clicks_of_another_seed(name, tmp_path):
    """A naive Bayes model of single values: log odds by value, lines by number."""
    write, schema = ALL[name]
    sizes = (300, 300) if name == "wide" else (3000, 2000)
    train, valid = (
        table_of(write(tmp_path / str(seed), size, seed), schema)
        for seed, size in enumerate(sizes)
    )
    labels, dense, values = train
    scores = np.zeros(len(valid[0]))
    rate = labels.mean()
    for cells, others in zip(values, valid[2]):
        clicks, times = collections.Counter(), collections.Counter()
        for row, label in zip(cells, labels.tolist()):
            times.update(row)
            clicks.update(row * label)
        shares = {v: (clicks[v] + 20 * rate) / (times[v] + 20) for v in times}
        odds = {v: np.log(share / (1 - share)) for v, share in shares.items()}
        base = np.log(rate / (1 - rate))
        scores += [sum(odds.get(v, base) - base for v in row) for row in others]
    dense, others = (x - dense.mean(0) for x in (dense, valid[1]))
    scores += others @ (dense * (labels - rate)[:, None]).mean(0) * (name != "wide")
    if name == "wide":
        scores = others[:, :20] @ np.linspace(0.3, 0.05, 20)
    ranks = scores.argsort().argsort()
    clicked = valid[0] == 1
    auc = ranks[clicked].mean() - ranks[~clicked].mean()
    assert auc / len(ranks) + 0.5 > 0.6


@pytest.mark.parametrize("name", ALL)
def test_generated_logs_follow_from_the_seed(name, tmp_path):
    write, _ = ALL[name]
    contents = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        paths = write(tmp_path / folder, 20, seed)
        contents.append([open(path, "rb").read() for path in paths])
    assert contents[0] == contents[1] != contents[2]


def test_every_layout_has_a_source_and_a_schema():
    code = inspect.getsource(layouts)
    for name in layouts.NAMES:
        schema = layouts.get(name)
        assert Schema.from_json(schema.to_json()) == schema
        assert set(schema.columns) <= set(schema.text.columns)
        assert len(set(schema.text.columns)) == len(schema.text.columns)
        comment = re.search(rf'((?: +#.*\n)+) +"{name}": Schema', code)[1]
        assert name == "criteo" or "http" in comment


@pytest.mark.parametrize(
    "name, num_columns, num_dense, num_sparse",
    [
        ("criteo", 40, 13, 26),
        ("criteo_x1", 40, 13, 26),
        ("criteo_x4", 40, 13, 26),
        ("criteo_x4_001", 40, 0, 39),
        ("avazu", 24, 0, 21),
        ("avazu_x1", 23, 0, 22),
        ("frappe", 11, 0, 10),
        ("movielens", 4, 0, 3),
        ("movielens_ratings", 4, 0, 2),
        ("kdd12", 12, 0, 10),
    ],
)
def test_numbers_of_columns(name, num_columns, num_dense, num_sparse):
    schema = layouts.get(name)
    assert len(schema.text.columns) == num_columns
    assert (len(schema.dense), len(schema.sparse)) == (num_dense, num_sparse)


def test_numbers_are_categories_in_the_setting_001():
    plain, schema = layouts.get("criteo_x4"), layouts.get("criteo_x4_001")
    assert schema.format == plain.format and schema.label == plain.label
    assert schema.sparse[13:] == plain.sparse
    assert [f.column for f in schema.sparse[:13]] == [f.column for f in plain.dense]
    assert {f.buckets for f in schema.sparse[:13]} == {"log2"}


def test_avazu_has_the_columns_of_its_contest_in_their_order():
    expected = (
        "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,"
        "app_domain,app_category,device_id,device_ip,device_model,device_type,"
        "device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
    )
    assert ",".join(layouts.get("avazu").text.columns) == expected
