"""Which files of a growing folder are finished, and in which order they are taken."""

import os
import time

import pytest

from pipelines.following import Arrivals, GrowingFolder

NOW = time.time()


def put(folder, name, age=60.0, text="x"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (NOW - age, NOW - age))
    return path


def take_all(source):
    names = []
    while (arrival := source.next(NOW)) is not None:
        source.take(arrival)
        names.append((arrival.name, arrival.is_late))
    return names


def test_finished_files_in_the_order_of_their_names(tmp_path):
    for name in ("b", "a", "day=2/part-0", "day=1/part-1", "day=1/part-0"):
        put(tmp_path, name)
    put(tmp_path, "c", age=1.0)  # it may still grow
    put(tmp_path, "d", text="")
    for name in (".e", "_f", "g.tmp", "h.PART", "_temporary/0/part-0", "i.inprogress"):
        put(tmp_path, name)
    source = GrowingFolder(tmp_path, Arrivals(settle_seconds=5.0))
    names = ["a", "b", "day=1/part-0", "day=1/part-1", "day=2/part-0"]
    assert take_all(source) == [(name, False) for name in names]
    assert source.next(NOW + 10.0).name == "c"


def test_a_file_that_grows_is_left_alone_until_it_stops(tmp_path):
    put(tmp_path, "a", age=0.0)
    source = GrowingFolder(tmp_path, Arrivals(settle_seconds=5.0))
    assert source.next(NOW + 4.0) is None
    put(tmp_path, "a", age=-3.0, text="xy")
    assert source.next(NOW + 7.0) is None
    assert source.next(NOW + 8.5).name == "a"


def test_a_marker_finishes_a_partition(tmp_path):
    put(tmp_path, "hour=1/part-0", age=0.0)
    put(tmp_path, "hour=2/part-0")
    source = GrowingFolder(tmp_path, Arrivals(marker="_SUCCESS"))
    assert source.next(NOW) is None
    put(tmp_path, "hour=1/_SUCCESS", text="")
    assert take_all(source) == [("hour=1/part-0", False)]


@pytest.mark.parametrize("late", ["train", "skip"])
def test_a_late_file(late, tmp_path, capsys):
    put(tmp_path, "b")
    source = GrowingFolder(tmp_path, Arrivals(late=late))
    assert take_all(source) == [("b", False)]
    put(tmp_path, "a")
    put(tmp_path, "c")
    expected = [("a", True), ("c", False)] if late == "train" else [("c", False)]
    assert take_all(source) == expected
    said = capsys.readouterr().out
    assert ("Skipped a: it is before b, which was taken." in said) == (late == "skip")


def test_files_in_the_order_of_event_times(tmp_path):
    times = {"x": 30.0, "y": 10.0, "z": 20.0}
    for name in times:
        put(tmp_path, name)
    source = GrowingFolder(
        tmp_path, Arrivals("time"), lambda path: times[os.path.basename(path)]
    )
    assert take_all(source) == [("y", False), ("z", False), ("x", False)]
    times["w"] = 15.0
    put(tmp_path, "w")
    assert take_all(source) == [("w", True)]


def test_the_state_is_bounded_and_resumes(tmp_path):
    for name in ("a", "b"):
        put(tmp_path, name)
    source = GrowingFolder(tmp_path)
    source.take(source.next(NOW), "trained")
    source.take(source.next(NOW), "refused")
    state = source.get_state()
    assert state["taken"] == {"a": "trained", "b": "refused"}
    assert state["last"] == (0.0, "a")  # a refused file does not make others late
    again = GrowingFolder(tmp_path)
    again.set_state(state)
    assert again.next(NOW) is None
    (tmp_path / "a").unlink()
    assert again.get_state()["taken"] == {"b": "refused"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"order": "size"}, "`order` must be one of"),
        ({"late": "drop"}, "`late` must be one of"),
        ({"settle_seconds": -1.0}, "`settle_seconds` must be at least 0"),
        ({"idle_seconds": -1.0}, "`idle_seconds` must be at least 0"),
    ],
)
def test_refused_options(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Arrivals(**options)
    with pytest.raises(ValueError, match="needs a schema with a time column"):
        GrowingFolder(tmp_path, Arrivals(order="time"))
    with pytest.raises(ValueError, match="is not a folder"):
        GrowingFolder(tmp_path / "absent")
