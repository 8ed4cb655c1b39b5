"""`Plan`: a checked, immutable sequence of shards that prints and saves itself."""

import dataclasses
import json
import re

import pytest

import pipelines.placement
import tf_dlrm
from tf_dlrm.sharding import Plan, Shard
from tf_dlrm.sharding.planning.loads import make_loads


def tables(**rows):
    return [tf_dlrm.EmbeddingTable(name, size, 8) for name, size in rows.items()]


def make(shards, num_devices=2, **rows):
    rows = rows or {"a": 10}
    return Plan(shards, make_loads(tables(**rows)), num_devices, batch_size=64)


@pytest.fixture(scope="module")
def mixed():
    strategy = dict(zip("abcd", ("table_wise", "row_wise", "column_wise")))
    strategy["d"] = "data_parallel"
    listed = tables(a=4000, b=7001, c=900, d=50)
    return tf_dlrm.sharding.plan(listed, 4, batch_size=1000, strategy=strategy)


def test_a_plan_is_a_sequence_that_cannot_change(mixed):
    assert len(mixed) == 1 + 4 + 2 + 4
    assert list(mixed) == list(mixed.shards) and mixed[0] in mixed
    with pytest.raises(dataclasses.FrozenInstanceError):
        mixed.num_devices = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        mixed[0].device = 3
    with pytest.raises(TypeError):
        mixed.shards[0] = mixed[1]


def test_shards_are_found_by_device_and_table(mixed):
    found = [shard for device in range(4) for shard in mixed.shards_on(device)]
    assert sorted(map(str, found)) == sorted(map(str, mixed))
    assert [shard.table for shard in mixed.of_table("b")] == ["b"] * 4
    assert mixed.of_table("b")[0].first_row == 0
    with pytest.raises(ValueError, match="has no table 'x'. Tables: a, b, c, d"):
        mixed.placement("x")
    with pytest.raises(ValueError, match="must be in 0 .. 3.*device=4"):
        mixed.shards_on(4)


def test_lookups_add_up(mixed):
    """Each id is looked up once; where a table is split by columns, in each part."""
    assert sum(mixed.num_lookups) == pytest.approx(1000 * (1 + 1 + 2 + 1))
    # All four rows read are 8 floats wide, whatever the split.
    assert sum(mixed.lookup_bytes) == pytest.approx(1000 * 4 * 8 * 4, abs=4)
    hot = tf_dlrm.EmbeddingTable("t", 100, 8, features=("x", "y"))
    plan = tf_dlrm.sharding.plan([hot], 1, batch_size=10, hotness={"t": 5, "y": 2.5})
    assert plan.num_lookups == (10 * (5 + 2.5),)


def test_json_round_trip(mixed):
    text = mixed.to_json()
    again = Plan.from_json(text)
    assert again == mixed and again.to_json() == text
    assert again.memory_bytes == mixed.memory_bytes
    assert json.loads(text)["num_devices"] == 4
    assert hash(again) == hash(mixed)


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"shard_fields": 1}'])
def test_json_that_is_no_plan_is_refused(text):
    with pytest.raises(ValueError, match="not a Plan in the JSON form"):
        Plan.from_json(text)


def test_json_whose_shards_were_edited_is_refused(mixed):
    found = json.loads(mixed.to_json())
    del found["shards"][3]
    with pytest.raises(ValueError, match="Table 'b'"):
        Plan.from_json(json.dumps(found))


def rows(device, first, number, kind="row_wise"):
    return Shard("a", kind, device, first, number, 0, 8)


def columns(device, first, number):
    return Shard("a", "column_wise", device, 0, 10, first, number)


