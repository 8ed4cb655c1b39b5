"""The passes of `prepare`, which resume after an interruption."""

import collections
import dataclasses
import functools
import json
import pathlib
import shutil

from pipelines.files import stamp
from pipelines.formats.diagnosis import no_rows
from pipelines.formats.layout import Wanted
from pipelines.formats.scanning import scan
from pipelines.ordered_pool import map_in_order
from pipelines.prepare import column_report
from pipelines.prepare import segments as working
from pipelines.prepare.input_files import Inputs
from pipelines.prepare.options import SPLITS, Options
from pipelines.prepare.rows import (
    encode_blocks,
    make_expander,
    record_schema,
)
from pipelines.prepare.shards import Written, skip
from pipelines.prepare.splits import Splits
from pipelines.prepare.statistics import Statistics
from pipelines.progress import bar
from pipelines.quarantine import Quarantine
from pipelines.records.layout import MANIFEST, Manifest, Shard
from pipelines.records.writer import ShardWriter
from pipelines.runtime import UserError, disk, locks, remote_files
from pipelines.schema import Schema
from pipelines.vocabulary import Vocabulary
from pipelines.vocabulary.counting import Counters
from pipelines.vocabulary.hashing import hash_vocabulary
from pipelines.vocabulary.learning import count_numbers
from pipelines.vocabulary.numbering import (
    Numbering,
    StoredNumbering,
    number,
    tally,
)
from pipelines.vocabulary.schema_part import schema_of
from pipelines.whole_files import write_text

WORK = "unfinished"
VOCABULARY = "vocabulary.tsv"
BAD_ROWS = "bad_rows.tsv"
_STATE_VERSION = 3


def prepare(
    paths,
    out,
    options: Options | None = None,
    valid_paths=None,
    test_paths=None,
    vocabulary=None,
    schema: Schema | None = None,
) -> Manifest:
    """Prepare labelled click logs for training.

    Writes to `out`: records in shards with a manifest (`pipelines.records`), the
    vocabulary, `report.json` and `report.html` on the columns, and `bad_rows.tsv` if
    there are bad rows. Call it again after an interruption to resume where it stopped.
    The folder is locked against other processes meanwhile.

    Args:
        paths: Labelled files in order of time: a path, a glob or a sequence of them;
            text, plain or compressed, or Parquet.
        out: Folder to write to.
        options: The options; default: `Options()`.
        valid_paths: Files for validation, in addition to the shares in `options`.
        test_paths: Files for the test, in addition to the shares in `options`.
        vocabulary: A `Vocabulary` or `HashVocabulary` to use; default: build one from
            the training rows with the options.
        schema: The columns; default: those of the vocabulary, or `Schema.criteo()`.

    Returns:
        The manifest of the records.

    Raises:
        FileExistsError: If `out` already contains finished records.
        ValueError: If a file is damaged or changes meanwhile, there are no valid rows,
            or another process is writing to `out`.
        pipelines.quarantine.BadRowsError: If too many rows are bad.

    Example:

    >>> import os, tempfile
    >>> from pipelines import prepare, synthetic
    >>> folder = tempfile.mkdtemp()
    >>> log = os.path.join(folder, "day_0")
    >>> report = synthetic.Planted(seed=0).write(log, num_rows=1000)
    >>> options = prepare.Options(min_count=2, valid_share=0.1)
    >>> out = os.path.join(folder, "data")
    >>> manifest = prepare.prepare(log, out, options)  # doctest: +ELLIPSIS
    Reading...
    >>> manifest.num_rows("train"), manifest.num_rows("valid")
    (900, 100)
    """
    inputs = Inputs.find(paths, valid_paths, test_paths)
    out = pathlib.Path(out)
    kept = f"Finished work is kept in {out / WORK}."
    with disk.advising(kept, "run it again to resume"), locks.locked(out):
        for file, what in ((MANIFEST, "finished records"), ("config.json", "a run")):
            if (out / file).exists():
                raise FileExistsError(
                    f"{out} already contains {what}. Name another folder, or remove it."
                )
        options = options or Options()
        return _Preparation(inputs, out, options, vocabulary, schema).run()


