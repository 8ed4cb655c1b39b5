"""The planner: coverage, balance, limits, choices, determinism, speed.

Oracles count cells of small tables one by one, enumerate all placements, or compute
bytes from sizes here; none reads them from the plan.
"""

import itertools
import os
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.plan_oracle import (
    KAGGLE,
    STATES,
    bytes_by_device,
    check_covered,
    imbalance,
    make_tables,
)

import tf_dlrm

KINDS = ("table_wise", "row_wise", "column_wise", "data_parallel")
TERABYTE = (
    39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346,
    10, 2208, 11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108,
    36,
)  # fmt: skip
HOTNESS = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3,
           1, 1)  # fmt: skip


def random_tables(generator, count, max_rows=300, max_dim=40):
    tables = []
    for i in range(count):
        features = [f"f{i}_{j}" for j in range(generator.choice((1, 1, 1, 3)))]
        tables.append(
            tf_dlrm.EmbeddingTable(
                f"t{i}",
                int(max_rows ** generator.random()),
                generator.randint(1, max_dim),
                features=features,
            )
        )
    return tables


@pytest.mark.parametrize("seed", range(60))
def test_each_cell_is_held_once(seed):
    generator = random.Random(seed)
    tables = random_tables(generator, generator.randint(1, 12))
    strategies = {t.name: generator.choice(("auto", *KINDS)) for t in tables}
    optimizer = generator.choice(list(STATES))
    plan = tf_dlrm.sharding.plan(
        tables,
        generator.randint(1, 9),
        batch_size=generator.choice((1, 7, 64, 8192)),
        hotness=generator.choice((1, 20, {tables[0].name: 50})),
        strategy=generator.choice(("auto", strategies)),
        optimizer=optimizer,
    )
    check_covered(plan, tables)
    expected = bytes_by_device(plan, tables, STATES[optimizer])
    assert list(plan.memory_bytes) == expected
    assert plan.imbalance == pytest.approx(imbalance(expected))


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(
    "tables, options",
    [
        (make_tables(KAGGLE, 16), {}),
        (make_tables(KAGGLE, 16), {"optimizer": "row_wise_adagrad"}),
        (make_tables(TERABYTE, 128), {"batch_size": 65_536}),
        (
            make_tables(TERABYTE, 128),
            {"hotness": {f"C{i}": h for i, h in enumerate(HOTNESS, start=1)}},
        ),
    ],
    ids=["kaggle", "kaggle_row_wise_adagrad", "terabyte", "terabyte_multi_hot"],
)
def test_auto_balances_criteo(tables, options, num_devices):
    plan = tf_dlrm.sharding.plan(tables, num_devices, **options)
    plan.validate(tables)
    state = STATES[options.get("optimizer", "adagrad")]
    held = bytes_by_device(plan, tables, state)
    assert imbalance(held) <= 1.05
    # Each device has its 1/N: what is on all of them is small.
    total = sum(
        4 * t.vocabulary_size * (t.embedding_dim + state(t.embedding_dim))
        for t in tables
    )
    assert max(held) <= 1.06 * total / num_devices
    assert plan.lookup_imbalance <= 1.3


def test_auto_splits_what_is_large_and_copies_what_is_small():
    plan = tf_dlrm.sharding.plan(make_tables(KAGGLE, 16), 8)
    placed = {f"C{i}": plan.placement(f"C{i}") for i in range(1, 27)}
    fair = sum(KAGGLE) / 8
    for i, rows in enumerate(KAGGLE, start=1):
        if rows > 1.05 * fair:
            assert placed[f"C{i}"] == "row_wise"  # 16 columns are too few to split
        if rows < 1000:
            assert placed[f"C{i}"] == "data_parallel"
    assert "table_wise" in placed.values()
    # No more parts than needed: leveling N devices takes N - 1 cuts at most.
    shards = [s for s in plan if s.kind != "data_parallel"]
    shared = [name for name, kind in placed.items() if kind != "data_parallel"]
    assert len(shards) <= len(shared) + 7


def test_auto_splits_wide_tables_by_columns():
    plan = tf_dlrm.sharding.plan(make_tables(TERABYTE, 128), 8, batch_size=65_536)
    split = [t for t in ("C1", "C20", "C22") if plan.placement(t) == "column_wise"]
    assert split
    for name in split:
        widths = {shard.num_columns for shard in plan.of_table(name)}
        assert len(widths) == 1 and widths.pop() % 4 == 0