@pytest.mark.parametrize(
    "shards, message",
    [
        ([], "no shard of table 'a'"),
        ([rows(0, 0, 4), rows(1, 5, 5)], "'a': rows from 4 are on no device"),
        ([rows(0, 0, 6), rows(1, 5, 5)], "'a': rows from 5 are in two shards"),
        ([rows(0, 0, 6), rows(1, 6, 3)], "'a' has 10 rows, but its shards have 9"),
        ([rows(0, 0, 10), rows(1, 10, 0)], "'a': rows from 10 are in an empty shard"),
        ([columns(0, 0, 4), columns(1, 4, 3)], "'a' has 8 columns, but .* have 7"),
        ([columns(0, 0, 4), columns(1, 3, 5)], "'a': columns from 3 are in two shards"),
        ([rows(0, 0, 5), rows(0, 5, 5)], "may hold at most one shard of table 'a'"),
        ([rows(0, 0, 5), rows(2, 5, 5)], r"on devices 0 .. 1. Received: \[0, 2\]"),
        ([rows(-1, 0, 10)], r"on devices 0 .. 1. Received: \[-1\]"),
        ([rows(0, 0, 5), columns(1, 0, 8)], "must have the same kind"),
        ([rows(0, 0, 10, "whole")], "must have the same kind"),
        ([rows(0, 0, 9, "table_wise")], "must have all rows"),
        ([rows(0, 0, 10, "table_wise"), rows(1, 0, 10, "table_wise")],
         "must be on one device"),
        ([rows(0, 0, 10, "data_parallel")], "must be on all 2 devices"),
        ([rows(0, 0, 10, "table_wise"), Shard("b", "table_wise", 0, 0, 1, 0, 8)],
         r"shards of unknown tables: \['b'\]"),
    ],
)  # fmt: skip
def test_shards_that_do_not_cover_are_refused(shards, message):
    with pytest.raises(ValueError, match=message):
        make(shards)


def test_plans_made_by_hand_are_plans():
    plan = make([rows(1, 0, 7), rows(0, 7, 3)])
    assert plan.placement("a") == "row_wise"
    assert plan.memory_bytes == (3 * 8 * 8, 7 * 8 * 8)


@pytest.mark.parametrize(
    "others, message",
    [
        (tables(a=10, b=5), r"lacks the tables \['b'\]"),
        (tables(b=10), r"lacks the tables \['b'\]"),
        (tables(a=11), r"another table 'a'.*\(10, 8, \('a',\)\).*\(11, 8"),
        ([tf_dlrm.EmbeddingTable("a", 10, 8, features=("x",))], "another table 'a'"),
    ],
)
def test_validate_refuses_other_tables(others, message):
    plan = make([rows(0, 0, 10, "table_wise")])
    plan.validate(tables(a=10))
    with pytest.raises(ValueError, match=message):
        plan.validate(others)


def test_validate_refuses_a_plan_for_more_tables(mixed):
    with pytest.raises(ValueError, match=r"tables that the layer lacks: \['c', 'd'\]"):
        mixed.validate(tables(a=4000, b=7001))


def test_summary_says_what_is_where(mixed):
    text = str(mixed)
    assert text == mixed.summary()
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.split() for line in text.splitlines() if re.match(r"\d +", line)]
    found = [line for line in lines if line[0].isdigit() and line[-1] == "%"]
    assert [int(line[0]) for line in found] == [0, 1, 2, 3]
    assert sum(float(line[-2]) for line in found) == pytest.approx(100, abs=0.2)
    rows_held = [int(line[3].replace(",", "")) for line in found]
    assert sum(rows_held) == 4000 + 7001 + 2 * 900 + 4 * 50
    assert f"{mixed.imbalance:.3f}" in text
    for part in ("4 tables on 4 devices", "b, 7,001 x 8, rows", "c, 900 x 8, columns"):
        assert part in text


def test_summary_of_many_tables_is_short():
    many = [tf_dlrm.EmbeddingTable(f"table_{i}", 10**6, 8) for i in range(300)]
    text = tf_dlrm.sharding.plan(many, 4, strategy="row_wise").summary()
    assert len(text.splitlines()) < 60
    assert "smaller tables" in text


def test_plot_draws_what_the_plan_holds(mixed, tmp_path):
    figure = pipelines.placement.draw_plan(mixed, tmp_path / "plan.png")
    written = (tmp_path / "plan.png").read_bytes()
    assert written.startswith(b"\x89PNG") and len(written) > 10_000
    expected = (mixed.memory_bytes, mixed.lookup_bytes)
    for axes, values in zip(figure.axes, expected, strict=True):
        heights = [0.0] * 4
        for bar in axes.patches:
            heights[round(bar.get_x() + bar.get_width() / 2)] += bar.get_height()
        assert heights == pytest.approx(list(values), abs=1)


def test_plot_without_a_file_and_on_many_devices():
    plan = tf_dlrm.sharding.plan(tables(a=10**6, b=3), 128)
    assert len(pipelines.placement.draw_plan(plan).axes) == 2
