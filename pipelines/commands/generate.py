"""`tf-dlrm generate` and `tf-dlrm profile-trace`: click logs that are generated."""

import dataclasses
import os
import pathlib
from typing import ClassVar, Literal

from pipelines.commands.shared import Files, check_output, describe_files, load_schema
from pipelines.runtime import UserError

# The options that each source reads; others are refused, as they would have no effect.
_OPTIONS = {
    "planted": ("vocabulary_sizes",),
    "random": (
        "vocabulary_sizes",
        "num_dense",
        "distribution",
        "hotness",
        "fixed_hotness",
    ),
    "trace": ("vocabulary_sizes", "num_dense", "profile"),
}


@dataclasses.dataclass
class Generate:
    """Generate click logs: with clicks to learn, random, or resembling a real log.

    planted: Criteo's columns, with clicks that a model can learn. random: any number
    of features and ids, to measure speed. trace: ids recur as in a log that
    `tf-dlrm profile-trace` measured, so that caches behave as on that log. The best
    possible scores on the rows are written to OUTPUT.json.
    """

    parameters: ClassVar = {
        "num_rows": "rows",
        "num_days": "days",
        "path": "output",
    }

    output: str
    """File to write, compressed if its name ends in .gz; for --format binary, a
    folder."""
    schema: str | None = None
    """planted: JSON file of a schema, or the name of a built-in one, whose columns and
    format the rows have; default: Criteo's."""
    source: Literal["planted", "random", "trace"] = "planted"
    """Kind of rows to generate."""
    format: Literal["tsv", "binary"] = "tsv"
    """tsv: text in Criteo's format (13 dense and 26 sparse features); binary: records
    to train on."""
    rows: int = 100_000
    """Number of rows to generate."""
    first_row: int = 0
    """Number of the first row. Rows with other numbers but the same seed make a test
    set."""
    seed: int = 0
    """Random seed of the click probabilities and the rows."""
    click_rate: float | None = None
    """Mean click probability; default: 0.25 for planted, 0.5 for random and trace."""
    vocabulary_sizes: tuple[int, ...] | None = None
    """Number of ids of each sparse feature; default: as in Criteo Kaggle or in the
    profile."""
    num_dense: int | None = None
    """random, trace: number of dense features; default: 13."""
    distribution: Literal["uniform", "normal"] | None = None
    """random: distribution of the ids; normal: around the middle of the table;
    default: uniform."""
    hotness: tuple[int, ...] | None = None
    """random: number of ids in a bag, one for all sparse features or one for each;
    default: 1."""
    fixed_hotness: bool = True
    """random: every bag has exactly that many ids; otherwise, from 1 to that many."""
    profile: str | None = None
    """trace: file that `tf-dlrm profile-trace` wrote."""
    days: int | None = None
    """planted: number of days in which ids come and go; OUTPUT is then a folder for
    their CSV files, a schema with growing tables, and the best possible scores.
    --rows are those of a day. Default: no days."""
    drift: float | None = None
    """Share of the ids that are replaced each day; needs --days; default: 0.02."""
    rows_per_shard: int | None = None
    """binary: rows in a shard; default: 1,048,576."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        if self.days is not None:
            self._drifting()
            return [
                f"write {self.days:,} days of {self.rows:,} rows each, a schema and "
                f"the best possible scores to {self.output}"
            ]
        source = self._checked_source()
        last = self.first_row + self.rows
        numbers = f"rows {self.first_row:,} to {last:,} of seed {self.seed}"
        lines = []
        if self.source != "planted":
            sizes = source.vocabulary_sizes
            lines = [
                f"generate {source.num_dense} dense and {len(sizes)} sparse features "
                f"with {sum(sizes):,} ids in total (source: {self.source})"
            ]
        return [
            *lines,
            f"write {numbers} to {self.output}, and the best possible scores to "
            f"{self._report_path()}",
        ]

    def run(self) -> None:
        """Generate the rows."""
        from pipelines.progress import bar
        from pipelines.runtime import locks
        from pipelines.whole_files import write_text

        if self.days is not None:
            self._run_days()
            return
        source = self._checked_source()
        write, options = source.write, {}
        if self.format == "binary":
            write = source.write_binary
            if self.rows_per_shard is not None:
                options["rows_per_shard"] = self.rows_per_shard
        # The rows and the report must come from the same command.
        lock = locks.locked if self.format == "binary" else locks.locked_file
        with lock(self.output), bar("Generating", self.rows) as update:
            report = write(
                self.output,
                self.rows,
                self.first_row,
                progress=lambda done, total: update(done),
                **options,
            )
            write_text(self._report_path(), report.to_json() + "\n", "the report")
        auc = "unknown" if report.best_auc is None else f"{report.best_auc:.4f}"
        print(
            f"{self.output}: {report.num_rows:,} rows, {report.click_rate:.1%} clicks; "
            f"best possible AUC {auc}, log loss {report.best_log_loss:.4f}"
        )

    def _drifting(self):
        """Return the source of days; refuse options that would have no effect."""
        from pipelines.synthetic import Drifting

        for field in dataclasses.fields(self):
            used = ("output", "rows", "seed", "click_rate", "days", "drift", "dry_run")
            if field.name not in used and getattr(self, field.name) != field.default:
                raise UserError(
                    f"--{field.name.replace('_', '-')} has no effect with --days: "
                    "leave it out."
                )
        if pathlib.Path(self.output).exists():
            raise UserError(
                f"--output {self.output} exists; --days needs a new folder."
            )
        given = {"drift": self.drift, "click_rate": self.click_rate}
        options = {name: value for name, value in given.items() if value is not None}
        return Drifting(seed=self.seed, **options)

    def _run_days(self):
        from pipelines.progress import bar

        source = self._drifting()
        with bar("Generating", self.days * self.rows) as update:
            reports = source.write_days(
                self.output, self.days, self.rows, lambda done, total: update(done)
            )
        first, last = reports[0].best_auc, reports[-1].best_auc
        print(
            f"{self.output}: {self.days:,} days of {self.rows:,} rows; best possible "
            f"AUC {first:.4f} on the first and {last:.4f} on the last day"
        )
        print(
            f"Next: tf-dlrm train --train '{self.output}/day_*.csv' --progressive "
            f"--schema {self.output}/schema.json --out runs/days"
        )

    def _checked_source(self):
        if self.drift is not None:
            raise UserError("--drift needs --days.")
        source = self._source()
        source.blocks(self.rows, self.first_row)  # which generates nothing yet
        if self.format == "tsv":
            source.check_text()
        self._check_output()
        return source

    def _source(self):
        """Return the generator; refuse options that would have no effect."""
        from pipelines import synthetic

        options = {}
        for name in sorted({name for names in _OPTIONS.values() for name in names}):
            value = getattr(self, name)
            if value is None or (name == "fixed_hotness" and value):
                continue
            if name not in _OPTIONS[self.source]:
                option = ("no-" if value is False else "") + name.replace("_", "-")
                raise UserError(
                    f"--{option} has no effect with --source {self.source}: leave it "
                    "out."
                )
            options[name] = value
        if self.rows_per_shard is not None and self.format == "tsv":
            raise UserError(
                "--rows-per-shard has no effect with --format tsv: leave it out."
            )
        if len(options.get("hotness", ())) == 1:
            options["hotness"] = options["hotness"][0]
        if self.click_rate is not None:
            options["click_rate"] = self.click_rate
        schema = load_schema(self.schema)
        if schema is not None:
            self._check_schema(options)
        if schema is not None and schema != type(schema).criteo():
            return synthetic.SchemaLog(schema, seed=self.seed, **options)
        if self.source == "planted":
            return synthetic.Planted(seed=self.seed, **options)
        if self.source == "random":
            return synthetic.Random(seed=self.seed, **options)
        if self.profile is None:
            raise UserError(
                "--source trace needs --profile, the file that `tf-dlrm profile-trace` "
                "writes for a log."
            )
        options["profile"] = synthetic.Profile.load(self.profile)
        return synthetic.Trace(seed=self.seed, **options)

    def _check_schema(self, given):
        if self.source != "planted":
            raise UserError(f"--schema has no effect with --source {self.source}.")
        if self.format == "binary":
            raise UserError(
                "--schema writes files in the schema's format. For records, run "
                "`tf-dlrm prepare` on them."
            )
        if "vocabulary_sizes" in given:
            raise UserError("--vocabulary-sizes has no effect with --schema.")

    def _report_path(self):
        return pathlib.Path(f"{os.path.normpath(self.output)}.json")

    def _check_output(self):
        if self.format == "tsv":
            check_output(self.output)
            return
        folder = pathlib.Path(self.output)
        if folder.exists() and not folder.is_dir():
            raise UserError(
                f"--output {folder} is a file; --format binary needs a folder."
            )
        if (folder / "manifest.json").exists():
            raise UserError(
                f"--output {folder} already contains finished records. Name another "
                "folder."
            )
        check_output(self._report_path())


@dataclasses.dataclass
class ProfileTrace:
    """Measure how ids recur in click logs, for `tf-dlrm generate --source trace`."""

    parameters: ClassVar = {"paths": "input"}

    input: Files
    """Labelled files in order of time, or quoted patterns such as 'day_*.gz'."""
    output: str
    """JSON file to write; it contains counts of distances, but no ids and no rows."""
    schema: str | None = None
    """JSON file that describes the columns, or the name of a built-in layout; default:
    criteo."""
    max_bad_share: float = 1e-4
    """Largest share of bad rows; with more, the command stops."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        paths = self._paths()
        schema = load_schema(self.schema or "criteo")
        return [
            f"read {describe_files(paths)}",
            f"write {self.output}: LRU stack distances and bag sizes of "
            f"{len(schema.sparse)} features",
        ]

    def run(self) -> None:
        """Measure the files."""
        from pipelines.progress import bar
        from pipelines.quarantine import Quarantine
        from pipelines.runtime import locks
        from pipelines.synthetic import profile_logs

        paths = self._paths()
        output = pathlib.Path(self.output)
        with locks.locked_file(output):
            quarantine = Quarantine(f"{output}.bad_rows.tsv", self.max_bad_share)
            with bar("Measuring distances") as update:
                schema = load_schema(self.schema)
                profile = profile_logs(paths, quarantine, update, schema)
            profile.save(output)
        accesses = sum(feature.num_accesses for feature in profile.features)
        rates = [
            sum(f.hit_rate(rows) * f.num_accesses for f in profile.features) / accesses
            for rows in (100, 10_000)
        ]
        bad = quarantine.num_bad
        print(
            f"{output}: {profile.num_rows:,} rows, "
            f"{sum(f.num_distinct for f in profile.features):,} ids; hit rate of a "
            f"cache of 100 rows per table {rates[0]:.1%}, of 10,000 {rates[1]:.1%}"
            + f"; {bad:,} bad rows in {quarantine.path}"
            * bool(bad)
        )

    def _paths(self):
        from pipelines.files import expand_paths

        paths = expand_paths(self.input)
        check_output(self.output, paths)
        return paths
