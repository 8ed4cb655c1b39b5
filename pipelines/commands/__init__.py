"""The commands of `tf-dlrm`: options as dataclasses, and what each one does.

Options are declared without importing TensorFlow's half of the package, so that help
and mistakes answer at once. `plan` says what would happen, `run` does it.
"""

from pipelines.commands.benchmark import Benchmark
from pipelines.commands.demo import Demo, Runs
from pipelines.commands.evaluate import Evaluate
from pipelines.commands.generate import Generate, ProfileTrace
from pipelines.commands.model import Export, Train, Verify
from pipelines.commands.predict import Predict
from pipelines.commands.prepare import Prepare
from pipelines.commands.report import Report

COMMANDS = {
    "generate": Generate,
    "profile-trace": ProfileTrace,
    "prepare": Prepare,
    "train": Train,
    "evaluate": Evaluate,
    "report": Report,
    "predict": Predict,
    "export": Export,
    "verify": Verify,
    "benchmark": Benchmark,
    "demo": Demo,
    "runs": Runs,
}
