import json

import pytest

from pipelines.quarantine import BadRowsError, Quarantine


def test_counts_each_line_once(tmp_path):
    quarantine = Quarantine(tmp_path / "bad.tsv", max_bad_share=1)
    bad = [(3, b"a\tb\r\xff\\", "expected 40 columns, found 2"), (7, b"", "empty line")]
    for _ in range(2):
        quarantine.record("day_0", 0, 5, bad[:1])
        quarantine.record("day_0", 5, 5, bad[1:])
    quarantine.record("day_1", 0, 10, [])
    assert (quarantine.num_rows, quarantine.num_bad) == (20, 2)
    assert quarantine.reasons == {"expected 40 columns": 1, "empty line": 1}
    lines = (tmp_path / "bad.tsv").read_text().splitlines()
    assert lines == [
        "path\tline\treason\tnum_bytes\trow",
        "day_0\t4\texpected 40 columns, found 2\t6\ta\\tb\\r\\xff\\\\",
        "day_0\t8\tempty line\t0\t",
    ]


def test_an_epoch_that_was_cut_is_counted_up(tmp_path):
    quarantine = Quarantine(max_bad_share=1)
    quarantine.record("day_0", 0, 5, [(1, b"", "empty line")])
    quarantine.record("day_0", 0, 9, [(1, b"", "empty line"), (6, b"", "empty line")])
    assert (quarantine.num_rows, quarantine.num_bad) == (9, 2)


def test_long_rows_are_cut(tmp_path):
    quarantine = Quarantine(tmp_path / "bad.tsv", max_bad_share=1)
    quarantine.record("day_0", 0, 1, [(0, b"x" * 5000, "too long")])
    *_, num_bytes, row = (tmp_path / "bad.tsv").read_text().rstrip("\n").split("\t")
    assert (num_bytes, row) == ("5000", "x" * 1024)


def test_share_is_judged_from_10000_rows_and_when_asked():
    quarantine = Quarantine()
    quarantine.record("day_0", 0, 5000, [(i, b"", "empty line") for i in range(7)])
    with pytest.raises(BadRowsError, match="7 of 5,000 rows"):
        quarantine.check()
    with pytest.raises(BadRowsError) as error:
        quarantine.record("day_0", 5000, 5000, [])
    text = str(error.value)
    assert "7 of 10,000 rows read are bad (0.070%); at most 0.010% are allowed" in text
    assert "day_0:1: empty line" in text and "day_0:5: empty line" in text
    assert "and 2 more" in text
    assert 'Quarantine("bad_rows.tsv")' in text
    assert "`max_bad_share=0.0014`." in text
    quarantine.record("day_1", 0, 70_000, [])  # 7 of 80,000 rows are allowed


def test_error_names_the_file_of_bad_rows(tmp_path):
    quarantine = Quarantine(tmp_path / "bad.tsv", max_bad_share=0)
    quarantine.record("day_0", 0, 2, [(0, b"", "empty line")])
    with pytest.raises(ValueError, match="All of them are in .*bad.tsv"):
        quarantine.check()


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_share_is_a_share(share):
    with pytest.raises(ValueError, match="`max_bad_share` must be a share from 0 to 1"):
        Quarantine(max_bad_share=share)


def test_other_files_are_not_overwritten(tmp_path):
    path = tmp_path / "bad.tsv"
    path.write_text("1\t2\t3\n")
    with pytest.raises(ValueError, match="bad.tsv is not a file of bad rows"):
        Quarantine(path)
    assert path.read_text() == "1\t2\t3\n"
    path.unlink()
    Quarantine(path, 1).record("day_0", 0, 1, [(0, b"", "empty line")])
    assert len(path.read_text().splitlines()) == 2
    Quarantine(path)
    assert not path.exists()


def test_it_goes_on_from_a_state(tmp_path):
    path = tmp_path / "bad.tsv"
    whole = Quarantine(tmp_path / "whole.tsv", max_bad_share=1)
    first = Quarantine(path, max_bad_share=0.5)
    states = []
    for quarantine in (whole, first):
        quarantine.record("day_0", 0, 5, [])
        states.append(quarantine.state())
        quarantine.record("day_0", 5, 5, [(7, b"\xff", "expected 40, found 1")])
        states.append(json.loads(json.dumps(quarantine.state())))
        quarantine.record("day_0", 10, 2, [(11, b"", "empty line")])
    again = Quarantine.resume(path, 1, states[-1])
    assert (again.num_rows, again.num_bad) == (10, 1)
    assert again.reasons == {"expected 40": 1}
    again.record("day_0", 10, 2, [(11, b"", "empty line")])
    assert path.read_bytes() == (tmp_path / "whole.tsv").read_bytes()
    assert again.state() == whole.state()
    path.write_text("something else")
    for wrong in (path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="was removed or changed"):
            Quarantine.resume(wrong, 1, states[-1])
    with pytest.raises(ValueError, match="not a file of bad rows"):
        Quarantine.resume(path, 1, states[-2])
    Quarantine.resume(tmp_path / "whole.tsv", 1, states[-2])
    assert not (tmp_path / "whole.tsv").exists()
