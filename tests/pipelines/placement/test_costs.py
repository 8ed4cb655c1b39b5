"""Bytes exchanged, against messages counted one by one; step time, by hand."""

import itertools

import numpy as np
import pytest

import pipelines.placement
import tf_dlrm
from tf_dlrm.sharding.planning import traffic

DIM = 8


def make_tables():
    return [
        tf_dlrm.EmbeddingTable("table", 64, DIM),
        tf_dlrm.EmbeddingTable("rows", 32, DIM, features=("r1", "r2")),
        tf_dlrm.EmbeddingTable("columns", 16, DIM),
        tf_dlrm.EmbeddingTable("copies", 4, DIM),
    ]


STRATEGY = {
    "table": "table_wise",
    "rows": "row_wise",
    "columns": "column_wise",
    "copies": "data_parallel",
}


def ring_all_reduce(num_floats, num_devices):
    """Runs a ring all-reduce; returns the sums and the bytes each device sent."""
    data = np.random.default_rng(0).integers(0, 9, (num_devices, num_floats))
    expected, sent = data.sum(0), np.zeros(num_devices)
    bounds = np.linspace(0, num_floats, num_devices + 1).astype(int)
    chunks = [slice(a, b) for a, b in itertools.pairwise(bounds)]
    for turn in range(2 * (num_devices - 1)):
        before = data.copy()
        for device in range(num_devices):
            target = (device + 1) % num_devices
            chunk = chunks[(device - turn) % num_devices]
            if turn < num_devices - 1:
                data[target, chunk] += before[device, chunk]
            else:
                chunk = chunks[(device + 1 - (turn - num_devices + 1)) % num_devices]
                data[target, chunk] = before[device, chunk]
            sent[device] += 4 * (chunk.stop - chunk.start)
    assert (data == expected).all()
    return sent


def count(plan, tables, local, hotness, id_bytes, bag_bytes, routed, gather):
    """Sends each id and vector of a batch, and counts what leaves a device.

    The ids of a device's examples go round the rows of the table, so that each row
    is looked up as often as any other wherever the table's rows divide them.
    """
    num = plan.num_devices
    sent = {phase: np.zeros(num) for phase in traffic.PHASES}
    received = {phase: np.zeros(num) for phase in traffic.PHASES}

    def send(phase, source, target, num_bytes):
        if source != target:
            sent[phase][source] += num_bytes
            received[phase][target] += num_bytes

    for table in tables:
        shards = [shard for shard in plan if shard.table == table.name]
        copies = shards[0].kind == "data_parallel"
        if copies and not gather:
            each = ring_all_reduce(table.vocabulary_size * (DIM + 1), num)
            sent["all_reduce"] += each
            received["all_reduce"] += np.roll(each, 1)
            continue
        for device, examples in enumerate(local):
            for _ in table.features:
                next_id = itertools.cycle(range(table.vocabulary_size))
                for _ in range(examples):
                    bag = [next(next_id) for _ in range(hotness)]
                    for shard in shards:
                        if copies:
                            size = hotness * id_bytes + bag_bytes + 4 * DIM
                            send("all_gather", device, shard.device, size)
                            continue
                        mine = [i for i in bag if i in range(64)[shard.rows]]
                        ids = len(mine if routed else bag) * id_bytes + bag_bytes
                        send("ids", device, shard.device, ids)
                        vector = 4 * shard.num_columns
                        send("pooled", shard.device, device, vector)
                        send("gradients", device, shard.device, vector)
    return sent, received


