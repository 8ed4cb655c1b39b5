"""The arms of a benchmark: tf_dlrm and its peers, each in its own process."""

import dataclasses
import functools
import json
import pathlib
import signal
import subprocess
import sys

import pipelines
from pipelines.benchmark.jobs import Job
from pipelines.runtime import UserError

NOT_INSTALLED = "not installed"
_SECONDS_ALLOWED = 1800  # on top of the measured time, as large tables take long
# The measurements in which each peer takes part.
_PEERS = {
    # arm: script, modules it imports, precision, optimizers, modes
    "torch": (
        "torch_dlrm.py", ("torch",), "float32",
        ("sgd", "adagrad", "adam"), ("train", "inference"),
    ),
    "torch_bf16": (
        "torch_dlrm.py", ("torch",), "bfloat16",
        ("sgd", "adagrad", "adam"), ("train", "inference"),
    ),
    "torchrec": (
        "torchrec_dlrm.py", ("torch", "torchrec", "fbgemm_gpu"), "float32",
        ("sgd", "adagrad", "rowwise_adagrad"), ("train", "inference"),
    ),
    "keras3_xla": (
        "keras_dlrm.py", ("tensorflow", "keras", "keras_rs"), "float32",
        ("sgd",), ("train",),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Arm:
    """A participant of a benchmark.

    Args:
        name: Name in tables, such as `"tf_dlrm_bf16"`.
        job: The `Job` to measure.
        command: Words of the command, to which the job is appended; empty if the arm
            cannot run.
        absent: Reason that it cannot run, such as `"not installed"`.
    """

    name: str
    job: Job
    command: tuple[str, ...] = ()
    absent: str = ""

    @property
    def is_own(self) -> bool:
        """True for an arm of tf_dlrm."""
        return self.name.startswith("tf_dlrm")


def make_own(job: Job, name: str | None = None) -> Arm:
    """Return the arm of tf_dlrm for a job."""
    default = "tf_dlrm" if job.precision == "float32" else "tf_dlrm_bf16"
    command = (sys.executable, "-m", "pipelines.benchmark.measurement")
    return Arm(name or default, job, command)


def make_peers(job: Job, precisions, python: str | None = None) -> list[Arm]:
    """Return the peers that support the job's mode and optimizer, installed or not.

    Args:
        job: The `Job` to measure; its precision is replaced by that of the peer.
        precisions: bfloat16 peers take part if it is among them. float32 peers always
            do, as they are compared with both.
        python: Interpreter that may have the peers installed; the current one is tried
            as well.

    Raises:
        ValueError: If the peers' scripts are missing, or there is no such interpreter.
    """
    folder = peers_folder()
    arms = []
    for name, (script, modules, precision, optimizers, modes) in _PEERS.items():
        if precision != "float32" and precision not in precisions:
            continue
        if job.mode not in modes:
            continue
        if job.mode == "train" and job.optimizer not in optimizers:
            continue
        own = dataclasses.replace(job, precision=precision, profile=False)
        found = next((p for p in _interpreters(python) if _has(p, modules)), None)
        if found is None:
            arms.append(Arm(name, own, absent=NOT_INSTALLED))
        else:
            arms.append(Arm(name, own, (found, str(folder / script))))
    return arms


def peers_folder() -> pathlib.Path:
    """Return the folder `benchmarks/peers` of the repository.

    Raises:
        ValueError: If the package was installed without it.
    """
    folder = pathlib.Path(pipelines.__file__).parents[1] / "benchmarks" / "peers"
    if not (folder / "common.py").is_file():
        raise UserError(
            "`peers=True` needs the folder benchmarks/peers, which is only in the "
            "repository: clone it and install with pip install -e ."
        )
    return folder


def _interpreters(python):
    return [sys.executable] if python is None else [python, sys.executable]


@functools.cache
def _has(python, modules):
    """Return True if an interpreter finds all of these modules."""
    program = (
        "import importlib.util, sys; "
        "sys.exit(any(importlib.util.find_spec(m) is None for m in sys.argv[1:]))"
    )
    try:
        command = [python, "-c", program, *modules]
        return not subprocess.run(command, capture_output=True).returncode
    except OSError as error:
        raise UserError(
            f"`peer_python` must be a Python interpreter. Received: {python} "
            f"({error.strerror})"
        ) from None


def run_arm(arm: Arm) -> dict:
    """Run an arm once.

    Args:
        arm: An arm that is not absent.

    Returns:
        The result that its process reported, or `{"failed": last line of its errors}`.
    """
    try:
        done = subprocess.run(
            [*arm.command, arm.job.to_json()],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=arm.job.seconds + _SECONDS_ALLOWED,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"no result after {_SECONDS_ALLOWED} s"}
    except OSError as error:
        return {"failed": str(error)}
    if done.returncode == 0:
        for line in reversed(done.stdout.splitlines()):
            if line.startswith("{"):
                return json.loads(line)
        return {"failed": "it printed no result"}
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        memory = " (it may have run out of memory)" if name == "SIGKILL" else ""
        return {"failed": f"killed by {name}{memory}"}
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return {"failed": lines[-1] if lines else f"exit code {done.returncode}"}
