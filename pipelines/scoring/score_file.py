"""Turn scored lines into lines of CSV with Arrow, one for each line of input.

# n lines
"""

import csv
import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

COLUMNS = ("file", "line", "label", "probability")


def header(keep: Sequence[str] = ()) -> bytes:
    """Return the first line of the output, with the names of further columns."""
    return b",".join(map(_quote, [*COLUMNS, *keep])) + b"\n"


def to_csv(
    path: str,
    first_line: int,
    labels: pa.Array,
    probabilities: np.ma.MaskedArray,
    kept: Sequence[pa.Array] = (),
) -> bytes:
    r"""Return lines of CSV: file, line number from 1, label, probability, other texts.

    Args:
        path: File of the lines.
        first_line: Position of the first line in the file, from 0.
        labels: `(n,)` texts, null for lines without a label.
        probabilities: Masked float32 `(n,)`, written with enough digits to recover the
            same float32. Masked values are written as empty fields.
        kept: Texts `(n,)` of further columns; null is written as an empty field.

    Example:

    >>> import numpy as np
    >>> import pyarrow as pa
    >>> from pipelines.scoring import score_file
    >>> labels = pa.array([b"1", None])
    >>> score_file.to_csv("a,b", 0, labels, np.ma.MaskedArray(np.float32([0.25, 0.1])))
    b'"a,b",1,1,0.25\n"a,b",2,,0.1\n'
    """
    numbers = np.arange(first_line + 1, first_line + 1 + len(labels))
    columns = [
        pc.cast(pa.array(column.data, mask=column.mask), pa.string()).cast(pa.binary())
        for column in map(_masked, (numbers, probabilities))
    ]
    line, probability = columns
    texts = [_quote_cells(column.cast(pa.binary())) for column in (labels, *kept)]
    comma, end, nothing = (pa.scalar(text, pa.binary()) for text in (b",", b"\n", b""))
    rows = pc.binary_join_element_wise(
        pa.scalar(_quote(path) + b",", pa.binary()),
        *(line, comma, texts[0], comma, probability),
        *(piece for column in texts[1:] for piece in (comma, column)),
        end,
        nothing,
        null_handling="replace",
        null_replacement="",
    )
    if not len(rows):
        return b""
    return rows.buffers()[2].to_pybytes()


def _quote_cells(texts):
    needs = pc.match_substring_regex(texts, b'[",\r\n]')
    if not pc.any(needs).as_py():
        return texts
    quote, nothing = (pa.scalar(text, pa.binary()) for text in (b'"', b""))
    doubled = pc.replace_substring(texts, b'"', b'""')
    quoted = pc.binary_join_element_wise(quote, doubled, quote, nothing)
    return pc.if_else(needs, quoted, texts)


def _masked(column):
    return np.ma.MaskedArray(column, np.ma.getmaskarray(column))


def _quote(path):
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([path])
    return text.getvalue().encode("utf-8", "surrogateescape")
