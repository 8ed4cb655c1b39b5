"""`tf-dlrm prepare`: click logs -> vocabulary, binary records, report."""

import dataclasses
import pathlib
from typing import ClassVar

import tyro

from pipelines.commands.shared import Files, describe_files, load_schema
from pipelines.prepare.options import Options


@dataclasses.dataclass
class Prepare:
    """Turn click logs into records that train at once, with vocabulary and report.

    An interrupted run resumes where it stopped when it is started again.
    """

    parameters: ClassVar = {"paths": "input"}

    input: Files
    """Labelled files in the order of time (text, plain or compressed, or Parquet), or
    quoted patterns such as 'day_*.gz'."""
    out: str
    """Folder for records, vocabulary.tsv, report.html, report.json, bad_rows.tsv."""
    valid: Files = dataclasses.field(default_factory=list)
    """Labelled files for validation, beside --valid-share of the input."""
    test: Files = dataclasses.field(default_factory=list)
    """Labelled files for the test, beside --test-share of the input."""
    vocabulary: str | None = None
    """vocabulary.tsv of an earlier run to use; None: build one of the training rows."""
    schema: str | None = None
    """JSON file that describes the columns of the files, as `tf-dlrm schema` writes it,
    or the name of a layout that ships, such as avazu. None: that of the vocabulary,
    else Criteo's."""
    dry_run: bool = False
    """Only print what would happen."""
    options: tyro.conf.OmitArgPrefixes[Options] = dataclasses.field(
        default_factory=Options
    )

    def plan(self) -> list[str]:
        """Return what would happen, for --dry-run."""
        from pipelines.files import expand_paths

        options = self.options
        load_schema(self.schema)
        lines = [f"read {describe_files(expand_paths(self.input))}"]
        for name, paths in (("validation", self.valid), ("the test", self.test)):
            if paths:
                lines.append(f"for {name}, {describe_files(expand_paths(paths))}")
        for name, share in (
            ("validation", options.valid_share),
            ("the test", options.test_share),
        ):
            if share:
                which = "last" if options.split_by == "time" else "random"
                lines.append(f"take {which} {share:.1%} of the input for {name}")
        if self.vocabulary:
            lines.append(f"number values as {self.vocabulary} does")
        elif options.hash_buckets:
            where = "of one table" if options.shared_table else "a feature"
            lines.append(f"hash values into {options.hash_buckets:,} ids {where}")
        else:
            lines.append(f"number values seen at least {options.min_count} times")
        if options.negative_sampling_rate < 1:
            lines.append(
                f"keep {options.negative_sampling_rate:.3g} of the training rows "
                "without a click, chosen by --seed"
            )
        lines.append(
            f"write {self.out}/: records in shards of {options.rows_per_shard:,} rows, "
            "vocabulary.tsv, report.html, report.json, manifest.json, and "
            "bad_rows.tsv if there are any"
        )
        return lines

    def run(self) -> None:
        """Prepares."""
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
        num_ids = sizes[0] if self.options.shared_table else sum(sizes)
        print(f"{out}: {rows} rows; {num_ids:,} ids of {len(sizes)} features")
        if self.options.negative_sampling_rate < 1:
            print(
                f"Left out {manifest.origin['num_negatives_left_out']:,} training rows "
                "without a click, by --negative-sampling-rate "
                f"{self.options.negative_sampling_rate:g}"
            )
        if (out / prepare.BAD_ROWS).exists():
            print(f"Bad rows, with file, line and reason: {out / prepare.BAD_ROWS}")
        print(f"About the columns: {out / 'report.html'}")
        print(f"Next: tf-dlrm train --train {out} --out runs/mine")
