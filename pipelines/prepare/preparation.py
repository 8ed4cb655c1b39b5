"""The passes of `prepare`, and how they go on after a cut."""

import collections
import dataclasses
import json
import os
import pathlib
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from pipelines.criteo.encoding import interleave, transform
from pipelines.criteo.scanning import scan
from pipelines.files import expand_paths, stamp
from pipelines.prepare import report as reports
from pipelines.prepare import segments as working
from pipelines.prepare.options import SPLITS, Options
from pipelines.prepare.splits import Splits
from pipelines.prepare.statistics import Statistics
from pipelines.progress import bar
from pipelines.quarantine import Quarantine
from pipelines.records.layout import MANIFEST, Manifest, Schema, Shard, write_whole
from pipelines.records.store import Batch, cut, take
from pipelines.records.writer import ShardWriter
from pipelines.vocabulary import HashVocabulary, Vocabulary
from pipelines.vocabulary.numbering import number, tally

WORK = "unfinished"
VOCABULARY = "vocabulary.tsv"
BAD_ROWS = "bad_rows.tsv"
_STATE_VERSION = 1


def prepare(
    paths,
    out,
    options: Options | None = None,
    valid_paths=None,
    test_paths=None,
    vocabulary=None,
) -> Manifest:
    """Prepares labelled click logs for training.

    Writes into `out`: records in shards with a manifest (`pipelines.records`), the
    vocabulary, `report.json` and `report.html` about the columns, and `bad_rows.tsv`
    where there are any. Called again after a cut, it goes on where it stopped.

    Args:
        paths: Files of labelled rows, in the order of time: a path, a glob or a
            sequence of them; plain, gzip or zstd text, or Parquet.
        out: Folder for all of it.
        options: How; `None`: `Options()`.
        valid_paths: Files of rows for validation, beside those that `options` takes.
        test_paths: Files of rows for the test, likewise.
        vocabulary: A `Vocabulary` or `HashVocabulary` to use; `None` makes one from
            the training rows as the options say.

    Returns:
        The manifest of the records.

    Raises:
        FileExistsError: If `out` holds finished records.
        ValueError: If a file is damaged or changes meanwhile, or no row is good.
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
    inputs = _Inputs.find(paths, valid_paths, test_paths)
    out = pathlib.Path(out)
    if (out / MANIFEST).exists():
        raise FileExistsError(
            f"{out} holds finished records. Name another folder, or remove it."
        )
    return _Preparation(inputs, out, options or Options(), vocabulary).run()


class _Inputs(NamedTuple):
    """Files and the split of each; `None` where the options divide its rows."""

    paths: list[str]
    splits: list[str | None]

    @classmethod
    def find(cls, paths, valid_paths, test_paths):
        found, splits = [], []
        for split, some in (
            (None, paths),
            ("valid", valid_paths),
            ("test", test_paths),
        ):
            expanded = expand_paths(some) if some else []
            found += expanded
            splits += [split] * len(expanded)
        return cls(expand_paths(found), splits)  # raises if a file is named twice

    def describe(self):
        return [
            [os.path.abspath(path), split, *stamp(path)]
            for path, split in zip(self.paths, self.splits, strict=True)
        ]


class _Preparation:
    def __init__(self, inputs, out, options, vocabulary):
        self._inputs, self._out, self._options = inputs, out, options
        self._given = vocabulary
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
        report = reports.make(
            statistics,
            statistics.describe_integers(),
            tallies,
            vocabulary.sizes,
            self._options,
            self._quarantine,
        )
        reports.write(report, self._out)
        schema = Schema.criteo(vocabulary.sizes)
        manifest = Manifest(schema, tuple(shards), vocabulary.digest, self._origin())
        manifest.save(self._out)
        shutil.rmtree(self._work)
        return manifest

    # What a run is for

    def _resume_or_start(self):
        """Keeps the work of an earlier run of the same job; else starts anew."""
        state = {
            "version": _STATE_VERSION,
            "options": dataclasses.asdict(self._options),
            "vocabulary": getattr(self._given, "digest", None),
            "inputs": self._inputs.describe(),
        }
        path = self._work / "state.json"
        if not path.is_file() or json.loads(path.read_text()) != state:
            shutil.rmtree(self._work, ignore_errors=True)
            self._work.mkdir(parents=True)
            write_whole(path, json.dumps(state))
        return state

    def _check_unchanged(self):
        for path, before in zip(self._inputs.paths, self._state["inputs"], strict=True):
            if list(stamp(path)) != before[2:]:
                raise ValueError(f"{path}: changed while it was prepared. Start again.")

    def _origin(self):
        """For the manifest: nothing in which equal runs differ."""
        options = dataclasses.asdict(self._options)
        del options["memory_bytes"]
        inputs = [
            {"name": os.path.basename(path), "bytes": size, "split": split}
            for path, split, size, *_ in self._state["inputs"]
        ]
        return {"made_by": "tf-dlrm prepare", "options": options, "inputs": inputs}

    # Lines to segments

    def _read_lines(self):
        segments = self._segments
        start = self._replay_bad_rows()
        done = sum(place.num_lines for place in segments.places)
        if done:
            print(f"Going on after the {done:,} rows that were read before.")
        blocks = scan(self._inputs.paths, self._quarantine, start=start, make=_pack)
        with bar("Reading rows") as update:
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
            raise ValueError(f"None of the {done:,} rows is good.")

    def _replay_bad_rows(self):
        """Takes note of what an earlier run read; returns where it ended."""
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
        """Yields what `make(content, splits)` gave, of each block in order."""
        num_divided = sum(
            place.num_rows
            for place in self._segments.places
            if self._splits.is_divided(place.file)
        )

        def work(place, first_row, packed):
            content = working.unpack(packed)
            splits = self._splits.assign(
                place.file, first_row, content.labels, num_divided
            )
            return place, make(content, splits)

        num_workers = os.cpu_count() or 1
        next_row, waiting = collections.Counter(), collections.deque()
        with ThreadPoolExecutor(num_workers, "prepare") as executor:
            for place, packed in self._segments.read():
                kind = self._splits.is_divided(place.file)
                first_row = next_row[kind]
                waiting.append(executor.submit(work, place, first_row, packed))
                next_row[kind] += place.num_rows
                if len(waiting) > num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    # Counts to ids

    def _count(self) -> Statistics:
        statistics = Statistics(self._options.memory_bytes, self._work)
        done, total = 0, sum(place.num_rows for place in self._segments.places)
        with bar("Counting values", total) as update:
            for place, counted in self._blocks(statistics.count):
                statistics.add(counted)
                done += place.num_rows
                update(done)
        if not statistics.num_rows[0]:
            raise ValueError("No row is left to train on.")
        return statistics

    def _number(self, statistics):
        options, counters = self._options, statistics.of_values
        given = self._given
        if given is None and options.hash_buckets is not None:
            given = HashVocabulary(options.hash_buckets)
        if given is not None:
            return given, [tally(counter) for counter in counters]
        numberings, tallies = [], []
        with bar("Numbering values", len(counters), "features") as update:
            for counter in counters:
                found = number(counter, options.min_count, options.max_vocabulary_size)
                numberings.append(found[0])
                tallies.append(found[1])
                update(len(tallies))
        vocabulary = Vocabulary.of_numberings(
            numberings,
            min_count=options.min_count,
            max_size=options.max_vocabulary_size,
            num_rows=int(statistics.num_rows[0]),
            num_bad_rows=self._quarantine.num_bad,
        )
        return vocabulary, tallies

    # Ids to records

    def _write(self, vocabulary, statistics) -> list[Shard]:
        encoder = _Encoder(vocabulary, self._options)
        written = _Written(self._work / "shards.json")
        schema = Schema.criteo(vocabulary.sizes)
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
            )
        skipped = {s: sum(x.num_rows for x in written.of(SPLITS[s])) for s in writers}
        done, total = 0, int(statistics.num_rows.sum())
        try:
            with bar("Writing records", total) as update:
                for _, batches in self._blocks(encoder.encode):
                    for split, batch in batches:
                        batch, skipped[split] = _skip(batch, skipped[split])
                        writers[split].append(*batch)
                        done += len(batch.labels)
                        update(done)
                return [s for writer in writers.values() for s in writer.finish()]
        except BaseException:
            for writer in writers.values():
                writer.abandon()
            raise


class _Encoder:
    """Blocks of values -> batches of ids."""

    def __init__(self, vocabulary, options):
        self._vocabulary, self._expander = vocabulary, None
        if options.multi_hot != "no":
            from pipelines.multi_hot import MultiHot

            self._expander = MultiHot(
                vocabulary.sizes, distribution=options.multi_hot, seed=options.seed
            )

    def encode(self, content, splits) -> list[tuple[int, Batch]]:
        """Of each split that has rows of the block, its number and these rows."""
        columns = [
            self._vocabulary.find(feature, values)[values.codes]
            for feature, values in enumerate(content.values)
        ]
        ids, lengths = interleave(columns, [v.lengths for v in content.values])
        if self._expander is not None:
            ids, lengths = self._expand(ids, lengths)
        batch = Batch(content.labels, content.dense, ids, lengths)
        if (splits == splits[0]).all() and splits[0] >= 0:
            return [(int(splits[0]), batch)]
        rows = [
            (split, np.flatnonzero(splits == split)) for split in range(len(SPLITS))
        ]
        return [(split, take(batch, found)) for split, found in rows if len(found)]

    def _expand(self, ids, lengths):
        if lengths is not None:
            raise ValueError("Rows with bags of several values cannot be expanded.")
        return self._expander.expand_ids(ids)


class _Written:
    """The shards that are in place, remembered on disk."""

    def __init__(self, path):
        self._path, self._shards, self._lock = path, [], threading.Lock()
        if path.is_file():
            self._shards = [Shard(**shard) for shard in json.loads(path.read_text())]

    def of(self, split) -> list[Shard]:
        return [shard for shard in self._shards if shard.split == split]

    def add(self, shard) -> None:
        with self._lock:  # splits are completed side by side
            self._shards.append(shard)
            content = [dataclasses.asdict(shard) for shard in self._shards]
            write_whole(self._path, json.dumps(content))


def _pack(rows) -> bytes:
    integers = [
        working.count_integers(numbers, missing)
        for numbers, missing in zip(rows.integers, rows.missing, strict=True)
    ]
    dense = transform(rows.integers)
    return working.pack(working.Content(rows.labels, dense, rows.values, integers))


def _skip(batch, num_rows):
    """Leaves out first rows; returns the rest and how many are still to leave out."""
    if not num_rows:
        return batch, 0
    skipped = min(num_rows, len(batch.labels))
    ends = None
    if batch.lengths is not None:
        ends = np.concatenate([[0], np.cumsum(batch.lengths.sum(1, dtype=np.int64))])
    rest = cut(batch, ends, skipped, len(batch.labels))
    return rest, num_rows - skipped
