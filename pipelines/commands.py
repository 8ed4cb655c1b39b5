"""The commands of `tf-dlrm`: options as dataclasses, and what each one does.

Options are declared without importing TensorFlow's half of the package, so that help
and mistakes answer at once.
"""

import dataclasses
import json
import pathlib
from typing import Annotated

import tyro

from pipelines.run_config import RunConfig

_Files = Annotated[list[str], tyro.conf.arg(metavar="FILE [FILE ...]")]


@dataclasses.dataclass
class Generate:
    """Write generated click logs in Criteo's format, with known click probabilities.

    Beside the file, OUTPUT.json says what the best possible scores on it are.
    """

    output: str
    """File to write; compressed if it ends in .gz."""
    rows: int = 100_000
    """Rows to write."""
    first_row: int = 0
    """Number of the first row: other rows of the same seed make a test set."""
    seed: int = 0
    """Seed of truth and rows."""
    click_rate: float = 0.25
    """Mean click probability."""
    dry_run: bool = False
    """Only print what would happen."""

    def plan(self) -> list[str]:
        """What would happen, for --dry-run."""
        last = self.first_row + self.rows
        return [
            f"write rows {self.first_row:,} to {last:,} of seed {self.seed} to "
            f"{self.output}, and the best possible scores to {self.output}.json"
        ]

    def run(self) -> None:
        """Generates."""
        from pipelines import progress
        from pipelines.synthetic import Planted

        pathlib.Path(self.output).parent.mkdir(parents=True, exist_ok=True)
        planted = Planted(seed=self.seed, click_rate=self.click_rate)
        with progress.bar("Generating", self.rows) as update:
            report = planted.write(
                self.output,
                self.rows,
                self.first_row,
                progress=lambda done, total: update(done),
            )
        pathlib.Path(f"{self.output}.json").write_text(report.to_json() + "\n")
        auc = "unknown" if report.best_auc is None else f"{report.best_auc:.4f}"
        print(
            f"{self.output}: {report.num_rows:,} rows, {report.click_rate:.1%} clicks; "
            f"best possible AUC {auc}, log loss {report.best_log_loss:.4f}"
        )


@dataclasses.dataclass
class Prepare:
    """Check click logs and build the vocabulary of their values."""

    input: _Files
    """Labelled files (plain or .gz) or quoted patterns such as 'day_*.gz'."""
    out: str
    """Folder for vocabulary.tsv, prepare.json and bad_rows.tsv."""
    min_count: int = 10
    """Times a value must occur to have a row of its own."""
    max_vocabulary_size: int | None = None
    """Largest number of rows of a table; None: no limit."""
    max_bad_share: float = 1e-4
    """Largest share of rows that may be bad before the run stops."""
    dry_run: bool = False
    """Only print what would happen."""

    def plan(self) -> list[str]:
        """What would happen, for --dry-run."""
        from pipelines.files import expand_paths

        paths = expand_paths(self.input)
        return [
            f"read {_files(paths)}",
            f"write {self.out}/vocabulary.tsv: values seen at least {self.min_count} "
            "times",
            f"write {self.out}/prepare.json: rows, bad rows, sizes",
        ]

    def run(self) -> None:
        """Prepares."""
        from pipelines import job
        from pipelines.files import expand_paths
        from pipelines.quarantine import Quarantine
        from pipelines.run_folder import write_json

        paths = expand_paths(self.input)
        out = pathlib.Path(self.out)
        out.mkdir(parents=True, exist_ok=True)
        quarantine = Quarantine(out / "bad_rows.tsv", self.max_bad_share)
        vocabulary = job.build_vocabulary(
            paths, self.min_count, self.max_vocabulary_size, quarantine
        )
        vocabulary.save(out / "vocabulary.tsv")
        content = {
            "input": paths,
            "num_rows": vocabulary.num_rows,
            "num_bad_rows": vocabulary.num_bad_rows,
            "min_count": self.min_count,
            "vocabulary_sizes": vocabulary.sizes,
            "vocabulary_digest": vocabulary.digest,
        }
        write_json(out / "prepare.json", content)
        print(
            f"{out}/vocabulary.tsv: {sum(vocabulary.sizes):,} ids of 26 features from "
            f"{vocabulary.num_rows:,} rows ({vocabulary.num_bad_rows:,} bad rows in "
            "bad_rows.tsv)"
        )


