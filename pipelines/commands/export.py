"""`tf-dlrm export` and `tf-dlrm verify`: a run as a SavedModel, and its answers."""

import dataclasses
import json
import pathlib
from typing import ClassVar, Literal

import tyro

from pipelines.commands.shared import Files, check_output, describe_input
from pipelines.runtime import UserError
from pipelines.text_tables import align


@dataclasses.dataclass
class Export:
    """Export a trained run as a SavedModel for TensorFlow Serving."""

    parameters: ClassVar = {
        "base_dir": "output",
        "slice_feature": "calibration_slice",
        "split": "calibration_split",
    }

    model: str
    """Folder of the run."""
    output: str = "saved_models/ctr"
    """Folder for the exported model; each version is a numbered folder in it."""
    which: Literal["saved", "best", "last"] = "saved"
    """Model to export: the one that the run saved as its model, its best or its
    last."""
    version: int | None = None
    """Version number; default: the next one."""
    max_hotness: int = 1
    """Length of the padded bags of the signature serving_default."""
    candidate_features: tuple[str, ...] = ()
    """Features that differ between the items of one serving_candidates request, such as
    C3 C7; default: the export has no such signature."""
    table_dtype: Literal["float32", "float16", "bfloat16", "int8", "int4"] = "float32"
    """Data type of the stored tables; int8 and int4 store a scale and an offset for
    each row."""
    compact: bool = False
    """Export only the live rows of growing tables, sorted by id; the answers are
    equal."""
    calibrate: Literal["isotonic", "platt"] | None = None
    """Correct the probabilities of the export by isotonic regression or by Platt's
    method, fitted on --calibration-input; default: no correction."""
    calibration_input: Files = dataclasses.field(default_factory=list)
    """Labelled files that the run was not trained on, or the folder that `tf-dlrm
    prepare` wrote. Next to the model: calibration.json, calibration_*.csv and
    calibration.png with predicted and observed click rates before and after."""
    calibration_split: str = "valid"
    """Split to fit the correction on, if the input is a prepared folder."""
    calibration_slice: str | None = None
    """Categorical feature whose values get a correction each; default: one correction
    for all rows."""
    min_slice_rows: int = 10_000
    """Rows that a value needs for a correction of its own; the others share one: that
    of their rows, or of all rows if these are too few as well."""
    max_bad_share: float = 1e-4
    """Largest share of bad rows; with more, the command stops."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        from pipelines.runs.folder import RunFolder
        from tf_dlrm.serving import choose_version

        RunFolder(self.model).find_model(self.which)
        self._check()
        version = choose_version(self.output, self.version)
        lines = [f"export {self.model} to {self.output}/{version}"]
        if self.calibrate is not None:
            by = f" by {self.calibration_slice}" if self.calibration_slice else ""
            rows = describe_input(self.calibration_input)
            lines.insert(0, f"fit a correction ({self.calibrate}){by} on {rows}")
            lines.append(f"write {self._beside('.json')}, {self._beside('.png')}")
        return lines

    def _beside(self, ending):
        name = "calibration" if self.which == "saved" else f"calibration_{self.which}"
        return f"{self.model}/{name}{ending}"

    def _check(self):
        """Refuse options that have no effect, and outputs that cannot be written."""
        from pipelines.evaluation.correction import ENDINGS, check
        from pipelines.runs.folder import RunFolder

        if self.calibrate is None:
            for name in ("calibration_input", "calibration_slice"):
                if getattr(self, name):
                    option = name.replace("_", "-")
                    raise UserError(
                        f"--{option} has no effect without --calibrate isotonic or "
                        "--calibrate platt."
                    )
            return
        if not self.calibration_input:
            raise UserError(
                f"--calibrate {self.calibrate} needs rows that the run was not trained "
                "on: name labelled files with --calibration-input."
            )
        check(RunFolder(self.model).read_schema(), self.calibration_slice)
        for ending in (".json", *ENDINGS):
            check_output(self._beside(ending), option="--model")

    def _fit(self, model, parser):
        """Return the correction, and write and print its effect."""
        from pipelines.evaluation import fit_on_rows
        from pipelines.log_data import are_worth_compiling_for
        from pipelines.quarantine import Quarantine
        from pipelines.runs.folder import RunFolder, write_json

        paths, split = self.calibration_input, self.calibration_split
        if RunFolder(self.model).was_trained_on(paths, split):
            print(
                f"Warning: {self.model} was trained on rows of --calibration-input, so "
                "its predictions fit them better than new rows, and the correction "
                "will be wrong. Use other rows."
            )
        model.use_xla(are_worth_compiling_for(paths, split))
        fitted = fit_on_rows(
            model,
            parser,
            paths,
            self.calibrate,
            self.calibration_slice,
            self.min_slice_rows,
            split,
            Quarantine(self._beside(".bad_rows.tsv"), self.max_bad_share),
        )
        facts = {"input": paths, "which": self.which}
        write_json(self._beside(".json"), fitted.describe() | facts)
        *_, picture = fitted.write(self._beside(""))
        print(*fitted.table(), sep="\n")
        print(
            f"Correction ({self.calibrate}) of {fitted.num_rows:,} rows; 'after' "
            "corrects each half of them by a fit on the other half. Reliability: "
            f"{picture}"
        )
        if self.calibration_slice is not None:
            print(
                f"Values of {self.calibration_slice} with a correction of their own: "
                f"{len(fitted.correction.by_id):,}; all others share one."
            )
        return fitted.correction

    def run(self) -> None:
        """Export the model."""
        from pipelines import runs
        from pipelines.runs.folder import RunFolder
        from tf_dlrm.runtime import format_bytes

        self._check()
        path = runs.export(
            RunFolder(self.model),
            self.output,
            self.version,
            self.max_hotness,
            self.candidate_features,
            self.table_dtype,
            self.which,
            None if self.calibrate is None else self._fit,
            self.compact,
        )
        extra = pathlib.Path(path) / "assets.extra"
        described = json.loads((extra / "tf_dlrm.json").read_text("utf-8"))
        size = format_bytes(described["table_bytes"])
        print(
            f"{path}: signatures {', '.join(described['signatures'])}; "
            f"{size} of {described['table_dtype']} tables\n"
            f"Example requests: {extra / 'README.md'}"
        )


@dataclasses.dataclass
class Verify:
    """Replay an export's recorded requests with TensorFlow's C library, without Python.

    This is the code that a server runs; the answers must equal those of the model.
    """

    saved_model: tyro.conf.Positional[str]
    """Folder of one version, or of all versions to verify the newest."""
    library: str | None = None
    """Folder with the libtensorflow_cc.so.2 of another TensorFlow; default: the
    installed one."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        return [f"load {self.saved_model} and replay its recorded requests"]

    def run(self) -> None:
        """Verify the export."""
        import tf_dlrm

        results = tf_dlrm.serving.verify_saved_model(self.saved_model, self.library)
        largest = results["largest_difference"].items()
        rows = [[name, f"{difference:.1e}"] for name, difference in largest]
        print(*align([["signature", "largest difference"], *rows]), sep="\n")
        print(
            f"{self.saved_model}: TensorFlow {results['library']} loaded it in "
            f"{results['seconds_to_load']:.1f} s and returned the recorded answers."
        )
