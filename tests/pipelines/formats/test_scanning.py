"""Whole files of text with headers and quotes, read in small blocks, against `csv`."""

import csv
import gzip
import io

import numpy as np
import pytest

from pipelines.formats import scanning
from pipelines.formats.fields import texts_of_keys
from pipelines.quarantine import BadRowsError, Quarantine
from pipelines.schema import Dense, Schema, Sparse, Text

SCHEMA = Schema(
    "click",
    [Dense("price")],
    ["country", Sparse("tags", separator="|")],
    format=Text(quoted=True),
)
NAMES = ["user", "click", "comment", "price", "tags", "country"]
COMMENTS = ["", "plain", 'a "quoted" word', "two\nlines", "a,b", '"', "\r\n", "é\n\n"]


def make_rows(rng, num_rows):
    return [
        {
            "user": f"u{rng.integers(9)}",
            "click": str(rng.integers(2)),
            "comment": COMMENTS[rng.integers(len(COMMENTS))],
            "price": str(rng.choice(["", "1.5", "-2e3", "7"])),
            "tags": str(rng.choice(["", "a", "a|b", "|", 'x"y|z'])),
            "country": str(rng.choice(["de", "f,r", 'u"s"', ""])),
        }
        for _ in range(num_rows)
    ]


def to_csv(rows, names=NAMES, line_end="\n"):
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, names, lineterminator=line_end, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def values_of(values):
    distinct = texts_of_keys(values.keys).to_pylist() + values.texts.to_pylist()
    flat = [distinct[code].decode() for code in values.codes]
    if values.lengths is None:
        return [[value] for value in flat]
    ends = np.cumsum(values.lengths)
    pairs = zip(ends, values.lengths, strict=True)
    return [flat[end - n : end] for end, n in pairs]


def read(paths, quarantine=None, start=(0, 0, 0)):
    """All rows as dicts of what the schema reads, and the ends of blocks."""
    quarantine = quarantine or Quarantine(max_bad_share=1)
    found, ends = [], []
    for block in scanning.scan(paths, quarantine, SCHEMA, start=start):
        rows = block.rows
        countries, tags = (values_of(values) for values in rows.values)
        for i in range(len(rows.labels)):
            price = rows.numbers[0][i]
            found.append((int(rows.labels[i]), price, countries[i], tags[i]))
        line = block.first_line + rows.num_lines
        ends.append(((block.file, block.end_offset, line), len(found)))
    return found, ends, quarantine


def expected(rows):
    for row in rows:
        tags = [tag for tag in row["tags"].split("|") if tag]
        price = float(row["price"] or "nan")
        yield int(row["click"]), price, [row["country"]], tags if row["tags"] else [""]


def assert_same(found, rows):
    truth = list(expected(rows))
    assert len(found) == len(truth)
    for one, other in zip(found, truth):
        assert one[0] == other[0] and one[2:] == other[2:]
        np.testing.assert_equal(one[1], other[1])


@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_quoted_rows_of_any_block_size(tmp_path, monkeypatch, line_end):
    rows = make_rows(np.random.default_rng(0), 400)
    path = tmp_path / "log.csv.gz"
    with gzip.open(path, "wb") as file:
        file.write(to_csv(rows, line_end=line_end))
    for size in (64, 1000, 8 << 20):
        monkeypatch.setattr(scanning, "BLOCK_BYTES", size)
        found, ends, quarantine = read([str(path)])
        assert quarantine.num_bad == 0 and quarantine.num_rows == 400
        assert_same(found, rows)
        for start, count in ends[:: max(1, len(ends) // 5)]:
            assert_same(read([str(path)], start=start)[0], rows[count:])


def test_columns_in_any_order_beside_others(tmp_path):
    rows = make_rows(np.random.default_rng(1), 100)
    orders = [NAMES, NAMES[::-1], ["price", "country", "click", "tags"]]
    paths = []
    for number, names in enumerate(orders):
        paths.append(tmp_path / f"{number}.csv")
        paths[-1].write_bytes(b"\xef\xbb\xbf" * (number == 1) + to_csv(rows, names))
    found, *_ = read([str(path) for path in paths])
    assert_same(found, 3 * rows)


def test_stray_quotes_spoil_their_own_lines(tmp_path, monkeypatch):
    rows = make_rows(np.random.default_rng(2), 60)
    lines = [to_csv([row]).split(b"\n", 1)[1] for row in rows]
    bad = [b'u,1,"open,1,a,de\n', b'u,1,a"b,1,a,de\n', b'u,1,"a"b,1,a,de\n']
    content = [to_csv([])]
    for number, line in enumerate(lines):
        content += [line, bad[number % 3]] if number % 10 == 9 else [line]
    path = tmp_path / "log.csv"
    path.write_bytes(b"".join(content))
    for size in (100, 8 << 20):
        monkeypatch.setattr(scanning, "BLOCK_BYTES", size)
        found, _, quarantine = read([str(path)], Quarantine(max_bad_share=1))
        assert quarantine.num_bad >= 4
        # An open quote may end in a quote of a line after it, as RFC 4180 has it.
        assert len(found) >= 50
        truth = {repr(row) for row in expected(rows)}
        assert sum(repr((r[0], float(r[1]), *r[2:])) in truth for r in found) >= 50


def test_a_missing_column_names_those_that_are_there(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(to_csv([], ["user", "click", "price"]))
    with pytest.raises(ValueError, match=r"lacks the columns \['country', 'tags'\]"):
        read([str(path)])
    path.write_bytes(to_csv([], [*NAMES, "click"]))
    with pytest.raises(ValueError, match=r"several columns named \['click'\]"):
        read([str(path)])


def test_a_header_in_the_middle_is_a_bad_row(tmp_path):
    rows = make_rows(np.random.default_rng(3), 5)
    path = tmp_path / "log.csv"
    path.write_bytes(to_csv(rows) + to_csv(rows))
    found, _, quarantine = read([str(path)])
    assert_same(found, 2 * rows)
    assert quarantine.num_bad == 1
    quarantine = Quarantine(max_bad_share=0)
    read([str(path)], quarantine)
    place = 1 + sum(1 for _ in rows) + 1  # the header, the rows
    match = rf"log.csv:{place}: the label must be .* found 'click'"
    with pytest.raises(BadRowsError, match=match):
        quarantine.check()


def test_a_file_of_a_header_alone_has_no_rows(tmp_path):
    path = tmp_path / "log.csv"
    for content in (to_csv([]), to_csv([]).rstrip(b"\n")):
        path.write_bytes(content)
        found, _, quarantine = read([str(path)])
        assert not found and quarantine.num_rows == 0
