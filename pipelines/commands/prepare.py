"""`tf-dlrm prepare`: from click logs to binary records, vocabulary and report."""

import dataclasses
import pathlib
from typing import ClassVar

import tyro

from pipelines.commands.shared import Files, describe_files, load_schema
from pipelines.prepare.options import Options


@dataclasses.dataclass
class Prepare:
    """Convert click logs to binary records for training, with vocabulary and report.

    After an interruption, run it again with the same options to resume where it
    stopped.
    """

    parameters: ClassVar = {"paths": "input"}

    input: Files
    """Labelled files (text, plain or compressed, or Parquet), or quoted patterns such
    as 'day_*.gz'; in order of time, unless the schema has a time column."""
    out: str
    """Folder for records, vocabulary.tsv, report.html, report.json and bad_rows.tsv."""
    valid: Files = dataclasses.field(default_factory=list)
    """Labelled files for validation, in addition to --valid-share of the input."""
    test: Files = dataclasses.field(default_factory=list)
    """Labelled files for the test, in addition to --test-share of the input."""
    vocabulary: str | None = None
    """vocabulary.tsv of an earlier run; default: build one from the training rows."""
    schema: str | None = None
    """JSON file that describes the columns of the files, as `tf-dlrm schema` writes it,
    or the name of a built-in layout, such as avazu; default: the schema of the
    vocabulary, otherwise criteo."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""
    options: tyro.conf.OmitArgPrefixes[Options] = dataclasses.field(
        default_factory=Options
    )

    @property
    def needs_tensorflow(self) -> bool:
        """True if the options need TensorFlow."""
        return self.options.multi_hot != "no"

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        from pipelines.files import expand_paths

        options = self.options
        load_schema(self.schema)
        lines = [f"read {describe_files(expand_paths(self.input))}"]
        for name, paths in (("validation", self.valid), ("the test", self.test)):
            if paths:
                lines.append(f"read {describe_files(expand_paths(paths))} for {name}")
        for name, share in (
            ("validation", options.valid_share),
            ("the test", options.test_share),
        ):
            if share:
                rows = "the last" if options.split_by == "time" else "a random"
                lines.append(f"use {rows} {share:.1%} of the input for {name}")
        if self.vocabulary:
            lines.append(f"take the ids of values from {self.vocabulary}")
        elif options.hash_buckets:
            tables = "of one table" if options.shared_table else "per feature"
            lines.append(f"hash values into {options.hash_buckets:,} ids {tables}")
        else:
            lines.append(
                f"build a vocabulary of values seen at least {options.min_count} times"
            )
        if options.negative_sampling_rate < 1:
            lines.append(
                f"keep a share of {options.negative_sampling_rate:.3g} of the training "
                "rows without a click, chosen by --seed"
            )
        lines.append(
            f"write {self.out}/: records in shards of {options.rows_per_shard:,} rows, "
            "vocabulary.tsv, report.html, report.json, manifest.json, and "
            "bad_rows.tsv if there are bad rows"
        )
        return lines

    def run(self) -> None:
        """Prepare the files."""
        from pipelines import prepare
        from pipelines import vocabulary as vocabularies

        vocabulary = vocabularies.load(self.vocabulary) if self.vocabulary else None
        manifest = prepare.prepare(
            self.input,
            self.out,
            self.options,
            self.valid,
            self.test,
            vocabulary,
            load_schema(self.schema),
        )
        rows = ", ".join(f"{s} {manifest.num_rows(s):,}" for s in manifest.splits)
        sizes = manifest.schema.vocabulary_sizes
        out = pathlib.Path(self.out)
        from pipelines.vocabulary.hashing import NUM_FINGERPRINTS

        listed = [size for size in sizes if size < NUM_FINGERPRINTS]
        num_ids = sizes[0] if self.options.shared_table else sum(listed)
        growing = len(sizes) - len(listed)
        note = f", {growing} of them with growing ids" if growing else ""
        print(f"{out}: {rows} rows; {num_ids:,} ids of {len(sizes)} features{note}")
        if self.options.negative_sampling_rate < 1:
            print(
                f"Left out {manifest.origin['num_negatives_left_out']:,} training rows "
                "without a click (--negative-sampling-rate "
                f"{self.options.negative_sampling_rate:g})"
            )
        if (out / prepare.BAD_ROWS).exists():
            print(f"Bad rows, with file, line and reason: {out / prepare.BAD_ROWS}")
        print(f"Report on the columns: {out / 'report.html'}")
        print(f"Next: tf-dlrm train --train {out} --out runs/mine")
