"""`tf-dlrm benchmark`: speed and memory, beside the peers that are installed."""

import dataclasses
import pathlib
from typing import Literal

from pipelines.runtime import UserError


@dataclasses.dataclass
class Benchmark:
    """Measure speed and memory of training or inference, beside peers.

    Each arm runs in a process of its own, and rounds of all arms alternate.
    """

    workload: Literal["kaggle", "paper_single_socket", "scaling"] = "kaggle"
    """kaggle: 26 one-hot tables of 33.8M rows in all; paper_single_socket: 8 tables of
    1M rows, bags of 1 to 100 ids; scaling: one table of 10k to 100M rows."""
    mode: Literal["train", "inference"] = "train"
    """Training or inference."""
    batch_size: int = 2048
    """Rows of a batch."""
    optimizer: Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "ftrl"] = "sgd"
    """Optimizer in training; the scaling workload runs all of them."""
    precision: Literal["float32", "bfloat16", "both"] = "both"
    """Precision of MLPs and interaction; the scaling workload is float32."""
    jit_compile: Literal["auto", "on", "off"] = "auto"
    """Passed to compile."""
    steps_per_execution: int = 1
    """Passed to compile."""
    seconds: float = 8.0
    """Seconds to measure for each arm and round, after the warm-up."""
    steps: int | None = None
    """Measure so many steps of a training in place of --seconds, and the time that all
    of them take; of this package alone."""
    rounds: int = 3
    """Number of rounds."""
    peers: bool = False
    """Run PyTorch, torchrec and stock Keras too, where installed."""
    peer_python: str | None = None
    """Interpreter that has them; None: the one that runs this."""
    profile: bool = False
    """Write where the time of a training step goes: breakdown.json and .png."""
    devices: tuple[int, ...] = ()
    """Also train with the tables spread over so many logical devices, which share the
    cores: what the exchange costs. Such as: --devices 2 4."""
    metrics: bool = False
    """Compute all click metrics while training."""
    out: str = "runs/benchmark"
    """Folder for results.jsonl, table.md and chart.png, which are replaced."""
    dry_run: bool = False
    """Only print what would happen."""

    def plan(self) -> list[str]:
        """Return what would happen, for --dry-run."""
        arms, profiled, skipped = self._arms()
        lines = [f"skip {line}" for line in skipped]
        for arm in arms:
            if arm.absent:
                lines.append(f"leave out {arm.name}: {arm.absent}")
        present = [arm.name for arm in arms if not arm.absent]
        seconds = self.rounds * self.seconds * len(present)
        lines.append(f"measure {', '.join(present)}")
        if self.steps is None:
            lines.append(
                f"{self.rounds} rounds of {self.seconds:g} s each: {seconds:,.0f} s "
                "and the time to build models"
            )
        else:
            lines.append(f"{self.rounds} rounds of {self.steps:,} steps each")
        if profiled:
            lines.append(f"trace steps of {', '.join(arm.name for arm in profiled)}")
        lines.append(f"write {self.out}/results.jsonl, table.md, chart.png")
        return lines

    def run(self) -> None:
        """Measures."""
        from pipelines.benchmark import results, runner

        arms, profiled, skipped = self._arms()
        for line in skipped:
            print(line)
        summary = runner.run_benchmark(
            arms, self.rounds, self.out, profiled, show=lambda t: print(t, flush=True)
        )
        print()
        results.print_table(summary)
        print(f"{self.out}: results.jsonl, table.md, chart.png")
        if not any("samples_per_s" in arm for arm in summary["arms"].values()):
            raise UserError("no arm gave a result; the table says why.")

    def _arms(self):
        """Arms, those of them to profile, and why others are skipped."""
        from pipelines.benchmark import arms as benchmark_arms
        from pipelines.benchmark import machine, runner
        from pipelines.benchmark.jobs import Job
        from pipelines.benchmark.workloads import WORKLOADS, scaling_workload

        self._check()
        scaling = self.workload == "scaling"
        job = Job(
            scaling_workload(10_000) if scaling else WORKLOADS[self.workload],
            mode=self.mode,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            jit_compile={"auto": "auto", "on": True, "off": False}[self.jit_compile],
            steps_per_execution=self.steps_per_execution,
            seconds=self.seconds,
            steps=self.steps,
            metrics=self.metrics,
        )
        if scaling:
            jobs, skipped = runner.scaling_jobs(job, machine.free_memory())
            make = benchmark_arms.make_own
            return [make(each, name) for name, each in jobs], [], skipped
        both = ("float32", "bfloat16")
        precisions = both if self.precision == "both" else (self.precision,)
        own = [
            benchmark_arms.make_own(dataclasses.replace(job, precision=precision))
            for precision in precisions
        ]
        own += [
            benchmark_arms.make_own(
                dataclasses.replace(arm.job, num_devices=number),
                f"{arm.name}_{number}_devices",
            )
            for arm in own
            for number in self.devices
        ]
        profiled = []
        if self.profile:
            seconds = min(self.seconds, 2.0)  # long enough to be warm
            profiled = [
                dataclasses.replace(
                    arm,
                    job=dataclasses.replace(
                        arm.job, profile=True, seconds=seconds, steps=None
                    ),
                )
                for arm in own
            ]
        peers = []
        if self.peers:
            peers = benchmark_arms.make_peers(job, precisions, self.peer_python)
        return [*own, *peers], profiled, []

    def _check(self):
        out = pathlib.Path(self.out)
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {out} is a file; name a folder.")
        for name in ("rounds", "batch_size", "steps_per_execution", "seconds"):
            if not getattr(self, name) > 0:
                option = name.replace("_", "-")
                raise UserError(
                    f"--{option} must be positive. Received: {getattr(self, name)}"
                )
        if self.peer_python and not self.peers:
            raise UserError("--peer-python goes with --peers.")
        if self.steps is not None and self.peers:
            raise UserError("--steps does not go with --peers: they go by time.")
        if self.devices and min(self.devices) < 2:
            raise UserError(f"--devices must be 2 or more. Received: {self.devices}")
        if self.devices and self.workload == "scaling":
            raise UserError("--devices does not go with --workload scaling.")
        if self.mode == "inference":
            training = {
                "--devices": self.devices,
                "--profile": self.profile,
                "--metrics": self.metrics,
                "--jit-compile": self.jit_compile != "auto",
                "--steps-per-execution": self.steps_per_execution != 1,
                "--steps": self.steps is not None,
                "--workload scaling": self.workload == "scaling",
            }
            wrong = [option for option, given in training.items() if given]
            if wrong:
                raise UserError(f"{wrong[0]} goes with --mode train.")
        if self.workload == "scaling":
            for option, given in {
                "--peers": self.peers,
                "--profile": self.profile,
            }.items():
                if given:
                    raise UserError(f"{option} does not go with --workload scaling.")
