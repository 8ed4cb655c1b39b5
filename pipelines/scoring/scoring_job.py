"""`score_files`: read, score and write lines, all three in parallel."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from pipelines.files import Paths, expand_paths, stamp
from pipelines.formats.lines import LineMaker
from pipelines.ordered_pool import map_in_order
from pipelines.progress import bar
from pipelines.quarantine import Quarantine
from pipelines.runtime import UserError, disk
from pipelines.scoring import unfinished
from pipelines.scoring.batches import (
    Batch,
    Position,
    find_part,
    make_reader,
    read_batches,
)
from pipelines.scoring.models import Model, Source
from pipelines.scoring.score_file import COLUMNS, header, to_csv

BATCH_SIZE = 4096
_MAX_WORKERS = 16


class _Scored(NamedTuple):
    """A batch with its packed lines of output and its bad lines."""

    batch: Batch
    packed: bytes
    bad: list[tuple[int, bytes, str]]


def score_files(
    model: Model,
    paths: Paths,
    output: str | os.PathLike,
    max_bad_share: float = 1e-4,
    batch_size: int = BATCH_SIZE,
    overwrite: bool = False,
    keep: Sequence[str] = (),
    part: tuple[int, int] = (1, 1),
) -> dict[str, int]:
    """Write `file,line,label,probability` for each row of files, in order.

    Lines without a label have an empty label. A bad row has neither label nor
    probability; it is listed with its reason in `<output>.bad_rows.tsv`. Memory does
    not grow with the input. After an interruption at any time, the same call resumes
    and writes the same bytes as an uninterrupted one.

    Args:
        model: The result of `load`.
        paths: Files with or without labels: text, plain or compressed, or Parquet.
        output: CSV file to write; compressed if its name ends in ".gz".
        max_bad_share: Largest share of bad rows.
        batch_size: Number of lines to score at a time.
        overwrite: Whether to replace an existing output, and to discard unfinished
            output of another call.
        keep: Columns of the files, such as the id of a user, to write after the
            probability. Their texts are unchanged, also those of bad rows, if these
            have the right number of columns.
        part: Number of the part of the rows to score, from 1, and number of parts, for
            several processes or machines. Each finds its part by reading all text
            once. The outputs of all parts, one after another, are the output of one
            call: only the first part has the header. `max_bad_share` holds for each.

    Returns:
        `{"num_rows", "num_bad_rows"}`.

    Raises:
        FileExistsError: If the output already exists.
        ValueError: If a file is damaged or changes meanwhile, or the output is
            unfinished output of another call.
        pipelines.quarantine.BadRowsError: If too many rows are bad.

    Example:

    ```python
    model = pipelines.scoring.load("saved_models/ctr")
    pipelines.scoring.score_files(model, "day_*.gz", "scores.csv.gz")
    ```
    """
    paths = expand_paths(paths)
    job = _describe(model.source, paths, batch_size, keep, part)
    bad_rows = f"{output}.bad_rows.tsv"
    kept = "Scored rows are kept, except those of the last seconds."
    with (
        disk.advising(kept, "run it again to resume"),
        unfinished.Unfinished(output, job, overwrite) as file,
    ):
        state = file.state
        if state is None:
            quarantine, position = Quarantine(bad_rows, max_bad_share), None
            if part[0] == 1:
                file.write(file.pack(header(keep)))
        else:
            quarantine = Quarantine.resume(bad_rows, max_bad_share, state["bad_rows"])
            position = Position(*state["position"])
            print(
                f"Resuming after {quarantine.num_rows:,} rows that were scored before."
            )
        if not file.was_finished:
            stamps = [job["files"][path] for path in paths]
            reader = make_reader(model.schema, keep)
            quarantine.schema = model.schema
            start, end = Position(), None
            if part[1] > 1:
                start, end = find_part(reader, paths, stamps, batch_size, part)
            position = position or start
            batches = _until(
                end, position, read_batches(reader, paths, stamps, batch_size, position)
            )
            scorer = _Scorer(model, reader, file.pack)
            position = _write(scorer, batches, file, quarantine, position, stamps)
            file.note(_state(position, quarantine))
        quarantine.check()
    return {"num_rows": quarantine.num_rows, "num_bad_rows": quarantine.num_bad}


def _until(end, position, batches):
    """Yield batches up to the position of an end; `None`: all of them."""
    if position == end:
        return
    for batch in batches:
        yield batch
        if batch.end == end:
            return


def check(
    source: Source,
    paths,
    output,
    batch_size: int = BATCH_SIZE,
    overwrite=False,
    keep: Sequence[str] = (),
    part: tuple[int, int] = (1, 1),
) -> int:
    """Check the arguments of `score_files` before the model is loaded.

    Args:
        source: The files of the model, as `find` returns them.
        paths: Files with or without labels.
        output: CSV file to write.
        batch_size: Number of lines to score at a time.
        overwrite: Whether to replace an existing output.
        keep: Columns of the files to write after the probability.
        part: Number of the part to score, from 1, and number of parts.

    Returns:
        Number of rows that an earlier call has scored.

    Raises:
        FileExistsError: If the output already exists.
        ValueError: If an argument is wrong, or the output is unfinished output of
            another call.
    """
    job = _describe(source, expand_paths(paths), batch_size, keep, part)
    state = unfinished.check(output, job, overwrite)
    return 0 if state is None else state["bad_rows"]["num_rows"]


def _describe(source, paths, batch_size, keep, part):
    """Return the inputs and settings of an output: the `job` of an `Unfinished`."""
    if not hasattr(batch_size, "__index__") or batch_size < 1:
        raise UserError(f"`batch_size` must be at least 1. Received: {batch_size!r}")
    number, num_parts = part
    if not 1 <= number <= num_parts:
        raise UserError(
            "`part` must be the number of a part, from 1, and the number of parts. "
            f"Received: part={part!r}"
        )
    if isinstance(keep, str):
        raise UserError(f"`keep` must be a list of columns. Received: {keep!r}")
    if len({*COLUMNS, *keep}) < len(COLUMNS) + len(keep):
        raise UserError(
            f"`keep` must name each column once, and none of {', '.join(COLUMNS)}, "
            f"which the output has. Received: {' '.join(keep)}"
        )
    files = {path: stamp(path) for path in paths}
    for name, *about in source.files:
        files[os.path.join(source.path, name)] = about
    settings = {
        "model": os.path.abspath(source.path),
        "paths": paths,
        "batch_size": int(batch_size),
    } | ({"keep": list(keep)} if keep else {})
    if num_parts > 1:
        settings["part"] = [number, num_parts]
    return {"settings": settings, "files": files}


def _write(scorer, batches, file, quarantine, position, stamps):
    """Score and write all batches; return the position of their end."""
    done, total = quarantine.num_rows, sum(size for size, *_ in stamps)
    with bar("Scoring", first=done) as update:
        for batch, packed, bad in scorer.score_all(batches):
            quarantine.record(batch.path, batch.first_line, batch.num_lines, bad)
            file.write(packed)
            position = batch.end
            done += batch.num_lines
            if file.is_note_due():
                file.note(_state(position, quarantine))
            # Estimate the total from the rows and bytes read so far.
            update(done, total=round(done * total / max(batch.stored_bytes, 1)))
    return position


def _state(position, quarantine):
    return {"position": position, "bad_rows": quarantine.state()}


class _Scorer:
    """Score several batches in parallel.

    A signature parses lines on one core, so a single call would leave the others idle.
    Reading continues meanwhile.
    """

    def __init__(self, model, reader, pack):
        self._model, self._reader, self._pack = model, reader, pack

    def score_all(self, batches):
        """Yield batches as `_Scored`, in order."""
        items = ((batch,) for batch in batches)
        yield from map_in_order(self._score, items, "scoring", _MAX_WORKERS)

    def _score(self, batch):
        path = batch.path
        is_table = self._reader.is_table(path)
        layout = self._reader.layout(path, with_label=True)
        maker = LineMaker(layout, is_table, self._reader.wanted.kept)
        text, labels, is_line, bad, kept = maker(batch.content)
        lines = tf.raw_ops.StringSplitV2(
            input=[text.removesuffix(b"\n")], sep="\n"
        ).values
        good = np.ones(batch.num_lines, bool) if is_line is None else is_line
        probabilities = np.zeros(batch.num_lines, np.float32)
        if not good.any():
            scores = np.zeros(0, np.float32)
        else:
            try:
                scores = self._model.score(lines)
            except tf.errors.InvalidArgumentError:
                # The model rejects a batch with invalid lines; find them and the
                # reasons here.
                bad = [] if is_line is not None else maker.find_bad(batch.content)
                if not bad:
                    raise
                good[[position for position, *_ in bad]] = False
                scores = np.zeros(0, np.float32)
                if good.any():
                    scores = self._model.score(tf.boolean_mask(lines, good))
        probabilities[good] = scores
        labels = pc.if_else(pa.array(good), labels, None)
        first_line = batch.first_line
        if not is_table:
            first_line += int(self._model.schema.text.header)
        scores = np.ma.MaskedArray(probabilities, ~good)
        written = to_csv(path, first_line, labels, scores, kept)
        bad = [(batch.first_line + at, line, reason) for at, line, reason in bad]
        return _Scored(batch, self._pack(written), bad)
