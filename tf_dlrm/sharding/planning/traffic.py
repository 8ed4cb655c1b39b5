"""Bytes that devices exchange in a step, by device and kind.

The docstring of `Plan.exchange_bytes` has the formulas.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tf_dlrm.runtime.errors import UserError
from tf_dlrm.sharding.planning.loads import (
    FLOAT_BYTES,
    Hotness,
    TableLoad,
    check_hotness_names,
)

if TYPE_CHECKING:
    from tf_dlrm.sharding.planning.plans import Plan

SYNCHRONIZATIONS = ("cheapest", "all_reduce", "all_gather")
PHASES = ("ids", "pooled", "gradients", "all_reduce", "all_gather")


class Flow(NamedTuple):
    """Bytes that each of N devices sends to and receives from others, `(N,)`."""

    sent: np.ndarray
    received: np.ndarray


def local_batches(batch_size: int, num_devices: int) -> np.ndarray:
    """Return the number of examples on each device: nearly equal shares.

    >>> local_batches(10, 4)
    array([3, 3, 2, 2])
    """
    share, rest = divmod(batch_size, num_devices)
    return share + (np.arange(num_devices) < rest)


def all_reduce_bytes(load: TableLoad, num_devices: int) -> float:
    """Return the bytes that all devices send to sum a table's dense gradient.

    Each row includes its number of ids, because optimizers update only rows with ids.
    """
    width = load.embedding_dim + 1
    return 2 * (num_devices - 1) * load.num_rows * width * FLOAT_BYTES


def bag_gradient_bytes(load: TableLoad, id_bytes: int, bag_bytes: int = 0) -> float:
    """Return the bytes of an example's ids for a table and of its bags' gradients."""
    vector = load.embedding_dim * FLOAT_BYTES
    return load.num_ids * id_bytes + load.num_features * (bag_bytes + vector)


def reduces_cheaply(
    load: TableLoad, num_devices: int, batch_size: int, id_bytes: int = 8
) -> bool:
    """Return whether a dense sum sends no more bytes than ids and bags' gradients."""
    gathered = bag_gradient_bytes(load, id_bytes) * batch_size * (num_devices - 1)
    return all_reduce_bytes(load, num_devices) <= gathered


def replicates_cheaply(
    load: TableLoad, num_devices: int, batch_size: int, id_bytes: int = 8
) -> bool:
    """Return whether copies of a table need no more traffic than a table-wise shard.

    Copies need the smaller of all-reduce and all-gather. A table-wise shard needs ids,
    pooled vectors and gradients of the other devices' examples.
    """
    gathered = bag_gradient_bytes(load, id_bytes) * batch_size * (num_devices - 1)
    replicated = min(all_reduce_bytes(load, num_devices), gathered)
    vector = load.num_features * load.embedding_dim * FLOAT_BYTES
    example = bag_gradient_bytes(load, id_bytes) + vector
    return replicated <= example * batch_size * (num_devices - 1) / num_devices


def of_plan(
    plan: "Plan",
    batch_size: int | None = None,
    hotness: Hotness | None = None,
    *,
    id_bytes: int = 8,
    bag_bytes: int = 0,
    routed: bool = True,
    data_parallel: str = "cheapest",
) -> dict[str, Flow]:
    """Return the `Flow` of each of `PHASES`, by the formulas of `Plan.exchange_bytes`.

    The arguments are those of `Plan.exchange_bytes`.

    Raises:
        ValueError: If an argument is out of range.
    """
    batch_size = plan.batch_size if batch_size is None else batch_size
    if data_parallel not in SYNCHRONIZATIONS:
        raise UserError(
            f"`data_parallel` must be one of {SYNCHRONIZATIONS}. Received: "
            f"data_parallel={data_parallel!r}"
        )
    numbers = {"batch_size": batch_size, "id_bytes": id_bytes, "bag_bytes": bag_bytes}
    for name, value in numbers.items():
        if value < 0 or value != int(value):
            raise UserError(
                f"`{name}` must be an integer that is not negative. Received: "
                f"{name}={value!r}"
            )
    loads = {load.name: load for load in plan.tables}
    if hotness is not None:
        check_hotness_names(hotness, plan.tables)
        loads = {name: load.with_hotness(hotness) for name, load in loads.items()}
    num_devices = plan.num_devices
    # Bytes per example that each device receives or returns as an owner.
    ids, vectors = np.zeros(num_devices), np.zeros(num_devices)
    reduced, gathered = 0.0, 0.0
    for shard in plan:
        load = loads[shard.table]
        if shard.kind == "data_parallel":
            if shard.device == 0:
                by_reduce = all_reduce_bytes(load, num_devices)
                by_gather = bag_gradient_bytes(load, id_bytes, bag_bytes)
                whole = by_gather * batch_size * (num_devices - 1)
                if data_parallel == "all_reduce" or (
                    data_parallel == "cheapest" and by_reduce <= whole
                ):
                    reduced += by_reduce
                else:
                    gathered += by_gather
            continue
        rows = shard.num_rows if routed else load.num_rows
        bags = load.num_features * bag_bytes
        ids[shard.device] += load.ids_to(rows) * id_bytes + bags
        width = shard.num_columns * FLOAT_BYTES
        vectors[shard.device] += load.num_features * width
    local = local_batches(batch_size, num_devices)
    ids_flow, gradient_flow = (_to_owners(b, local) for b in (ids, vectors))
    ring = np.full(num_devices, reduced / num_devices)
    return {
        "ids": ids_flow,
        "pooled": Flow(sent=gradient_flow.received, received=gradient_flow.sent),
        "gradients": gradient_flow,
        "all_reduce": Flow(ring, ring),
        "all_gather": Flow(
            local * gathered * (num_devices - 1), (batch_size - local) * gathered
        ),
    }


def _to_owners(per_example: np.ndarray, local: np.ndarray) -> Flow:
    """Return the flow from devices with examples to the devices that own the shards."""
    received = (local.sum() - local) * per_example
    return Flow(sent=local * (per_example.sum() - per_example), received=received)