@dataclasses.dataclass
class Train:
    """Train a DLRM on click logs into a folder of its own."""

    train: _Files
    """Labelled files to train on."""
    out: str
    """Folder of the run."""
    valid: Annotated[list[str], tyro.conf.arg(metavar="FILE [FILE ...]")] = (
        dataclasses.field(default_factory=list)
    )
    """Labelled files for validation after each epoch."""
    vocabulary: str | None = None
    """vocabulary.tsv that `prepare` wrote; None: build one of the training files."""
    run_name: Annotated[str, tyro.conf.arg(name="run")] = "demo"
    """Named run whose values the options below start from (tf-dlrm runs lists them)."""
    dry_run: bool = False
    """Only print what would happen."""
    config: tyro.conf.OmitArgPrefixes[RunConfig] = dataclasses.field(
        default_factory=RunConfig
    )

    def plan(self) -> list[str]:
        """What would happen, for --dry-run."""
        from pipelines.files import expand_paths

        vocabulary = self.vocabulary or (
            f"hashing into {self.config.hash_buckets:,} rows a table"
            if self.config.hash_buckets
            else f"values seen at least {self.config.min_count} times in these files"
        )
        lines = [
            f"train on {_files(expand_paths(self.train))}",
            f"vocabulary: {vocabulary}",
            f"write {self.out}/: config.json, vocabulary.tsv, model.keras, "
            "metrics.json, metrics.csv, logs/",
            f"config: {self.config.to_json()}",
        ]
        if self.valid:
            lines.insert(1, f"validate on {_files(expand_paths(self.valid))}")
        return lines

    def run(self) -> None:
        """Trains."""
        from pipelines import job
        from pipelines import vocabulary as vocabularies

        vocabulary = vocabularies.load(self.vocabulary) if self.vocabulary else None
        folder, results = job.train(
            self.config, self.train, self.valid, self.out, vocabulary
        )
        print_metrics(results["metrics"])
        print(
            f"{folder.path}: {results['num_rows']:,} rows at "
            f"{results['samples_per_second']:,.0f} samples/s, "
            f"{results['num_bad_rows']:,} bad rows. "
            f"Look: tensorboard --logdir {folder.log_dir}"
        )


@dataclasses.dataclass
class Evaluate:
    """Measure a trained run on labelled click logs."""

    model: str
    """Folder of the run."""
    input: _Files
    """Labelled files."""
    output: str | None = None
    """JSON file for the metrics; None: MODEL/evaluation.json."""
    max_bad_share: float = 1e-4
    """Largest share of rows that may be bad before the run stops."""
    dry_run: bool = False
    """Only print what would happen."""

    def _output(self):
        return self.output or str(pathlib.Path(self.model) / "evaluation.json")

    def plan(self) -> list[str]:
        """What would happen, for --dry-run."""
        from pipelines.files import expand_paths

        return [
            f"evaluate {self.model} on {_files(expand_paths(self.input))}",
            f"write {self._output()}",
        ]

    def run(self) -> None:
        """Evaluates."""
        from pipelines import job
        from pipelines.files import expand_paths
        from pipelines.run_folder import RunFolder, write_json

        paths = expand_paths(self.input)
        folder = RunFolder(self.model)
        parser = folder.load_parser()
        model = folder.load_model(parser)
        results = job.evaluate(model, parser, paths, max_bad_share=self.max_bad_share)
        truth = _truth(paths)
        write_json(self._output(), results | {"best_possible": truth, "input": paths})
        print_metrics(results, truth)


