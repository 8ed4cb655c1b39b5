"""`tf-dlrm evaluate`: metrics of a run or an export, overall and by slice."""

import dataclasses
import pathlib
from typing import Annotated, ClassVar, Literal

import tyro

from pipelines.commands.shared import Files, check_output, describe_input, read_truth
from pipelines.runs.printing import print_metrics
from pipelines.runs.run_files import RunFiles
from pipelines.runtime import UserError


@dataclasses.dataclass
class Evaluate:
    """Evaluate a trained run or an export on labelled click logs, with a reliability
    diagram.

    If the run was trained on a sample of the negatives, its predictions are corrected
    for it; evaluate it on all rows, not on a sample.
    """

    parameters: ClassVar = {
        "columns": "slices",
        "min_rows": "min_slice_rows",
        "paths": "input",
    }

    model: str
    """Folder of the run, or of an exported model (the version's, or that of all
    versions for the newest), whose correction of probabilities then takes part."""
    input: Files
    """Labelled files, or for a run, the folder that `tf-dlrm prepare` wrote."""
    which: Literal["saved", "best", "last"] = "saved"
    """Model to evaluate: the one that the run saved as its model, its best or its
    last."""
    split: str = "test"
    """Split to evaluate on, if the input is a prepared folder."""
    output: str | None = None
    """JSON file for the metrics; default: MODEL/evaluation.json, or with --which best
    or last, MODEL/evaluation_best.json or evaluation_last.json. Next to it:
    *_reliability.csv and *_reliability.png with predicted and observed click rates."""
    slices: Annotated[list[str], tyro.conf.arg(metavar="COLUMN [COLUMN ...]")] = (
        dataclasses.field(default_factory=list)
    )
    """Columns to compute metrics by, for each value (dense features: for each bin);
    'file' stands for the input file. If the schema's time column is t: t:day, t:hour
    and t:hour_of_day, in UTC. Written to *_slices.csv."""
    group: str | None = None
    """Column of users, sessions or queries, to compute GAUC: the mean AUC within its
    values."""
    min_slice_rows: int = 1
    """Rows that a value needs to get its own slice; all other values share one."""
    max_bad_share: float = 1e-4
    """Largest share of bad rows; with more, the command stops."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""

    def _output(self):
        default = RunFiles(self.model).evaluation_path
        if (default.parent / "saved_model.pb").exists():
            default = default.parent.parent / default.name  # not among its files
        if self.which != "saved":
            default = default.with_stem(f"{default.stem}_{self.which}")
        return self.output or str(default)

    def _beside(self, ending):
        return pathlib.Path(self._output()).with_suffix("").as_posix() + ending

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        lines = [
            f"evaluate {self.model} on {describe_input(self._check())}",
            f"write {self._output()}, {self._beside('_reliability.csv')} and .png",
        ]
        if self.slices:
            names = ", ".join(self.slices)
            lines.append(f"write {self._beside('_slices.csv')}: metrics by {names}")
        if self.group:
            lines.append(f"compute GAUC, the mean AUC within values of {self.group}")
        return lines

    @property
    def _is_run(self):
        return RunFiles(self.model).is_described

    def _make_slices(self):
        from pipelines.evaluation.slices import SlicedEvaluation
        from pipelines.runs.folder import RunFolder

        evaluation = SlicedEvaluation(self.slices, self.group, self.min_slice_rows)
        if self._is_run:
            evaluation.check(RunFolder(self.model).read_schema())
        return evaluation if self.slices or self.group else None

    def _check(self):
        from pipelines.files import expand_paths
        from pipelines.log_data import find_records
        from pipelines.runs.folder import RunFolder

        if self._is_run:
            RunFolder(self.model).find_model(self.which)
        else:
            from pipelines import scoring

            scoring.find(self.model)
            if self.which != "saved":
                raise UserError(
                    f"--which {self.which} needs the folder of a run, but "
                    f"{self.model} is an exported model: leave --which out."
                )
        self._make_slices()
        folder = find_records(self.input)
        paths = expand_paths(self.input) if folder is None else [folder]
        check_output(self._output(), paths)
        for ending in ("_reliability.csv", "_reliability.png", "_slices.csv"):
            check_output(self._beside(ending), paths)
        return paths

    def run(self) -> None:
        """Evaluate the run."""
        from pipelines.runtime import locks

        paths = self._check()
        with locks.locked_file(self._output()):
            self._run(paths)

    def _run(self, paths):
        from pipelines.quarantine import Quarantine
        from pipelines.runs.folder import write_json

        truth = read_truth(paths)
        bad_rows = f"{self._output()}.bad_rows.tsv"
        quarantine = Quarantine(bad_rows, self.max_bad_share)
        slices = self._make_slices()
        evaluate = self._evaluate_run if self._is_run else self._evaluate_export
        results, diagram = evaluate(paths, quarantine, slices)
        if truth and truth["num_rows"] != results["num_rows"]:
            truth = None
        results |= diagram.describe()
        facts = {"best_possible": truth, "input": paths, "which": self.which}
        facts |= slices.describe() if slices else {}
        write_json(self._output(), results | facts)
        print_metrics(results, truth)
        self._write_reliability(diagram, results)
        if slices:
            slices.print()
        if self.slices:
            slices.write_csv(self._beside("_slices.csv"))
            print(f"All slices: {self._beside('_slices.csv')}")

    def _evaluate_run(self, paths, quarantine, slices):
        from pipelines.evaluation import evaluate, reliability
        from pipelines.log_data import are_worth_compiling_for
        from pipelines.runs.folder import RunFolder

        folder = RunFolder(self.model)
        parser = folder.load_parser()
        model = folder.load_model(parser, self.which)
        model.use_xla(are_worth_compiling_for(paths, self.split))
        results = evaluate(
            model,
            parser,
            paths,
            quarantine=quarantine,
            split=self.split,
            slices=slices,
        )
        return results, reliability.of_model(model)

    def _evaluate_export(self, paths, quarantine, slices):
        from pipelines import scoring
        from pipelines.evaluation import evaluate_export

        return evaluate_export(scoring.load(self.model), paths, quarantine, slices)

    def _write_reliability(self, diagram, results):
        from pipelines.evaluation import reliability_chart

        table, picture = map(self._beside, ("_reliability.csv", "_reliability.png"))
        diagram.write_csv(table)
        reliability_chart.draw(diagram, results, picture)
        print(f"Reliability, in {len(diagram.bins)} bins: {table}, {picture}")
