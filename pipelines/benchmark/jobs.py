"""`Job`: one measurement, the JSON argument of one process."""

import dataclasses
import json
import resource
from collections.abc import Sequence

import numpy as np

from pipelines.benchmark.workloads import Workload
from pipelines.runtime import UserError

MODES = ("train", "inference")
OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad", "adam", "ftrl")
PRECISIONS = ("float32", "bfloat16")
MEGABYTE = 2**20


@dataclasses.dataclass(frozen=True)
class Job:
    """One measurement.

    Args:
        workload: Model and batches.
        mode: `"train"` or `"inference"`.
        batch_size: Rows of a batch.
        optimizer: One of `OPTIMIZERS`, for `"train"`.
        precision: `"float32"` or `"bfloat16"` (compute; weights are float32).
        jit_compile: For `compile`: `"auto"`, `True` or `False`.
        steps_per_execution: For `compile`.
        seconds: Time to measure, after the warm-up.
        steps: Steps of a training to measure in place of `seconds`, for the time that
            all of them take; `None`: by time.
        warmup_steps: Steps before that are not measured.
        metrics: Whether `tf_dlrm.metrics.click_metrics()` are computed as well.
        num_devices: Logical devices that share this machine's cores, under
            MirroredStrategy with sharded tables; 1 is no strategy at all.
        placement: How tables are sharded, as `tf_dlrm.sharding.plan` has it.
        profile: Whether steps are traced and divided into operations afterwards.
        seed: Seed of data and weights.

    Raises:
        ValueError: If a value is not one of these.
    """

    workload: Workload
    mode: str = "train"
    batch_size: int = 2048
    optimizer: str = "sgd"
    precision: str = "float32"
    jit_compile: str | bool = "auto"
    steps_per_execution: int = 1
    seconds: float = 8.0
    steps: int | None = None
    warmup_steps: int = 20
    metrics: bool = False
    num_devices: int = 1
    placement: str = "auto"
    profile: bool = False
    seed: int = 0

    def __post_init__(self):
        for name, allowed in (
            ("mode", MODES),
            ("optimizer", OPTIMIZERS),
            ("precision", PRECISIONS),
            ("jit_compile", ("auto", True, False)),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"`{name}` must be one of {allowed}. Received: "
                    f"{name}={getattr(self, name)!r}"
                )
        for name in (
            "batch_size",
            "steps_per_execution",
            "seconds",
            "steps",
            "num_devices",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"`{name}` must be positive. Received: {name}={value}")
        if self.steps is not None and self.steps % self.steps_per_execution:
            raise UserError(
                "`steps` must be a multiple of steps_per_execution. Received: "
                f"steps={self.steps}, steps_per_execution={self.steps_per_execution}"
            )

    def to_json(self) -> str:
        """One line of JSON, as the processes take it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """The inverse of `to_json`."""
        config = json.loads(text)
        return cls(**config | {"workload": Workload.from_config(config["workload"])})


def step_statistics(seconds: Sequence[float], batch_size: int) -> dict:
    """Throughput and quantiles of the seconds that single steps took."""
    p10, p50, p90, p99 = np.percentile(np.asarray(seconds), (10, 50, 90, 99)) * 1e3
    return {
        "samples_per_s": round(batch_size / p50 * 1e3, 1),
        "ms_per_step_p50": round(p50, 4),
        "ms_per_step_p10": round(p10, 4),
        "ms_per_step_p90": round(p90, 4),
        "ms_per_step_p99": round(p99, 4),
        "num_steps": len(seconds),
    }


def peak_rss_mb() -> float:
    """The most memory this process had so far, in MB of 2**20 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
