"""Files of another layout: what the errors say of them."""

import pandas as pd
import pytest

from pipelines import Quarantine, Vocabulary, prepare
from pipelines.formats.diagnosis import explain
from pipelines.quarantine import BadRowsError

INTEGERS, VALUES = ["3"] * 13, ["0c1e8f72"] * 26


def text(label="1", integers=INTEGERS, values=VALUES, delimiter="\t", end="\n", rows=5):
    fields = [*([] if label is None else [label]), *integers, *values]
    return (delimiter.join(fields) + end) * rows


FILES = {
    "commas": (text(delimiter=","), "has 40 columns separated by commas"),
    "semicolons": (text(delimiter=";"), "has 40 columns separated by semicolons"),
    "bars": (text(delimiter="|"), "has 40 columns separated by vertical bars"),
    "Hive": (text(delimiter="\x01"), r"40 columns .* by the character \\x01"),
    "CRLF and commas": (text(delimiter=",", end="\r\n"), "40 columns .* by commas"),
    "mark and commas": ("\ufeff" + text(delimiter=","), "40 columns .* by commas"),
    "a header": ("id,click\n" + "7,0\n" * 9, "has 2 columns separated by commas"),
    "41 columns": (text().replace("\n", "\tx\n"), "has 41 columns separated by tabs"),
    "no label": (text(None), "has 39 columns: the label, the first column, is missing"),
    "decimal points": (text(integers=["260.0", *INTEGERS[1:]]),
                       "'260.0' .* with a decimal point, as pandas"),
    "decimals": (text(integers=["0.05"] * 13), "'0.05' .* they hold decimal numbers"),
    "quotes": (text().replace("3", '"3"'), "the integers are in quotes"),
    "NULL": (text(integers=["NULL"] * 13), "marks missing values .* as 'NULL'"),
    "\\N": (text(integers=["\\N"] * 13), r"missing values .* as '\\\\N'"),
    "blanks": (text(integers=[" 3"] * 13), "blanks around them"),
    "thousands": (text(integers=["1,234"] * 13), "thousands separators"),
    "other order": (text(integers=VALUES[:13]), "columns in another order"),
    "labels": (text("1.0"), "labels other than 0 and 1 .* such as '1.0'"),
    "returns": (text(end="\r"), "must not end in a carriage return alone"),
    "HTML": ("<!DOCTYPE html>\n<html>\n", "looks like HTML"),
    "JSON": ('{"label": 1}\n' * 5, "looks like JSON"),
    "LibSVM": ("1 3:0.5 7:1\n" * 5, "looks like LibSVM"),
    "binary": ("".join(map(chr, range(32))) * 9, "looks like binary data"),
    "words": ("what?\n" * 5, "has lines without tabs, such as 'what\\?'"),
    "UTF-16": (text().encode("utf-16"), "is UTF-16LE text"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_the_error_says_what_a_file_looks_like(tmp_path, kind):
    """At the default share of bad rows and at any; no share is suggested."""
    content, match = FILES[kind]
    path = tmp_path / "log"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for share in (1e-4, 1):
        with pytest.raises(ValueError, match=f"(?s)log.* {match}") as error:
            Vocabulary.build(path, quarantine=Quarantine(max_bad_share=share))
        words = f"{error.value} {getattr(error.value, 'one_line', '')}"
        assert "max_bad_share=" not in words
    if kind != "UTF-16":
        assert "contains no valid rows. " in str(error.value)
        with pytest.raises(ValueError, match=f"contains no valid rows.* {match}"):
            prepare.prepare(path, tmp_path / "out", prepare.Options(max_bad_share=1))


def test_what_pandas_writes_by_default(tmp_path):
    frame = pd.DataFrame([[1, *[5.0] * 13, *VALUES]] * 4)
    frame.loc[2, 1] = float("nan")
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert "has 40 columns separated by commas" in explain(tmp_path / "a.csv")
    frame.to_csv(tmp_path / "a.csv", index=False, header=False, sep="\t")
    assert 'convert it with astype("Int64")' in explain(tmp_path / "a.csv")


def test_some_bad_rows_are_not_another_layout(tmp_path):
    (tmp_path / "log").write_text(text(rows=9) + "oops\n")
    with pytest.raises(BadRowsError, match="`max_bad_share=0.2`.$") as error:
        Vocabulary.build(tmp_path / "log")
    assert error.value.one_line.endswith("`max_bad_share=0.2`.")


def test_a_header_is_named(tmp_path):
    names = [*(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    header = text("label", names[:13], names[13:], rows=1)
    (tmp_path / "log").write_text(header + text(rows=9))
    with pytest.raises(BadRowsError, match="The first line is a header: remove it"):
        Vocabulary.build(tmp_path / "log")
    (tmp_path / "log").write_text(text(rows=9) + header)
    with pytest.raises(BadRowsError, match="`max_bad_share=0.2`.$"):
        Vocabulary.build(tmp_path / "log")


@pytest.mark.parametrize("content", [None, b"", b"\n\n\n", b"PAR1\0"])
def test_there_may_be_nothing_to_say(tmp_path, content):
    if content is not None:
        (tmp_path / "log").write_bytes(content)
    assert explain(tmp_path / "log") == ""
