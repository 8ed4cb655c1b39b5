"""`Place`: this process among those that train one model together."""

import dataclasses

import tensorflow as tf

from tf_dlrm.runtime.errors import UserError

_JOBS = ("chief", "worker")  # in the order in which tf.distribute numbers replicas
_ALONE: tuple[str, ...] = ("the only worker",)


@dataclasses.dataclass(frozen=True)
class Place:
    """This process among the workers that train one model together.

    A job in one process has one worker.

    Attributes:
        worker: Number of this worker, from 0.
        workers: A text for each worker, which messages use: `"worker 1 (host:port)"`.
        devices: Names of this process's devices; local replica i is on device i.
    """

    worker: int
    workers: tuple[str, ...]
    devices: tuple[str, ...]

    @property
    def num_workers(self) -> int:
        """Number of workers."""
        return len(self.workers)

    @property
    def is_chief(self) -> bool:
        """True for the one worker that writes files."""
        return self.worker == 0

    @property
    def num_replicas(self) -> int:
        """Number of replicas in all workers."""
        return len(self.devices) * self.num_workers

    @property
    def first_replica(self) -> int:
        """Number of this worker's first replica among those of all workers."""
        return len(self.devices) * self.worker

    @property
    def own_replicas(self) -> range:
        """Numbers of this worker's replicas."""
        return range(self.first_replica, self.first_replica + len(self.devices))

    @property
    def data_part(self) -> tuple[int, int]:
        """The part of the data that this worker reads: `(number, number of parts)`."""
        return self.worker, self.num_workers


def place_of(strategy: tf.distribute.Strategy) -> Place:
    """Return this process's place under a strategy.

    Raises:
        ValueError: If the strategy has replicas that are not workers' devices, because
            its tables would diverge.
    """
    devices = tuple(strategy.extended.worker_devices)
    elsewhere = (
        tf.distribute.experimental.ParameterServerStrategy,
        tf.distribute.TPUStrategy,
        tf.distribute.experimental.CentralStorageStrategy,
    )
    worker, workers = 0, _ALONE
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        worker, workers = _find_workers(strategy.cluster_resolver)
    num_replicas = strategy.num_replicas_in_sync
    if len(devices) * len(workers) != num_replicas or isinstance(strategy, elsewhere):
        raise UserError(
            "Embedding tables can only be trained under tf.distribute."
            "MirroredStrategy or MultiWorkerMirroredStrategy. Received: "
            f"{type(strategy).__name__} with {num_replicas} replicas, {len(devices)} "
            f"of them in this process, and {len(workers)} workers"
        )
    return Place(worker, workers, devices)


def _find_workers(resolver) -> tuple[int, tuple[str, ...]]:
    """Return the number of this worker and a text for each worker."""
    addresses = resolver.cluster_spec().as_dict()
    workers: list[str] = []
    own = None
    for job in _JOBS:
        for index, address in enumerate(addresses.get(job, ())):
            if (job, index) == (resolver.task_type, resolver.task_id):
                own = len(workers)
            workers.append(f"worker {len(workers)} ({job} {index}, {address})")
    if not workers:  # without TF_CONFIG, there is one worker
        return 0, _ALONE
    if own is None:
        raise UserError(
            f"This process is {resolver.task_type} {resolver.task_id}, which is not a "
            f"worker of the cluster in TF_CONFIG. Workers: {', '.join(workers)}"
        )
    return own, tuple(workers)