def test_auto_never_splits_columns_of_rows_with_state_of_their_own():
    tables = make_tables(TERABYTE, 128)
    plan = tf_dlrm.sharding.plan(tables, 8, optimizer="row_wise_adagrad")
    assert "column_wise" not in {shard.kind for shard in plan}


@pytest.mark.parametrize("rows, kind", [(2048, "data_parallel"), (2049, "table_wise")])
def test_copies_stop_where_exchanging_is_cheaper(rows, kind):
    """With N devices, B examples and width D, an all-reduce of sums and counts moves
    2 (N-1) rows (D+1) 4 bytes, an exchange (N-1)/N B (8 + 2 D 4): equal at B/N rows."""
    tables = make_tables([rows, 10**6, 10**6, 10**6], 16)
    plan = tf_dlrm.sharding.plan(tables, 4, batch_size=8192)
    assert plan.placement("C1") == kind


@pytest.mark.parametrize("num_devices", [1, 2, 3, 4, 8])
def test_rows_are_even(num_devices):
    tables = make_tables([5, 2, 1, 1000, 1001, 4096], 8)
    plan = tf_dlrm.sharding.plan(tables, num_devices, strategy="row_wise")
    check_covered(plan, tables)
    for table in tables:
        rows = [shard.num_rows for shard in plan.of_table(table.name)]
        assert len(rows) == min(num_devices, table.vocabulary_size)
        assert max(rows) - min(rows) <= 1


def test_first_ranges_are_spread_over_the_devices():
    tables = make_tables([1000] * 8, 8)
    plan = tf_dlrm.sharding.plan(tables, 4, strategy="row_wise")
    firsts = [shard.device for shard in plan if shard.first_row == 0]
    assert sorted(firsts) == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    "embedding_dim, num_devices, widths",
    [
        (128, 8, [16] * 8),
        (16, 3, [4, 4, 8]),
        (16, 8, [4] * 4),
        (10, 8, [2, 4, 4]),
        (3, 4, [3]),
        (64, 1, [64]),
    ],
)
def test_columns_are_split_in_fours(embedding_dim, num_devices, widths):
    tables = make_tables([500], embedding_dim)
    plan = tf_dlrm.sharding.plan(tables, num_devices, strategy="column_wise")
    check_covered(plan, tables)
    assert sorted(shard.num_columns for shard in plan) == widths


def test_more_devices_than_tables():
    tables = make_tables([50_000, 40_000], 16)
    plan = tf_dlrm.sharding.plan(tables, 8, strategy="table_wise")
    assert len(plan) == 2 and len({shard.device for shard in plan}) == 2
    assert plan.shards_on(7) == () and plan.memory_bytes[7] == 0
    auto = tf_dlrm.sharding.plan(tables, 8, batch_size=8)
    assert imbalance(bytes_by_device(auto, tables)) <= 1.05


def test_strategies_by_table():
    tables = make_tables([9000] * 5, 16)
    chosen = dict(zip(("C1", "C2", "C3", "C4"), KINDS))
    plan = tf_dlrm.sharding.plan(tables, 2, strategy=chosen)
    check_covered(plan, tables)
    assert {name: plan.placement(name) for name in chosen} == chosen
    # The table that was left to auto evens out what the others do not.
    assert imbalance(bytes_by_device(plan, tables)) <= 1.05


def best_score(tables, ids, num_devices):
    """The least highest score of all placements of whole tables, by trying them."""
    memory = np.array([8.0 * t.vocabulary_size * t.embedding_dim for t in tables])
    lookups = np.array([4.0 * n * t.embedding_dim for n, t in zip(ids, tables)])
    best = np.inf
    for places in itertools.product(range(num_devices), repeat=len(tables)):
        held = np.bincount(places, memory, num_devices) / memory.sum()
        read = np.bincount(places, lookups, num_devices) / lookups.sum()
        best = min(best, num_devices * max(held.max(), read.max()))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_whole_tables_are_placed_nearly_as_well_as_can_be(seed):
    """Within 4/3 of the best, Graham's bound for one resource (there are two here)."""
    generator = random.Random(seed)
    tables = make_tables([generator.randint(100, 1000) for _ in range(7)], 16)
    ids = [generator.randint(1, 30) for _ in tables]
    plan = tf_dlrm.sharding.plan(
        tables,
        3,
        strategy="table_wise",
        hotness={t.name: n for t, n in zip(tables, ids)},
    )
    check_covered(plan, tables)
    found = max(plan.imbalance, plan.lookup_imbalance)
    assert found <= 4 / 3 * best_score(tables, ids, 3)


