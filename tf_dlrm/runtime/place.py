"""`Place`: this process among those that train one model together."""

import contextlib
import dataclasses
import socket
from collections.abc import Iterator

import tensorflow as tf

from tf_dlrm.runtime.errors import UserError

_EXCHANGE_ERRORS = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)
_JOBS = ("chief", "worker")  # in the order in which tf.distribute numbers replicas
_ALONE: tuple[str, ...] = ("the only worker",)


class LostWorkerError(UserError):
    """Another worker ended, or cannot be reached, so that this one must end too."""


@dataclasses.dataclass(frozen=True)
class Place:
    """This process among the workers that train one model together.

    A job in one process has one worker.

    Attributes:
        worker: Number of this worker, from 0.
        workers: A text for each worker, which messages use: `"worker 1 (host:port)"`.
        devices: Names of this process's devices; local replica i is on device i.
        addresses: `"host:port"` of each worker; empty in a job in one process.
    """

    worker: int
    workers: tuple[str, ...]
    devices: tuple[str, ...]
    addresses: tuple[str, ...] = ()

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


# A process without a strategy; "" is TensorFlow's default device.
ALONE = Place(0, _ALONE, ("",))


def place_of(strategy: tf.distribute.Strategy) -> Place:
    """Return this process's place under a strategy.

    Raises:
        ValueError: If the strategy has replicas that are not workers' devices, because
            its tables would diverge.
    """
    if not has_devices(strategy):
        return ALONE
    devices = tuple(strategy.extended.worker_devices)
    elsewhere = (
        tf.distribute.experimental.ParameterServerStrategy,
        tf.distribute.TPUStrategy,
        tf.distribute.experimental.CentralStorageStrategy,
    )
    worker, workers = 0, _ALONE
    addresses: tuple[str, ...] = ()
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        worker, workers, addresses = _find_workers(strategy.cluster_resolver)
    num_replicas = strategy.num_replicas_in_sync
    if len(devices) * len(workers) != num_replicas or isinstance(strategy, elsewhere):
        raise UserError(
            "Embedding tables can only be trained under tf.distribute."
            "MirroredStrategy or MultiWorkerMirroredStrategy. Received: "
            f"{type(strategy).__name__} with {num_replicas} replicas, {len(devices)} "
            f"of them in this process, and {len(workers)} workers"
        )
    return Place(worker, workers, devices, addresses)


def has_devices(strategy: tf.distribute.Strategy) -> bool:
    """Return False for the default strategy, which stands for no strategy."""
    return type(strategy).__name__ != "_DefaultDistributionStrategy"


@contextlib.contextmanager
def explaining_lost_workers(place: Place) -> Iterator[None]:
    """Turn errors of the exchange between workers into one that names who is missing.

    Raises:
        LostWorkerError: If a collective operation failed in the context.
    """
    try:
        yield
    except _EXCHANGE_ERRORS as error:
        if place.num_workers == 1 or isinstance(error, LostWorkerError):
            raise
        if not any(word in str(error) for word in ("ollective", "/task:", "RPC")):
            raise
        raise LostWorkerError(_describe_loss(place)) from error


def _describe_loss(place: Place) -> str:
    others = [i for i in range(place.num_workers) if i != place.worker]
    missing = [place.workers[i] for i in others if not _answers(place.addresses[i])]
    who = ", ".join(missing)
    if not who:
        who = "a worker that still answers, or has just restarted"
    return (
        f"{place.workers[place.worker]} stops because the exchange with other workers "
        f"failed. Missing: {who}. Start all workers again; a run with checkpoints "
        "resumes from the newest one."
    )


def _answers(address: str) -> bool:
    """Return whether something listens at an address."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except (OSError, ValueError):
        return False


def _find_workers(
    resolver,
) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """Return the number of this worker, and a text and the address of each worker."""
    jobs = resolver.cluster_spec().as_dict()
    workers: list[str] = []
    addresses: list[str] = []
    own = None
    for job in _JOBS:
        for index, address in enumerate(jobs.get(job, ())):
            if (job, index) == (resolver.task_type, resolver.task_id):
                own = len(workers)
            addresses.append(address)
            workers.append(f"worker {len(workers)} ({job} {index}, {address})")
    if not workers:  # without TF_CONFIG, there is one worker
        return 0, _ALONE, ()
    if own is None:
        raise UserError(
            f"This process is {resolver.task_type} {resolver.task_id}, which is not a "
            f"worker of the cluster in TF_CONFIG. Workers: {', '.join(workers)}"
        )
    return own, tuple(workers), tuple(addresses)
