"""`tf-dlrm generate` and `profile-trace`: rows from nothing, or as those of a log."""

import dataclasses
import os
import pathlib
from typing import ClassVar, Literal

from pipelines.commands.shared import Files, check_output, describe_files, load_schema
from pipelines.runtime import UserError

# Which options change which source; others are refused, since they would do nothing.
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
    """Write generated click logs: with planted clicks, random, or as a measured log.

    planted: Criteo's columns, with clicks that a model can learn. random: any number
    of features and ids, for measuring speed. trace: ids that come back as those of a
    log that `tf-dlrm profile-trace` measured, so that caches work as on real ones.
    Beside the output, OUTPUT.json says what the best possible scores on it are.
    """

    parameters: ClassVar = {"num_rows": "rows", "path": "output"}

    output: str
    """File to write, compressed if it ends in .gz; a folder for --format binary."""
    schema: str | None = None
    """planted: file of a schema, or a built-in one, whose columns and format the rows
    have; default: Criteo's."""
    source: Literal["planted", "random", "trace"] = "planted"
    """Kind of rows."""
    format: Literal["tsv", "binary"] = "tsv"
    """Criteo's text (13 dense and 26 sparse features), or records for training."""
    rows: int = 100_000
    """Rows to write."""
    first_row: int = 0
    """Number of the first row: other rows of the same seed make a test set."""
    seed: int = 0
    """Seed of truth and rows."""
    click_rate: float | None = None
    """Mean click probability; None: 0.25 for planted, 0.5 for the others."""
    vocabulary_sizes: tuple[int, ...] | None = None
    """Ids of each sparse feature; default: as Criteo Kaggle or the profile."""
    num_dense: int | None = None
    """random, trace: dense features; None: 13."""
    distribution: Literal["uniform", "normal"] | None = None
    """random: of the ids; None: uniform. normal: around the middle of the table."""
    hotness: tuple[int, ...] | None = None
    """random: ids in a bag, one number or one for each sparse feature; None: 1."""
    fixed_hotness: bool = True
    """random: whether every bag has that many ids; if not, 1 to that many."""
    profile: str | None = None
    """trace: the file of `tf-dlrm profile-trace`."""
    rows_per_shard: int | None = None
    """binary: rows of a shard; None: 1,048,576."""
    dry_run: bool = False
    """Only print what would happen."""

    def plan(self) -> list[str]:
        """Return what would happen, for --dry-run."""
        source = self._checked_source()
        last = self.first_row + self.rows
        numbered = f"rows {self.first_row:,} to {last:,} of seed {self.seed}"
        lines = []
        if self.source != "planted":
            sizes = source.vocabulary_sizes
            lines = [
                f"generate {source.num_dense} dense and {len(sizes)} sparse features "
                f"with {sum(sizes):,} ids, {self.source}"
            ]
        return [
            *lines,
            f"write {numbered} to {self.output}, and the best possible scores to "
            f"{self._report_path()}",
        ]

    def run(self) -> None:
        """Generates."""
        from pipelines.progress import bar
        from pipelines.runtime import locks
        from pipelines.whole_files import write_text

        source = self._checked_source()
        write, options = source.write, {}
        if self.format == "binary":
            write = source.write_binary
            if self.rows_per_shard is not None:
                options["rows_per_shard"] = self.rows_per_shard
        # The rows and the report must be of the same command.
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

    def _checked_source(self):
        source = self._source()
        source.blocks(self.rows, self.first_row)  # which generates nothing yet
        if self.format == "tsv":
            source.check_text()
        self._check_output()
        return source

    def _source(self):
        """The generator; options that would be ignored are mistakes."""
        from pipelines import synthetic

        given = {}
        for name in sorted({name for names in _OPTIONS.values() for name in names}):
            value = getattr(self, name)
            if value is None or (name == "fixed_hotness" and value):
                continue
            if name not in _OPTIONS[self.source]:
                option = ("no-" if value is False else "") + name.replace("_", "-")
                raise UserError(
                    f"--{option} has no effect with --source {self.source}."
                )
            given[name] = value
        if self.rows_per_shard is not None and self.format == "tsv":
            raise UserError("--rows-per-shard has no effect with --format tsv.")
        if len(given.get("hotness", ())) == 1:
            given["hotness"] = given["hotness"][0]
        if self.click_rate is not None:
            given["click_rate"] = self.click_rate
        schema = load_schema(self.schema)
        if schema is not None:
            self._check_schema(given)
        if schema is not None and schema != type(schema).criteo():
            return synthetic.SchemaLog(schema, seed=self.seed, **given)
        if self.source == "planted":
            return synthetic.Planted(seed=self.seed, **given)
        if self.source == "random":
            return synthetic.Random(seed=self.seed, **given)
        if self.profile is None:
            raise UserError(
                "--source trace needs --profile, the file that `tf-dlrm profile-trace` "
                "makes of a log."
            )
        given["profile"] = synthetic.Profile.load(self.profile)
        return synthetic.Trace(seed=self.seed, **given)

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
            raise UserError(f"--output {folder} is a file; name a folder for binary.")
        if (folder / "manifest.json").exists():
            raise UserError(f"--output {folder} holds finished records already.")
        check_output(self._report_path())


@dataclasses.dataclass
class ProfileTrace:
    """Measure how the ids of click logs come back, for `generate --source trace`."""

    parameters: ClassVar = {"paths": "input"}

    input: Files
    """Labelled files (plain or .gz) or quoted patterns such as 'day_*.gz', in order."""
    output: str
    """JSON file to write: counts of distances, no ids and no rows."""
    schema: str | None = None
    """JSON file that describes the columns, or the name of a layout that ships; None:
    Criteo's."""
    max_bad_share: float = 1e-4
    """Largest share of rows that may be bad before the run stops."""
    dry_run: bool = False
    """Only print what would happen."""

    def plan(self) -> list[str]:
        """Return what would happen, for --dry-run."""
        paths = self._paths()
        schema = load_schema(self.schema or "criteo")
        return [
            f"read {describe_files(paths)}",
            f"write {self.output}: LRU stack distances and bag sizes of "
            f"{len(schema.sparse)} features",
        ]

    def run(self) -> None:
        """Measures."""
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
            f"{sum(f.num_distinct for f in profile.features):,} ids; a cache of 100 "
            f"rows a table hits {rates[0]:.1%}, of 10,000 {rates[1]:.1%}"
            + f"; {bad:,} bad rows in {quarantine.path}"
            * bool(bad)
        )

    def _paths(self):
        from pipelines.files import expand_paths

        paths = expand_paths(self.input)
        check_output(self.output, paths)
        return paths
