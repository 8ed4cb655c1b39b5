import pytest

from pipelines.formats.line_rules import rules, trim
from pipelines.schema import Schema

reason = rules(Schema.criteo()).reason

GOOD = [b"1", *[b"2"] * 13, *[b"ab"] * 26]


def replaced(position, field):
    return b"\t".join([*GOOD[:position], field, *GOOD[position + 1 :]])


@pytest.mark.parametrize(
    "line, labelled, expected",
    [
        (b"\t".join(GOOD), True, None),
        (b"\t".join(GOOD), False, None),
        (b"\t".join(GOOD[1:]), False, None),
        (b"\t".join(GOOD[1:]), True, "expected 40 tab-separated columns, found 39"),
        (b"1", False, "expected 39 or 40 tab-separated columns, found 1"),
        (b"\xef\xbb\xbf\n", True, "empty line"),
        (replaced(20, b"a\rb"), True, "carriage return inside the line"),
        (replaced(20, b"a\nb"), True, "line feed inside the line"),
        (replaced(0, b""), True, "the label must be 0 or 1, found ''"),
        (
            replaced(13, b"1e400"),
            True,
            "I13 must be an integer or empty, found '1e400'",
        ),
        (replaced(1, b"\xff"), True, r"I1 must be an integer or empty, found '\xff'"),
        (replaced(2, b"9" * 400), True, "I2 is too large for a float64, found '999"),
    ],
)
def test_reason(line, labelled, expected):
    found = reason(line, labelled)
    assert found == expected or found.startswith(f"{expected}9")
    assert found is None or len(found) < 120


def test_trim_drops_one_line_end():
    ends = [b"a", b"a\n", b"a\r\n", b"a\r", b"a\n\n", b"a\r\r\n", b"a\n\r"]
    trimmed = [b"a", b"a", b"a", b"a", b"a\n", b"a\r", b"a\n"]
    assert [trim(line) for line in ends] == trimmed