@pytest.mark.parametrize("hotness, kind", [(30, "column_wise"), (100, "row_wise")])
def test_hot_tables_are_split_for_their_lookups(hotness, kind):
    """By columns up to as many ids a bag as there are columns: 8 bytes an id to each
    part, against 2 vectors of 4 bytes a column from each part."""
    tables = make_tables([100_000] * 4, 64)
    plan = tf_dlrm.sharding.plan(tables, 4, batch_size=256, hotness={"C1": hotness})
    assert plan.placement("C1") == kind
    assert plan.lookup_imbalance <= 1.3


@pytest.mark.parametrize("hotness", [1, 7])
def test_tables_are_not_split_by_rows_for_a_few_lookups(hotness):
    """A part of the rows returns as many vectors as the whole table does."""
    tables = make_tables([100_000] * 5, 16)
    options = {"batch_size": 256, "hotness": {"C1": hotness, "C2": hotness}}
    plan = tf_dlrm.sharding.plan(tables, 5, **options)
    assert {shard.kind for shard in plan} == {"table_wise"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_devices": 0}, "`num_devices` must be a positive integer.*=0"),
        ({"num_devices": 2.0}, "`num_devices` must be a positive integer.*=2.0"),
        ({"batch_size": True}, "`batch_size` must be a positive integer"),
        ({"device_memory_bytes": -1}, "`device_memory_bytes` must be a positive"),
        ({"strategy": "rowwise"}, "`strategy` must be one of.*'rowwise'"),
        ({"strategy": {"C1": "best"}}, "for table 'C1': 'best'"),
        ({"strategy": {"C9": "auto"}}, r"`strategy` has unknown names: \['C9'\]"),
        ({"hotness": 0}, "`hotness` must be a positive number.*'C1'.*: 0"),
        ({"hotness": "5"}, "`hotness` must be a positive number"),
        ({"hotness": {"C1": float("nan")}}, "`hotness` must be a positive number"),
        ({"hotness": {"I1": 2}}, r"`hotness` has unknown names: \['I1'\]"),
        ({"optimizer": "lion"}, "`optimizer` must be.*'lion'"),
        ({"optimizer": -1}, "not be negative.*-1"),
        ({"optimizer": {"C7": "adam"}}, "`optimizer` has unknown names"),
        ({"tables": []}, "`tables` must be a non-empty"),
        (
            {"tables": make_tables([4], 4) * 2},
            r"unique. Received more than once: \['C1'\]",
        ),
    ],
    ids=str,
)
def test_arguments_are_checked(arguments, message):
    arguments = {"tables": make_tables([10, 20], 4), "num_devices": 2, **arguments}
    with pytest.raises(ValueError, match=message):
        tf_dlrm.sharding.plan(**arguments)
    with pytest.raises(TypeError, match="must hold tf_dlrm.EmbeddingTable"):
        tf_dlrm.sharding.plan(["C1"], 2)


# Of this file, and of `helpers`.
PATHS = [str(pathlib.Path(__file__).parents[i]) for i in (0, 2)]


@pytest.mark.integration
def test_plans_are_the_same_every_time():
    """Also in a process where strings and sets hash otherwise."""
    code = (
        f"import sys; sys.path[:0] = {PATHS!r};"
        "from test_planner import *; print(tf_dlrm.sharding.plan("
        "make_tables(TERABYTE, 128), 8, hotness={'C21': 100}).to_json())"
    )
    tables = make_tables(TERABYTE, 128)
    here = tf_dlrm.sharding.plan(tables, 8, hotness={"C21": 100})
    assert here == tf_dlrm.sharding.plan(tables, 8, hotness={"C21": 100})
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == here.to_json()


@pytest.mark.breadth(0)
@pytest.mark.parametrize("strategy", ["auto", *KINDS])
def test_a_thousand_tables_on_many_devices_take_seconds(strategy):
    generator = random.Random(3)
    tables = [
        tf_dlrm.EmbeddingTable(
            f"t{i}",
            int(10 ** generator.uniform(1, 8)),
            generator.choice((8, 16, 32, 64, 128)),
        )
        for i in range(1000)
    ]
    hotness = {table.name: generator.choice((1, 1, 10, 50)) for table in tables}
    start = time.process_time()  # of this process: others do not count
    plan = tf_dlrm.sharding.plan(tables, 128, hotness=hotness, strategy=strategy)
    assert time.process_time() - start < 5
    plan.validate(tables)
    if strategy == "auto":
        assert imbalance(bytes_by_device(plan, tables)) <= 1.05
