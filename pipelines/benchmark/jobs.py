"""`Job`: one measurement, which is the JSON argument of one process."""

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
        batch_size: Rows in a batch.
        optimizer: One of `OPTIMIZERS`, for `"train"`.
        precision: `"float32"` or `"bfloat16"` (compute; weights are float32).
        jit_compile: Argument of `compile`: `"auto"`, `True` or `False`.
        steps_per_execution: Argument of `compile`.
        seconds: Seconds to measure, after the warm-up.
        steps: Number of training steps to measure instead of `seconds`, with their
            total time; `None`: measure by time.
        warmup_steps: Steps before the measurement, which are not measured.
        metrics: Whether to compute `tf_dlrm.metrics.click_metrics()` as well.
        num_devices: Number of logical devices that share this machine's cores, with
            MirroredStrategy and sharded tables; 1: no strategy.
        placement: Strategy for sharding, as in `tf_dlrm.sharding.plan`.
        profile: Whether to trace steps and divide their time by operation.
        seed: Random seed of data and weights.

    Raises:
        ValueError: If a value is out of range or unknown.
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
        """Return the job as one line of JSON, the argument of a process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """Return the job of a text that `to_json` returned."""
        config = json.loads(text)
        return cls(**config | {"workload": Workload(**config["workload"])})


def step_statistics(seconds: Sequence[float], batch_size: int) -> dict:
    """Return throughput and quantiles from the seconds of single steps."""
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
    """Return the peak memory of this process so far, in MB of 2**20 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