class _Preparation:
    def __init__(self, inputs, out, options, vocabulary, schema):
        self._inputs, self._out, self._options = inputs, out, options
        self._given, self._cuts = vocabulary, None
        self._schema = schema_of(schema, vocabulary)
        options.check_schema(self._schema)
        has_cuts = options.split_by == "time" and self._schema.time is not None
        self._has_cuts = has_cuts and options.valid_share + options.test_share > 0
        self._splits = Splits(options, inputs.splits)
        self._work = out / WORK
        self._state = self._resume_or_start()
        self._segments = working.Segments(self._work / "segments")
        self._quarantine = Quarantine(out / BAD_ROWS, options.max_bad_share)

    def run(self) -> Manifest:
        self._read_lines()
        statistics = self._count()
        vocabulary, tallies = self._number(statistics)
        vocabulary.save(self._out / VOCABULARY)
        shards = self._write(vocabulary, statistics)
        self._check_unchanged()
        report = column_report.make(
            statistics,
            statistics.describe_numbers(),
            tallies,
            vocabulary,
            self._options,
            self._quarantine,
        )
        column_report.write(report, self._out)
        schema = record_schema(vocabulary)
        expander = make_expander(vocabulary, self._options)
        origin = self._origin(expander, statistics.num_left_out)
        manifest = Manifest(schema, tuple(shards), vocabulary.digest, origin)
        manifest.save(self._out)
        shutil.rmtree(self._work)
        return manifest

    # Start or resume

    def _resume_or_start(self):
        """Keep the work of an earlier run of the same job; otherwise restart."""
        state = {
            "version": _STATE_VERSION,
            "options": dataclasses.asdict(self._options),
            "vocabulary": getattr(self._given, "digest", None),
            "inputs": self._inputs.describe(),
            "schema": self._schema.digest,
        }
        path = self._work / "state.json"
        if not path.is_file() or _read_state(path) != state:
            shutil.rmtree(self._work, ignore_errors=True)
            self._work.mkdir(parents=True)
            write_text(path, json.dumps(state))
        return state

    def _check_unchanged(self):
        for path, before in zip(self._inputs.paths, self._state["inputs"], strict=True):
            if list(stamp(path)) != before[2:]:
                raise UserError(f"{path}: changed while it was read. Run this again.")

    def _origin(self, expander, num_left_out):
        """Return facts for the manifest, which are the same for equal runs."""
        options = dataclasses.asdict(self._options)
        del options["memory_bytes"]
        inputs = [
            {"name": remote_files.name_of(path), "bytes": size, "split": split}
            for path, split, size, *_ in self._state["inputs"]
        ]
        return {
            "made_by": "tf-dlrm prepare",
            "options": options,
            "inputs": inputs,
            "num_negatives_left_out": num_left_out,
            "multi_hot": None if expander is None else expander.get_config(),
        }

    # Lines to segments

    def _read_lines(self):
        segments = self._segments
        start = self._replay_bad_rows()
        done = sum(place.num_lines for place in segments.places)
        if done:
            print(f"Resuming after {done:,} rows that were read before.")
        blocks = scan(
            self._inputs.paths,
            self._quarantine,
            self._schema,
            Wanted(),
            start,
            functools.partial(working.pack_rows, self._schema),
        )
        with bar("Reading rows", first=done) as update:
            for block in blocks:
                rows = block.rows
                segments.append(
                    block.file,
                    block.first_line,
                    block.end_offset,
                    rows.num_lines,
                    block.made,
                    len(rows.labels),
                    [(block.first_line + at, line, why) for at, line, why in rows.bad],
                )
                done += rows.num_lines
                update(done)
        segments.close()
        self._quarantine.check()
        if not any(place.num_rows for place in segments.places):
            raise UserError(no_rows(self._inputs.paths, self._schema))

    def _replay_bad_rows(self):
        """Restore the bad rows of an earlier run; return the position of its end."""
        bad, start = self._segments.bad_lines(), (0, 0, 0)
        for place in self._segments.places:
            end = place.first_line + place.num_lines
            lines = [
                line
                for line in bad.get(place.file, ())
                if place.first_line <= line[0] < end
            ]
            path = self._inputs.paths[place.file]
            self._quarantine.record(path, place.first_line, place.num_lines, lines)
            start = place.file, place.end_offset, end
        return start

    def _blocks(self, make):
        """Yield the results of `make(content, splits)` for all blocks, in order."""
        num_divided = sum(
            place.num_rows
            for place in self._segments.places
            if self._splits.is_divided(place.file)
        )

        def work(place, first_row, packed):
            content = working.unpack(packed)
            splits = self._splits.assign(
                place.file,
                first_row,
                content.rows.labels,
                num_divided,
                content.rows.times,
                self._cuts,
            )
            return place, make(content, splits)

        return map_in_order(work, self._numbered(), "prepare")

    def _numbered(self):
        """Yield each block with the number of its first row, as `Splits` counts."""
        next_row = collections.Counter()
        for place, packed in self._segments.read():
            is_divided = self._splits.is_divided(place.file)
            yield place, next_row[is_divided], packed
            next_row[is_divided] += place.num_rows

    # Counts to ids

    def _find_cuts(self):
        """Return the event times at which the validation and test splits begin."""
        counters = Counters(["times"], self._options.memory_bytes, self._work)
        for place, packed in self._segments.read():
            if self._splits.is_divided(place.file):
                times = working.unpack(packed).rows.times
                counters.of[0].add(*count_numbers(times))
                counters.limit_memory()
        cuts = self._splits.find_cuts(counters.of[0])
        counters.of[0].forget()
        return cuts

    def _count(self) -> Statistics:
        if self._has_cuts:
            self._cuts = self._find_cuts()
        memory = self._options.memory_bytes
        statistics = Statistics(self._schema, memory, self._work)
        done = 0
        with bar("Counting values", self._num_rows()) as update:
            for place, counted in self._blocks(statistics.count):
                statistics.add(counted)
                done += place.num_rows
                update(done)
        if not statistics.num_rows[0]:
            raise UserError("No training rows are left after splitting and sampling.")
        shares = (self._options.valid_share, self._options.test_share)
        for name, share, num_rows in zip(SPLITS[1:], shares, statistics.num_rows[1:]):
            if self._cuts is not None and share and not num_rows:
                raise UserError(
                    f"No rows are left for the split {name!r}: rows with the same "
                    "event time stay together, and the last time has more than "
                    f"{share:.1%} of the rows. Raise `{name}_share`, or set "
                    "`split_by=random`."
                )
        return statistics

    def _number(self, statistics):
        options, counts = self._options, statistics.of_values
        counters = counts.counters.of[: len(self._schema.tables)]
        given = self._given
        if given is None and options.hash_buckets is not None:
            given = hash_vocabulary(
                options.hash_buckets, options.shared_table, self._schema
            )
        if given is not None:
            return given, [tally(counter) for counter in counters]
        learned = counts.learned  # must come first: it adds the counts of quantiles
        numberings, tallies = [], []
        with bar("Numbering values", len(counters), "features") as update:
            for table, counter in enumerate(counters):
                numbering = counts.hashed(table)
                if numbering is not None:
                    found = tally(counter)
                else:
                    min_count = counts.min_count(table, options.min_count)
                    numbering, found = number(
                        counter, min_count, options.max_vocabulary_size
                    )
                counter.forget()
                numberings.append(self._keep(numbering, numberings))
                tallies.append(found)
                update(len(tallies))
        vocabulary = Vocabulary.of_numberings(
            numberings,
            min_count=options.min_count,
            max_size=options.max_vocabulary_size,
            num_rows=statistics.num_rows_counted,
            num_bad_rows=self._quarantine.num_bad,
            schema=self._schema,
            learned=learned,
        )
        return vocabulary, tallies

    def _keep(self, numbering, others):
        """Keep a numbering in memory, or in a file if all of them take too much."""
        in_memory = sum(n.num_bytes for n in others if isinstance(n, Numbering))
        if in_memory + numbering.num_bytes <= self._options.memory_bytes // 2:
            return numbering
        return StoredNumbering(self._work / f"numbering-{len(others)}", numbering)

    # Ids to records

    def _write(self, vocabulary, statistics) -> list[Shard]:
        written = Written(self._work / "shards.json")
        schema = record_schema(vocabulary)
        writers = {}
        for split, name in enumerate(SPLITS):
            if split and not statistics.num_rows[split]:
                continue
            writers[split] = ShardWriter(
                self._out,
                schema,
                self._options.rows_per_shard,
                name,
                finished=written.of(name),
                on_shard=written.add,
                soft_labels=self._schema.label.soft,
            )
        skipped = {s: sum(x.num_rows for x in written.of(SPLITS[s])) for s in writers}
        done, total = 0, int(statistics.num_rows.sum())
        try:
            with bar("Writing records", total) as update:
                for batches in encode_blocks(
                    self._blocks, vocabulary, self._options, self._work, total
                ):
                    for split, batch in batches:
                        batch, skipped[split] = skip(batch, skipped[split])
                        writers[split].append(*batch)
                        done += len(batch.labels)
                        update(done)
                return [s for writer in writers.values() for s in writer.finish()]
        except BaseException:
            for writer in writers.values():
                writer.abandon()
            raise

    def _num_rows(self):
        return sum(place.num_rows for place in self._segments.places)


def _read_state(path):
    try:
        return disk.read_json(path)
    except ValueError:
        return None  # damaged by a full disk or by an edit