@pytest.mark.parametrize("num_devices", [1, 2, 4])
@pytest.mark.parametrize(
    "hotness, id_bytes, bag_bytes, routed, data_parallel",
    [
        (1, 8, 0, True, "all_reduce"),
        (1, 4, 0, False, "all_gather"),
        (3, 8, 4, True, "all_gather"),
        (2, 4, 8, False, "all_reduce"),
    ],
    ids=["one_hot_int64", "one_hot_int32_to_all", "ragged", "ragged_int32_to_all"],
)
def test_bytes_are_those_of_messages_counted_one_by_one(
    num_devices, hotness, id_bytes, bag_bytes, routed, data_parallel
):
    tables = make_tables()
    plan = tf_dlrm.sharding.plan(
        tables, num_devices, batch_size=64 * num_devices, strategy=STRATEGY
    )
    gather = data_parallel == "all_gather"
    local = [64] * num_devices
    sent, received = count(
        plan, tables, local, hotness, id_bytes, bag_bytes, routed, gather
    )
    options = {
        "id_bytes": id_bytes,
        "bag_bytes": bag_bytes,
        "routed": routed,
        "data_parallel": data_parallel,
    }
    flows = traffic.of_plan(plan, hotness=hotness, **options)
    for phase in traffic.PHASES:
        np.testing.assert_allclose(flows[phase].sent, sent[phase])
        np.testing.assert_allclose(flows[phase].received, received[phase])
    found = plan.exchange_bytes(64 * num_devices, hotness, **options)
    total = found.pop("total")
    assert found == {phase: int(each.sum()) for phase, each in sent.items()}
    assert total == sum(found.values())
    assert (total == 0) == (num_devices == 1)


@pytest.mark.parametrize("batch_size", [0, 1, 3, 10])
def test_uneven_batches_count_exactly(batch_size):
    """Where no ids are routed by row there is no expectation in the formula."""
    tables = make_tables()
    plan = tf_dlrm.sharding.plan(tables, 4, strategy=STRATEGY)
    local = [len(part) for part in np.array_split(np.arange(batch_size), 4)]
    sent, _ = count(plan, tables, local, 2, 8, 0, False, True)
    found = plan.exchange_bytes(batch_size, 2, routed=False, data_parallel="all_gather")
    assert found["total"] == sum(each.sum() for each in sent.values())


def test_the_cheaper_synchronization_is_taken():
    tables = [tf_dlrm.EmbeddingTable(n, r, DIM) for n, r in (("a", 4), ("b", 10**5))]
    plan = tf_dlrm.sharding.plan(tables, 4, strategy="data_parallel")
    found = plan.exchange_bytes(batch_size=1000)
    assert found["all_reduce"] == 2 * 3 * 4 * (DIM + 1) * 4
    assert found["all_gather"] == 3 * 1000 * (8 + 4 * DIM)


def test_auto_moves_fewer_bytes_than_any_one_placement_on_criteo():
    sizes = (1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593,
             3194, 27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105,
             142572)  # fmt: skip
    tables = [tf_dlrm.EmbeddingTable(f"C{i}", r, 16) for i, r in enumerate(sizes)]
    totals = {
        strategy: tf_dlrm.sharding.plan(tables, 8, strategy=strategy).exchange_bytes()[
            "total"
        ]
        for strategy in ("auto", *dict.fromkeys(STRATEGY.values()))
    }
    assert min(totals, key=totals.get) == "auto"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": -1}, "`batch_size` must be an integer that is not negative"),
        ({"id_bytes": 2.5}, "`id_bytes` must be an integer"),
        ({"hotness": {"x": 1}}, "`hotness` has unknown names"),
        ({"hotness": -1}, "`hotness` must be a positive number"),
        ({"data_parallel": "ring"}, "`data_parallel` must be one of"),
    ],
    ids=str,
)
def test_arguments_of_exchange_bytes_are_checked(arguments, message):
    plan = tf_dlrm.sharding.plan(make_tables(), 2)
    with pytest.raises(ValueError, match=message):
        plan.exchange_bytes(**arguments)


RATES = {
    "mlp_flops": 1e6,
    "link_bytes_per_second": 1e9,
    "memory_bytes_per_second": 1e11,
    "flops_per_second": 1e12,
    "latency_seconds": 1e-5,
}


def test_step_time_of_one_table_by_hand():
    """16 floats a row and 16 of state: lines of 64 bytes, one each."""
    tables = [tf_dlrm.EmbeddingTable("t", 10**6, 16)]
    plan = tf_dlrm.sharding.plan(tables, 2, strategy="table_wise")
    found = pipelines.placement.step_time(plan, 1000, 1, **RATES)
    # Each of 1000 ids reads a line, then reads and writes row and state.
    assert found["lookup"] == pytest.approx(1000 * (64 + 2 * 2 * 64) / 1e11)
    # One turn each: 500 ids of 8 bytes, 500 vectors, 500 gradients.
    assert found["exchange"] == pytest.approx(3e-5 + 500 * (8 + 64 + 64) / 1e9)
    assert found["mlp"] == pytest.approx(3 * 1e6 * 500 / 1e12)
    # MLPs of 1e6 / 2 weights of 4 bytes; a ring of two sends half of it twice.
    assert found["all_reduce"] == pytest.approx(2e-5 + 2e6 / 1e9)
    assert found["total"] == pytest.approx(sum(list(found.values())[:-1]))


