"""Plans keep within the memory of a device, and count what optimizers hold."""

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


@pytest.mark.parametrize("optimizer", STATES)
def test_optimizer_state_counts(optimizer):
    tables = make_tables([1000, 77], 24)
    plan = tf_dlrm.sharding.plan(
        tables, 2, strategy="table_wise", optimizer={"C1": optimizer, "C2": "sgd"}
    )
    expected = {1000: 24 + STATES[optimizer](24), 77: 24}
    by_table = {rows: 4 * rows * floats for rows, floats in expected.items()}
    assert sorted(plan.memory_bytes) == sorted(by_table.values())
    as_number = tf_dlrm.sharding.plan(tables, 2, optimizer=STATES[optimizer](24))
    named = tf_dlrm.sharding.plan(tables, 2, optimizer=optimizer)
    assert as_number.memory_bytes == named.memory_bytes


def test_optimizer_objects_count_too():
    tables = make_tables([1000], 16)
    sparse = tf_dlrm.optimizers.SparseAdam(0.1)
    plan = tf_dlrm.sharding.plan(tables, 1, optimizer=sparse)
    assert plan.memory_bytes == (1000 * 16 * 4 * 3,)


@pytest.mark.parametrize("num_devices", [2, 8])
@pytest.mark.parametrize("strategy", ["auto", "row_wise"])
def test_limits_are_kept_when_there_is_hardly_room(strategy, num_devices):
    tables = make_tables(KAGGLE, 16)
    mean = 8 * 16 * sum(KAGGLE) / num_devices
    limit = int(mean * 1.002)
    plan = tf_dlrm.sharding.plan(
        tables, num_devices, strategy=strategy, device_memory_bytes=limit
    )
    plan.validate(tables)
    assert max(bytes_by_device(plan, tables)) <= limit


def test_tables_are_split_for_a_limit_that_whole_ones_just_miss():
    tables = make_tables([102_000, 98_000], 16)
    free = tf_dlrm.sharding.plan(tables, 2, batch_size=64)
    assert {shard.kind for shard in free} == {"table_wise"}
    limit = int(100_000 * 16 * 8 * 1.002)
    plan = tf_dlrm.sharding.plan(tables, 2, limit, batch_size=64)
    assert max(bytes_by_device(plan, tables)) <= limit


def test_whole_tables_keep_a_limit_without_giving_up_lookups():
    tables = make_tables([400, 600, 300, 100, 900, 100], 16)
    hotness = {"C1": 5, "C2": 10, "C3": 2, "C4": 2, "C5": 1, "C6": 2}
    plan = tf_dlrm.sharding.plan(
        tables,
        2,
        strategy="table_wise",
        hotness=hotness,
        device_memory_bytes=int(1.2 * 2400 * 16 * 8 / 2),
    )
    held = bytes_by_device(plan, tables)
    assert imbalance(held) <= 1.2 and plan.lookup_imbalance <= 1.4


def test_tables_larger_than_a_device_are_split():
    tables = make_tables([10_000], 16)
    plan = tf_dlrm.sharding.plan(tables, 4, device_memory_bytes=330_000)
    check_covered(plan, tables)
    assert max(bytes_by_device(plan, tables)) <= 330_000


def test_copies_give_way_where_memory_is_short():
    tables = make_tables([1000] * 40 + [2_000_000], 16)
    free = tf_dlrm.sharding.plan(tables, 8)
    assert free.placement("C1") == "data_parallel"
    limit = int(1.001 * 8 * 16 * sum(t.vocabulary_size for t in tables) / 8)
    tight = tf_dlrm.sharding.plan(tables, 8, device_memory_bytes=limit)
    assert max(bytes_by_device(tight, tables)) <= limit
    assert tight.placement("C40") != "data_parallel"


@pytest.mark.parametrize(
    "sizes, strategy, limit, message",
    [
        # 1000 rows x 16 with state are 128,000 bytes.
        ([1000], "table_wise", 100_000,
         r"Device 0 would hold 128,000 bytes.*28,000 more than.*table 'C1' .1,000 rows"
         r" x 16, table_wise.*This table alone exceeds"),
        ([1000], "auto", 60_000,
         r"Device \d would hold 64,000.*4,000 more.*'C1'.*together would hold 128,000 "
         r"bytes, 8,000 more than 2 x 60,000"),
        ([1000, 9], "data_parallel", 129_000,
         r"Device 0 would hold 129,152.*152 more.*'C1'.*128,000 of the table's "),
        ([1000, 1000, 1000], "table_wise", 200_000,
         r"would hold 256,000 bytes.*56,000 more.*128,000 of the table's "
         r".*strategy 'auto'"),
    ],
    ids=["one_table", "all_tables", "copies", "packing"],
)  # fmt: skip
def test_what_does_not_fit_is_said(sizes, strategy, limit, message):
    with pytest.raises(ValueError, match=message):
        tf_dlrm.sharding.plan(
            make_tables(sizes, 16), 2, strategy=strategy, device_memory_bytes=limit
        )
