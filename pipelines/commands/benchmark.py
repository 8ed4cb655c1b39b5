"""`tf-dlrm benchmark`: speed and memory, compared with installed peers."""

import dataclasses
import pathlib
from typing import Literal

from pipelines.runtime import UserError


@dataclasses.dataclass
class Benchmark:
    """Measure the speed and memory of training or inference, also of peers.

    Each variant runs in its own process, and the rounds of all variants alternate.
    """

    workload: Literal["kaggle", "paper_single_socket", "scaling"] = "kaggle"
    """kaggle: 26 one-hot tables with 33.8M rows in total; paper_single_socket: 8 tables
    with 1M rows each, bags of 1 to 100 ids; scaling: one table of 10k to 100M rows."""
    mode: Literal["train", "inference"] = "train"
    """Measure training or inference."""
    batch_size: int = 2048
    """Rows in a batch."""
    optimizer: Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "ftrl"] = "sgd"
    """Optimizer for training; the scaling workload runs all of them."""
    precision: Literal["float32", "bfloat16", "both"] = "both"
    """Precision of MLPs and interaction; the scaling workload always uses float32."""
    jit_compile: Literal["auto", "on", "off"] = "auto"
    """Value of jit_compile that is passed to compile."""
    steps_per_execution: int = 1
    """Steps that one call runs, passed to compile."""
    seconds: float = 8.0
    """Seconds to measure each variant in each round, after the warm-up."""
    steps: int | None = None
    """Number of training steps to measure instead of --seconds, with their total time;
    tf_dlrm only."""
    rounds: int = 3
    """Number of rounds."""
    peers: bool = False
    """Also run PyTorch, torchrec and stock Keras, if they are installed."""
    peer_python: str | None = None
    """Python interpreter that has the peers installed; default: the current one."""
    profile: bool = False
    """Profile the parts of a training step: breakdown.json and breakdown.png."""
    devices: tuple[int, ...] = ()
    """Also train with the tables sharded over this many logical devices, which share
    the cores, to measure the cost of the exchange; for example: --devices 2 4."""
    metrics: bool = False
    """Compute all click metrics during training."""
    out: str = "runs/benchmark"
    """Folder for results.jsonl, table.md and chart.png; existing ones are replaced."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        arms, profiled, skipped = self._arms()
        lines = [f"skip {line}" for line in skipped]
        for arm in arms:
            if arm.absent:
                lines.append(f"skip {arm.name}: {arm.absent}")
        present = [arm.name for arm in arms if not arm.absent]
        seconds = self.rounds * self.seconds * len(present)
        lines.append(f"measure {', '.join(present)}")
        if self.steps is None:
            lines.append(
                f"run {self.rounds} rounds of {self.seconds:g} s each: "
                f"{seconds:,.0f} s in total, plus the time to build models"
            )
        else:
            lines.append(f"run {self.rounds} rounds of {self.steps:,} steps each")
        if profiled:
            lines.append(f"profile steps of {', '.join(arm.name for arm in profiled)}")
        lines.append(f"write {self.out}/results.jsonl, table.md, chart.png")
        return lines

    def run(self) -> None:
        """Run the benchmark."""
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
            raise UserError("all variants failed; the table above shows the errors.")

    def _arms(self):
        """Return the arms, those to profile, and a line for each skipped one."""
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
            return [make(job, name) for name, job in jobs], [], skipped
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
            seconds = min(self.seconds, 2.0)  # enough for the warm-up
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
            raise UserError("--peer-python has no effect without --peers: add it.")
        if self.steps is not None and self.peers:
            raise UserError(
                "--steps cannot be combined with --peers, which are measured by time. "
                "Use --seconds."
            )
        if self.devices and min(self.devices) < 2:
            raise UserError(
                f"each number of --devices must be at least 2. Received: {self.devices}"
            )
        if self.devices and self.workload == "scaling":
            raise UserError("--devices cannot be combined with --workload scaling.")
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
            wrong = [option for option, is_set in training.items() if is_set]
            if wrong:
                raise UserError(
                    f"{wrong[0]} needs --mode train. Received: --mode {self.mode}"
                )
        if self.workload == "scaling":
            for option, is_set in {
                "--peers": self.peers,
                "--profile": self.profile,
            }.items():
                if is_set:
                    raise UserError(
                        f"{option} cannot be combined with --workload scaling."
                    )
