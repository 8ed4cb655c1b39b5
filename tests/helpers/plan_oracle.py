"""Tables to place, and what a plan holds, counted without asking it."""

import numpy as np

import tf_dlrm

# Criteo Kaggle, as in pipelines/benchmark/workloads.py, and Criteo Terabyte capped at
# 40M rows, as in MLPerf.
KAGGLE = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip


# Floats of state for a row of width D: what the methods need.
STATES = {
    "sgd": lambda d: 0,
    "adagrad": lambda d: d,
    "row_wise_adagrad": lambda d: 1,
    "adam": lambda d: 2 * d,
    "ftrl": lambda d: 2 * d,
}


def make_tables(sizes, embedding_dim):
    return [
        tf_dlrm.EmbeddingTable(f"C{i}", rows, embedding_dim)
        for i, rows in enumerate(sizes, start=1)
    ]


def bytes_by_device(plan, tables, state=lambda d: d):
    """Bytes of rows and state, from the shards and the tables' sizes alone."""
    found = [0] * plan.num_devices
    for shard in plan:
        floats = shard.num_columns + state(shard.num_columns)
        found[shard.device] += 4 * shard.num_rows * floats
    return found


def imbalance(values):
    return max(values) / (sum(values) / len(values))


def check_covered(plan, tables):
    """Counts how often each cell of each table is held."""
    assert {shard.table for shard in plan} == {table.name for table in tables}
    for table in tables:
        held = np.zeros((table.vocabulary_size, table.embedding_dim), int)
        devices = []
        for shard in plan.of_table(table.name):
            assert shard.kind == plan.placement(table.name)
            held[shard.rows, shard.columns] += 1
            assert shard.num_rows == held[shard.rows].shape[0]
            assert shard.num_columns == held[:, shard.columns].shape[1]
            devices.append(shard.device)
        assert len(set(devices)) == len(devices)
        assert set(devices) <= set(range(plan.num_devices))
        if plan.placement(table.name) == "data_parallel":
            assert sorted(devices) == list(range(plan.num_devices))
            assert (held == plan.num_devices).all()
        else:
            assert (held == 1).all()
