"""Scored lines -> lines of CSV, in Arrow: a row of output for each line of input.

# n lines
"""

import csv
import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.formats.line_rules import BYTE_ORDER_MARK, NUM_COLUMNS

HEADER = b"file,line,label,probability\n"


def find_labels(text: bytes) -> np.ma.MaskedArray:
    r"""The label of each line; masked where a line has none.

    Args:
        text: Lines with their line ends; the last may have none. What a line that is
            no row gives is undefined.

    Example:

    >>> from pipelines.scoring import score_file
    >>> labelled, unlabelled = b"1" + 39 * b"\t", b"1" + 38 * b"\t"
    >>> score_file.find_labels(labelled + b"\n" + unlabelled + b"\n").tolist()
    [1, None]
    """
    content = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(content == ord("\n")) + 1
    if len(text) and (not len(ends) or ends[-1] != len(text)):
        ends = np.append(ends, len(text))
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)[: len(ends)]
    num_tabs = np.add.reduceat(content == ord("\t"), starts, dtype=np.int32)
    for i in np.flatnonzero(content[starts] == BYTE_ORDER_MARK[0]).tolist():
        if text.startswith(BYTE_ORDER_MARK, starts[i]):
            starts[i] += len(BYTE_ORDER_MARK)
    has_label = num_tabs == NUM_COLUMNS - 1
    labels = np.where(has_label, content[np.where(has_label, starts, 0)] - ord("0"), 0)
    return np.ma.MaskedArray(labels.astype(np.uint8), ~has_label)


def to_csv(path: str, first_line: int, labels, probabilities) -> bytes:
    r"""Make lines of CSV: file, line from 1, label, probability.

    Args:
        path: The file of the lines.
        first_line: Position of the first one in it, from 0.
        labels: Masked uint8 `(n,)`.
        probabilities: Masked float32 `(n,)`, written with as many digits as give the
            same float32 again. What is masked is empty.

    Example:

    >>> import numpy as np
    >>> from pipelines.scoring import score_file
    >>> labels = np.ma.MaskedArray(np.uint8([1, 0]), [False, True])
    >>> score_file.to_csv("a,b", 0, labels, np.ma.MaskedArray(np.float32([0.25, 0.1])))
    b'"a,b",1,1,0.25\n"a,b",2,,0.1\n'
    """
    numbers = np.arange(first_line + 1, first_line + 1 + len(labels))
    columns = [
        pc.cast(pa.array(column.data, mask=column.mask), pa.string()).cast(pa.binary())
        for column in map(_masked, (numbers, labels, probabilities))
    ]
    line, label, probability = columns
    comma, end, nothing = (pa.scalar(text, pa.binary()) for text in (b",", b"\n", b""))
    rows = pc.binary_join_element_wise(
        pa.scalar(_quote(path) + b",", pa.binary()),
        *(line, comma, label, comma, probability, end),
        nothing,
        null_handling="replace",
        null_replacement="",
    )
    if not len(rows):
        return b""
    return rows.buffers()[2].to_pybytes()


def _masked(column):
    return np.ma.MaskedArray(column, np.ma.getmaskarray(column))


def _quote(path):
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([path])
    return text.getvalue().encode("utf-8", "surrogateescape")