@dataclasses.dataclass
class Predict:
    """Write the click probability of each line of click logs."""

    model: str
    """Folder of a run, or of an exported model."""
    input: _Files
    """Files with or without label."""
    output: str
    """CSV file to write: file, line, probability."""
    max_bad_share: float = 1e-4
    """Largest share of rows that may be bad before the run stops."""
    dry_run: bool = False
    """Only print what would happen."""

    def plan(self) -> list[str]:
        """What would happen, for --dry-run."""
        from pipelines.files import expand_paths

        paths = expand_paths(self.input)
        return [f"score {_files(paths)} with {self.model}", f"write {self.output}"]

    def run(self) -> None:
        """Predicts."""
        from pipelines import scoring
        from pipelines.run_folder import RunFolder

        folder = RunFolder(self.model)
        if folder.config_path.exists():
            parser = folder.load_parser()
            score = scoring.model_scorer(folder.load_model(parser), parser)
        else:
            score = scoring.load_scorer(self.model)
        counts = scoring.write_scores(
            score, self.input, self.output, self.max_bad_share
        )
        print(
            f"{self.output}: {counts['num_rows']:,} rows, {counts['num_bad_rows']:,} "
            "of them bad"
        )


@dataclasses.dataclass
class Export:
    """Export a trained run as a SavedModel for TensorFlow Serving."""

    model: str
    """Folder of the run."""
    output: str = "saved_models/ctr"
    """Folder of the exported model; its versions are numbered in it."""
    version: int | None = None
    """Number of the version; None: the next one."""
    max_hotness: int = 1
    """Length of the padded bags of serving_default."""
    dry_run: bool = False
    """Only print what would happen."""

    def plan(self) -> list[str]:
        """What would happen, for --dry-run."""
        from tf_dlrm.serving.versions import choose_version

        version = choose_version(self.output, self.version)
        return [f"export {self.model} to {self.output}/{version}"]

    def run(self) -> None:
        """Exports."""
        from pipelines import job
        from pipelines.run_folder import RunFolder

        path = job.export(
            RunFolder(self.model), self.output, self.version, self.max_hotness
        )
        print(f"{path}: signatures serving_default, serving_tsv")


@dataclasses.dataclass
class Demo:
    """The whole job on generated data, from rows to a served prediction."""

    out: str = "runs/demo"
    """Folder for everything it makes."""
    rows: int = 1_000_000
    """Training rows to generate."""
    seed: int = 0
    """Seed of the data and the model."""
    dry_run: bool = False
    """Only print what would happen."""

    def plan(self) -> list[str]:
        """What would happen, for --dry-run."""
        return [
            f"generate {self.rows:,} rows to train on, and as many as a tenth to "
            f"validate and to test, in {self.out}/data",
            f"prepare, train, evaluate in {self.out}/run",
            f"export to {self.out}/saved_model and predict one line",
        ]

    def run(self) -> None:
        """Runs the demo."""
        from pipelines import demo

        demo.run(self.out, self.rows, self.seed)


@dataclasses.dataclass
class Runs:
    """List the named runs."""

    def plan(self) -> list[str]:
        """What would happen, for --dry-run."""
        return ["list the named runs"]

    def run(self) -> None:
        """Lists."""
        from pipelines.runs import RUNS

        for name, make in RUNS.items():
            print(f"{name:<16}{(make.__doc__ or '').strip().splitlines()[0]}")


COMMANDS = {
    "generate": Generate,
    "prepare": Prepare,
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
    "export": Export,
    "demo": Demo,
    "runs": Runs,
}


def print_metrics(metrics: dict, truth: dict | None = None) -> None:
    """Prints metrics as a table, beside the best possible ones where known."""
    best = {}
    if truth:
        best = {"auc": truth["best_auc"], "log_loss": truth["best_log_loss"]}
    print(f"{'metric':<24}{'value':>12}" + (f"{'best possible':>16}" if best else ""))
    for name, value in metrics.items():
        if name.removeprefix("val_") == "loss":
            continue  # log_loss says the same
        text = f"{value:,}" if isinstance(value, int) else f"{value:.5f}"
        known = f"{best[name]:>16.5f}" if best.get(name) is not None else ""
        print(f"{name:<24}{text:>12}{known}")


def _truth(paths):
    """The best possible scores, where `generate` wrote one file and its report."""
    report = pathlib.Path(f"{paths[0]}.json")
    if len(paths) != 1 or not report.exists():
        return None
    content = json.loads(report.read_text())
    return content if "best_log_loss" in content else None


def _files(paths) -> str:
    size = sum(pathlib.Path(path).stat().st_size for path in paths)
    more = f" and {len(paths) - 1} more files" if len(paths) > 1 else ""
    return f"{paths[0]}{more} ({size / 1e6:,.1f} MB)"
