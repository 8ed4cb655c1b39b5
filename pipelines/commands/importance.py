"""`tf-dlrm importance` and `tf-dlrm tables`: what features and tables are worth."""

import dataclasses
import pathlib
from typing import Annotated, ClassVar, Literal

import tyro

from pipelines.commands.shared import Files, check_output, describe_input
from pipelines.runtime import UserError

_Names = Annotated[list[str], tyro.conf.arg(metavar="FEATURE [FEATURE ...]")]
_Groups = Annotated[
    list[str], tyro.conf.arg(metavar="NAME=FEATURE,... [NAME=FEATURE,... ...]")
]


@dataclasses.dataclass
class FeatureImportance:
    """Measure how much worse a run predicts if a feature's values are shuffled.

    Writes importance.json, importance.csv and the chart importance.png.
    """

    parameters: ClassVar = {"num_rows": "rows", "paths": "input"}

    model: str
    """Folder of the run."""
    input: Files
    """Labelled files that the run was not trained on, or the folder that
    `tf-dlrm prepare` wrote."""
    which: Literal["saved", "best", "last"] = "saved"
    """Model to measure: the one that the run saved as its model, its best or its
    last."""
    split: str = "test"
    """Split to read, if the input is a prepared folder."""
    out: str | None = None
    """Folder for the results; default: the folder of the run."""
    rows: int = 100_000
    """Largest number of rows to read, from the first. They are held in memory: 4 bytes
    for each feature of a row, and more for bags."""
    repeats: int = 5
    """Number of times that each feature is shuffled."""
    seed: int = 0
    """Seed of the shuffles."""
    features: _Names = dataclasses.field(default_factory=list)
    """Features to measure; default: all."""
    groups: _Groups = dataclasses.field(default_factory=list)
    """Features to shuffle together, such as user=age,city: features that carry the
    same information are important only together."""
    max_bad_share: float = 1e-4
    """Largest share of bad rows; with more, the command stops."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        paths = self._check()
        schema = self._schema()
        num_features = len(self.features or (*schema.dense, *schema.sparse))
        units = f"{num_features:,} features" + (
            f" and {len(self.groups):,} groups" if self.groups else ""
        )
        return [
            f"read up to {self.rows:,} rows of {describe_input(paths)}",
            f"score them {self.repeats:,} times for each of {units} with {self.model}",
            f"write {self._file('.json')}, .csv and .png",
        ]

    def _file(self, ending):
        return str(pathlib.Path(self.out or self.model) / f"importance{ending}")

    def _schema(self):
        from pipelines.runs.folder import RunFolder

        return RunFolder(self.model).read_schema()

    def _check(self):
        from pipelines.evaluation.permutation_importance import check
        from pipelines.files import expand_paths
        from pipelines.log_data import find_records
        from pipelines.runs.folder import RunFolder

        RunFolder(self.model).find_model(self.which)
        check(
            self._schema(),
            self.features,
            parse_groups(self.groups),
            self.repeats,
            self.seed,
            self.rows,
        )
        folder = find_records(self.input)
        paths = expand_paths(self.input) if folder is None else [folder]
        for ending in (".json", ".csv", ".png"):
            check_output(self._file(ending), paths, "--out")
        return paths

    def run(self) -> None:
        """Measure the features."""
        from pipelines.runtime import locks

        paths = self._check()
        pathlib.Path(self.out or self.model).mkdir(parents=True, exist_ok=True)
        with locks.locked_file(self._file(".json")):
            self._run(paths)

    def _run(self, paths):
        from pipelines.evaluation import importance, importance_chart
        from pipelines.quarantine import Quarantine
        from pipelines.runs.folder import RunFolder, write_json

        folder = RunFolder(self.model)
        parser = folder.load_parser()
        model = folder.load_model(parser, self.which)
        result = importance(
            model,
            parser,
            paths,
            features=self.features or None,
            groups=parse_groups(self.groups),
            repeats=self.repeats,
            seed=self.seed,
            num_rows=self.rows,
            quarantine=Quarantine(self._file(".bad_rows.tsv"), self.max_bad_share),
            split=self.split,
        )
        facts = {"model": self.model, "which": self.which, "input": paths}
        write_json(self._file(".json"), facts | result.describe())
        result.write_csv(self._file(".csv"))
        importance_chart.draw(result, self._file(".png"))
        print("\n".join(["", *result.table()]))
        print(f"All values: {self._file('.json')}, .csv and .png")


def parse_groups(texts: list[str]) -> dict[str, list[str]]:
    """Return the features of each group from texts such as `"user=age,city"`.

    Raises:
        ValueError: If a text has another form, or a name is repeated.
    """
    groups: dict[str, list[str]] = {}
    for text in texts:
        name, sign, members = text.partition("=")
        names = [member for member in members.split(",") if member]
        if not (name and sign and names):
            raise UserError(
                "`groups` must have the form NAME=FEATURE,FEATURE,... Received: "
                f"{text!r}"
            )
        if name in groups:
            raise UserError(f"`groups` names a group twice: {name}")
        groups[name] = names
    return groups


@dataclasses.dataclass
class InspectTables:
    """Show the size and health of a run's embedding tables, and how to shrink them.

    Writes tables.json.
    """

    parameters: ClassVar = {}

    model: str
    """Folder of the run."""
    which: Literal["saved", "best", "last"] = "saved"
    """Model to inspect: the one that the run saved as its model, its best or its
    last."""
    out: str | None = None
    """Folder for tables.json; default: the folder of the run."""
    sample_rows: int = 2000
    """Rows of each table among which near duplicates are counted."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        self._check()
        return [f"read the tables of {self.model}", f"write {self._file()}"]

    def _file(self):
        return str(pathlib.Path(self.out or self.model) / "tables.json")

    def _check(self):
        from pipelines.evaluation.table_inspection import check
        from pipelines.runs.folder import RunFolder

        RunFolder(self.model).find_model(self.which)
        check(self.sample_rows)
        check_output(self._file(), option="--out")

    def run(self) -> None:
        """Inspect the tables."""
        from pipelines.evaluation import inspect_tables, table_report
        from pipelines.runs.folder import RunFolder, write_json
        from pipelines.runtime import locks

        self._check()
        pathlib.Path(self.out or self.model).mkdir(parents=True, exist_ok=True)
        with locks.locked_file(self._file()):
            folder = RunFolder(self.model)
            parser = folder.load_parser()
            model = folder.load_model(parser, self.which)
            reports = inspect_tables(model, parser.vocabulary, self.sample_rows)
            facts = {"model": self.model, "which": self.which}
            facts["tables"] = [report.describe() for report in reports]
            write_json(self._file(), facts)
            print("\n".join(table_report.lines(reports)))
            print(f"All values: {self._file()}")