def test_step_time_of_copies_by_hand():
    tables = [tf_dlrm.EmbeddingTable("t", 100, 16)]
    plan = tf_dlrm.sharding.plan(tables, 2, strategy="data_parallel")
    found = pipelines.placement.step_time(plan, 1000, 1, **RATES)
    # Each device reads for its 500 examples and updates all 100 rows.
    assert found["lookup"] == pytest.approx((500 * 64 + 100 * 2 * 2 * 64) / 1e11)
    assert found["exchange"] == 0
    ring = 2e-5 + (2e6 + 100 * 68) / 1e9
    assert found["all_reduce"] == pytest.approx(ring)


def test_narrow_parts_of_rows_cost_whole_lines():
    tables = [tf_dlrm.EmbeddingTable("t", 10**6, 16)]
    times = {}
    for strategy in ("column_wise", "row_wise"):
        plan = tf_dlrm.sharding.plan(tables, 4, strategy=strategy)
        times[strategy] = pipelines.placement.step_time(plan, 1000, 1, **RATES)
    ratio = times["column_wise"]["lookup"] / times["row_wise"]["lookup"]
    assert ratio == pytest.approx(4)
    assert times["column_wise"]["exchange"] < times["row_wise"]["exchange"]


def test_one_device_exchanges_nothing():
    plan = tf_dlrm.sharding.plan(make_tables(), 1)
    found = pipelines.placement.step_time(plan, 1000, 1, **RATES)
    assert found["exchange"] == found["all_reduce"] == 0
    assert found["lookup"] > 0


@pytest.mark.parametrize("name", [name for name in RATES if "per_second" in name])
def test_rates_are_checked(name):
    plan = tf_dlrm.sharding.plan(make_tables(), 2)
    with pytest.raises(ValueError, match=f"`{name}` must be positive.*{name}=0"):
        pipelines.placement.step_time(plan, **{**RATES, name: 0})


def test_scaling_lists_every_link_placement_and_number(tmp_path):
    tables = [tf_dlrm.EmbeddingTable(f"C{r}", r, 16) for r in (30, 5000, 10**6)]
    rows = pipelines.placement.scaling(tables, mlp_flops=1e6, batch_size=4096)
    assert len(rows) == 4 * 5 * 8
    assert {row["num_devices"] for row in rows} == {1, 2, 4, 8, 16, 32, 64, 128}
    for row in rows:
        assert row["samples_per_second"] == pytest.approx(4096 / row["total"])
    # One device is the same whatever the link and the placement.
    assert len({row["total"] for row in rows if row["num_devices"] == 1}) == 1
    slow, fast = (
        [row["total"] for row in rows if row["link"] == link and row["num_devices"] > 1]
        for link in ("25 Gbit Ethernet", "NVLink, H100")
    )
    assert all(a > b for a, b in zip(slow, fast, strict=True))
    text = pipelines.placement.format_scaling(rows)
    assert text.count("milliseconds per step") == 4
    assert len([line for line in text.splitlines() if "*" in line]) == 4 * 8


def test_links_say_what_is_published_and_what_one_direction_has():
    links = {link.name: link for link in pipelines.placement.LINKS}
    published = [link.published_bytes_per_second for link in links.values()]
    assert published == [900e9, 300e9, 32e9, 3.1e9]
    for name, link in links.items():
        parts = 2 if name.startswith("NVLink") else 1  # published for both directions
        assert link.bytes_per_second * parts == link.published_bytes_per_second


def test_scaling_is_drawn(tmp_path):
    from pipelines import placement as chart

    tables = [tf_dlrm.EmbeddingTable(f"C{r}", r, 16) for r in (30, 5000)]
    rows = pipelines.placement.scaling(tables, mlp_flops=1e6, num_devices=(1, 2, 4))
    figure = chart.draw_scaling(rows, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    assert len(figure.axes) == 4
    for axes in figure.axes:
        assert [len(line.get_xdata()) for line in axes.lines] == [3] * 5
