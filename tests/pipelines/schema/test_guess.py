"""Guesses of schemas: logs of many layouts, and files that are no logs."""

import bz2
import dataclasses
import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import generated_logs
from helpers.guessed_logs import save

from pipelines.schema import Schema, Text, layouts
from pipelines.schema import guess as guesses

NAMELESS = {"column_1": "age", "column_2": "score", "column_3": "city"}
NAMELESS |= {"column_4": "device", "column_5": "item"}


def plain(schema):
    """A schema without the order of columns, which is that of the file."""
    if isinstance(schema.format, Text):
        kind = dataclasses.replace(schema.format, columns=(), header=True)
        schema = dataclasses.replace(schema, format=kind)
    return schema


@pytest.mark.parametrize(
    "name, seed",
    [(name, seed) for name in generated_logs.LAYOUTS for seed in (0, 7)][:-1],
)
def test_a_log_is_guessed_as_a_person_would(name, seed, tmp_path):
    write, expected = generated_logs.LAYOUTS[name]
    paths = write(tmp_path, 150 if name == "wide" else 3000, seed)
    guess = guesses.guess(paths)
    if name == "pipes":
        text = guess.schema.to_json()
        for column, known in NAMELESS.items():
            text = text.replace(column, known)
        assert Schema.from_json(text) == expected
    elif name in layouts.NAMES:
        assert guess.schema == expected
    else:
        assert plain(guess.schema) == plain(expected)
        assert guess.schema.text.header == expected.text.header
    assert {one.column for one in guess.columns} >= set(guess.schema.columns)
    assert Schema.from_json(guess.schema.to_json()) == guess.schema
    if name == "wide":
        assert len(guess.table().splitlines()) < 12
        assert "... 1,998 more" in guess.table()


@pytest.mark.parametrize(
    "name", ["criteo_x4", "avazu_x1", "frappe", "movielens_ratings"]
)
def test_layouts_that_ship_are_known(name, tmp_path):
    write = getattr(generated_logs, f"write_{name}")
    assert guesses.guess(write(tmp_path, 500, 0)).schema == layouts.get(name)


def test_a_folder_of_partitions(tmp_path):
    generated_logs.write_partitions(tmp_path / "log", 3000, 0)
    guess = guesses.guess(tmp_path / "log")
    assert plain(guess.schema) == generated_logs.LAYOUTS["partitions"][1]
    assert any("'day'" in note for note in guess.notes)


@pytest.mark.parametrize(
    "name, compress",
    [
        ("log.csv.gz", gzip.compress),
        ("log.csv.bz2", bz2.compress),
        ("log.csv.zst", lambda data: pa.compress(data, "zstd", asbytes=True)),
    ],
)
def test_compressed_files(name, compress, tmp_path):
    (path,) = generated_logs.write_booleans(tmp_path, 500, 0)
    packed = save(tmp_path, compress(open(path, "rb").read()), name)
    assert guesses.guess(packed).schema == guesses.guess(path).schema


@pytest.mark.parametrize("delimiter", list("\t,;|^ \x01"))
def test_delimiters(delimiter, tmp_path):
    rows = [f"{n % 2}|{n / 9:.3f}|v{n % 5}|{n % 3}x" for n in range(200)]
    for header in ("", "label|price|shop|kind\n"):
        text = (header + "\n".join(rows)).replace("|", delimiter)
        guess = guesses.guess(save(tmp_path, text))
        assert guess.schema.text.delimiter == delimiter
        assert guess.schema.text.header == bool(header)
        assert (len(guess.schema.dense), len(guess.schema.sparse)) == (1, 2)
        assert guess.num_rows == 200


def column(cells, tmp_path, name="x"):
    """The guess about one column of a log."""
    rows = [f'{n % 2},"{cell}",s{n % 9}' for n, cell in enumerate(cells)]
    guess = guesses.guess(save(tmp_path, "\n".join([f"click,{name},shop", *rows])))
    (found,) = [one for one in guess.columns if one.column == name]
    return found.taken_as, guess


def test_numbers_and_ids(tmp_path):
    rng = np.random.default_rng(0)
    logs = rng.normal(2, 1.5, 2000)
    counts = np.floor(np.exp(logs)).astype(int)
    ids = rng.permutation(10**5)[rng.integers(0, 400, 2000)]
    cases = {
        "dense, log1p": [
            counts,
            np.exp(logs),
        ],
        "dense, standardize": [
            rng.normal(size=2000),
            np.clip(np.round(rng.normal(40, 12, 2000)), 16, 90).astype(int),
            rng.random(2000),
        ],
        "dense, signed_log1p": [np.exp(2 * logs) * rng.choice([-1, 1], 2000)],
        "dense, identity": [rng.integers(0, 2, 2000)],
        "category": [
            ids,
            ids + 10**12,
            rng.integers(0, 7, 2000),
            [f"{n:06}" for n in ids],
            [f"{n:x}" for n in ids * 7919],
            [f"user-{n}" for n in ids],
        ],
    }
    for expected, columns in cases.items():
        for place, cells in enumerate(columns):
            taken_as, _ = column(cells, tmp_path)
            assert taken_as == expected, (expected, place, taken_as)
    assert column(counts, tmp_path, "shop_id")[0] == "category"
    assert column(rng.integers(18, 90, 2000), tmp_path, "age")[0].startswith("dense")
    assert column(rng.integers(0, 24, 2000), tmp_path, "hour")[0] == "category"


def test_columns_that_are_left_out(tmp_path):
    rng = np.random.default_rng(0)
    words = np.array("the of red shoe run sun car day one two big hat".split())
    cases = {
        "constant": ["v"] * 300,
        "always missing": [""] * 300,
        "unique in each row": [f"r{n}" for n in range(300)],
        "free text": [" ".join(rng.choice(words, 6)) for _ in range(300)],
        "a time, and not the event's": [f"2026-01-{n % 28 + 1:02}" for n in range(300)],
        "numbers with blanks around them: remove those": [f" {n}" for n in range(300)],
        "numbers with a decimal comma: write a point": [f"{n},5" for n in range(300)],
    }
    for why, cells in cases.items():
        if why == "free text":
            cells[-1] = cells[0]  # else it is unique in each row
        rows = [
            f'{n % 2},"{cell}",s{n % 9},2026-01-01 10:{n % 60:02}'
            for n, cell in enumerate(cells)
        ]
        guess = guesses.guess(save(tmp_path, "\n".join(["click,x,shop,ts", *rows])))
        (found,) = [one for one in guess.columns if one.column == "x"]
        assert (found.taken_as, found.why) == ("left out", why)
        assert "x" not in guess.schema.columns


def test_bags(tmp_path):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 6, 1000)
    bags = [[f"t{n}" for n in rng.integers(0, 40, size)] for size in sizes]
    for separator in "|,;^ ":
        cells = [separator.join(bag) for bag in bags]
        taken_as, guess = column(cells, tmp_path)
        assert taken_as == "bag of categories", separator
        assert guess.schema.sparse[0].separator == separator
    cells = ["|".join(f"{value}:{n + 0.5}" for n, value in enumerate(b)) for b in bags]
    taken_as, guess = column(cells, tmp_path)
    assert taken_as == "weighted bag"
    feature = guess.schema.sparse[0]
    assert (feature.separator, feature.weight_separator) == ("|", ":")
    names = ["New York", "Los Angeles", "Paris", "Rio", "San José", "a|b"]
    assert column(rng.choice(names, 1000), tmp_path)[0] == "category"


def test_marks_of_missing_values(tmp_path):
    def missing(cells, name="x"):
        return column(cells, tmp_path, name)[1].schema.format.missing

    numbers = [f"{n}.5" for n in range(200)]
    for mark in ("NULL", "\\N", "NA", "N/A", "nan", "None", "-", "?"):
        taken_as, guess = column([*numbers, *[mark] * 20], tmp_path)
        assert taken_as.startswith("dense") and guess.schema.format.missing == (
            "",
            mark,
        )
    assert missing(["DE", "NA", "FR", "US"] * 50) == ("",)  # Namibia


def test_event_times(tmp_path):
    def time(cells, name):
        _, guess = column(cells, tmp_path, name)
        return guess.schema.time

    assert time([1_700_000_000 + n for n in range(200)], "ts") == "ts"
    assert time([1_700_000_000_123 + n for n in range(200)], "timestamp") == "timestamp"
    assert (
        time([f"2026-01-01T10:{n % 60:02}:00Z" for n in range(200)], "seen") == "seen"
    )
    assert time([n % 24 for n in range(200)], "hour") is None


def test_parquet_types(tmp_path):
    num_rows = 200
    numbers = np.arange(num_rows)
    day = pa.array(numbers % 28, pa.int32()).cast(pa.date32())
    texts = pa.array([f"s{n % 5}" for n in numbers])
    lists = [None, [], ["a,b"], ["c", None, "d"]]
    columns = {
        "click": pa.array(numbers % 2 == 0),
        "struct": pa.array([{"a": 1}] * num_rows),
        "map": pa.array([[("a", 1.0)]] * num_rows, pa.map_(pa.string(), pa.float64())),
        "duration": pa.array(numbers, pa.duration("s")),
        "lists of lists": pa.array([[[1], [2]]] * num_rows),
        "nothing": pa.nulls(num_rows),
        "day": day,
        "seen": pa.array(numbers * 10**9, pa.timestamp("ns", tz="UTC")),
        "large": pa.array((numbers % 50).astype("u8") + 2**63),
        "bytes": pa.array([b"\xff%d" % (n % 5) for n in numbers]),
        "codes": pa.array(numbers % 5).dictionary_encode(),
        "view": texts.cast(pa.string_view()),
        "bag": pa.array([lists[n % 4] for n in numbers], pa.list_(pa.string())),
        "pair": pa.array([[n % 7, n % 3] for n in numbers], pa.list_(pa.int32(), 2)),
        "half": pa.array(np.random.default_rng(0).normal(size=num_rows).astype("f2")),
        "gaps": pa.array(np.where(numbers % 3 == 0, np.nan, numbers / 7)),
        "endless": pa.array(np.where(numbers % 3 == 0, np.inf, numbers / 7)),
        "ids": pa.array(np.where(numbers % 9 == 0, np.nan, numbers * 977 % 40)),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=64)
    guess = guesses.guess(tmp_path / "a.parquet")
    roles = {one.column: one.taken_as for one in guess.columns}
    out = ["struct", "map", "duration", "lists of lists", "nothing", "seen", "endless"]
    assert [name for name, role in roles.items() if role == "left out"] == out
    assert guess.schema.time == "day"  # by its name
    assert guess.schema.dense_features == ("half", "gaps")
    expected = ("large", "bytes", "codes", "view", "bag", "pair", "ids")
    assert guess.schema.sparse_features == expected
    bags = {f.name: f.separator for f in guess.schema.sparse if f.is_bag}
    assert bags == {"bag": "|", "pair": ","}  # a value holds a comma
    assert [c.missing_share for c in guess.columns if c.column == "bag"] == [0.25]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_frame_is_guessed_like_its_parquet_file(library, tmp_path):
    rng = np.random.default_rng(0)
    columns = {
        "clicked": rng.integers(0, 2, 300),
        "price": rng.lognormal(2, 1, 300),
        "age": [None if n % 3 else n % 40 + 18 for n in range(300)],
        "tags": [[f"t{n % 9}", f"t{n % 5}"][: n % 3] for n in range(300)],
        "shop": [f"s{n % 7}" for n in range(300)],
    }
    frame = pytest.importorskip(library).DataFrame(columns)
    path = tmp_path / "log.parquet"
    frame.to_parquet(path) if library == "pandas" else frame.write_parquet(path)
    guess, of_file = guesses.guess(frame), guesses.guess(path)
    assert guess.schema == of_file.schema == Schema.guess(frame)
    assert guess.columns == of_file.columns and guess.path == "the frame"
    assert guess.schema.label.column == "clicked"
    assert guess.schema.dense_features == ("price", "age")
    assert guess.schema.sparse_features == ("tags", "shop")
    with pytest.raises(ValueError, match="the frame: contains no rows"):
        guesses.guess(frame.head(0))


def test_other_files_are_compared(tmp_path):
    rows = "\n".join(f"{n % 2},{n}.5,s{n % 3}" for n in range(200))
    first = save(tmp_path, f"click,price,shop\n{rows}", "a.csv")
    same = save(tmp_path, f"shop,click,price\n{rows}", "b.csv")
    lacks = save(tmp_path, f"click,cost,shop\n{rows}", "c.csv")
    bare = save(tmp_path, rows, "d.csv")
    assert guesses.guess([first, same]).notes == ()
    (note,) = guesses.guess([first, same, lacks]).notes
    assert note.endswith("c.csv lacks the columns 'price'.")
    (note,) = guesses.guess([first, bare]).notes
    assert "d.csv names none of the columns" in note


def test_other_parquet_files_are_compared(tmp_path):
    table = pa.table({"click": [0, 1] * 100, "shop": ["a", "b", "c", "d"] * 50})
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.drop_columns(["shop"]), tmp_path / "b.parquet")
    (note,) = guesses.guess([tmp_path / "a.parquet", tmp_path / "b.parquet"]).notes
    assert note.endswith("b.parquet lacks the columns 'shop'.")


def test_numbers_alone_are_also_categories(tmp_path):
    rows = [f"{n % 2},{n}.5,{n * 7 % 50}.25" for n in range(300)]
    guess = guesses.guess(save(tmp_path, "\n".join(["y,a,b", *rows])))
    assert guess.schema.dense_features == ("a", "b")
    assert [f.buckets for f in guess.schema.sparse] == ["quantile", "quantile"]


def test_names_with_odd_characters(tmp_path):
    rows = [f"{n % 2},s{n % 5},{n}.5" for n in range(200)]
    guess = guesses.guess(save(tmp_path, "\n".join(["click,in/out,größe", *rows])))
    assert guess.schema.sparse_features == ("in_out",)
    assert guess.schema.dense_features == ("größe",)


def test_a_table_to_read(tmp_path):
    paths = generated_logs.write_weighted_bags(tmp_path, 500, 0)
    guess = guesses.guess(paths)
    lines = guess.table().splitlines()
    heads = ["column", "taken as", "why", "distinct", "missing", "examples"]
    assert [head for head in heads if head in lines[0]] == heads
    for one, line in zip(guess.columns, lines[1:]):
        assert line.startswith(one.column) and one.taken_as in line and one.why in line
    assert not any("\t" in line or line != line.rstrip() for line in lines)


def test_few_rows(tmp_path):
    guess = guesses.guess(
        save(tmp_path, "click,price,shop\n1,2.5,a\n0,3.5,b\n1,1.5,a\n")
    )
    assert guess.schema.columns == ("click", "price", "shop")
    assert any("from only 3 rows" in note for note in guess.notes)


def test_empty_lines_are_noted(tmp_path):
    rows = [f"{n % 2},{n}.5,s{n % 5}" for n in range(200)]
    text = "\n".join(["click,price,shop", *rows[:100], "", "\r", *rows[100:], ""])
    guess = guesses.guess(save(tmp_path, text))
    assert "2 lines are empty and would be bad rows." in guess.notes
    quoted = [f'{n % 2},{n}.5,"a{n % 5}\n\nb"' for n in range(200)]
    text = "\n".join(["click,price,shop", *quoted, ""])
    assert not any(
        "empty" in note for note in guesses.guess(save(tmp_path, text)).notes
    )


def test_integers_written_as_floats_are_noted(tmp_path):
    rows = [f"{n % 2},{n % 7}.0,{n % 5}.0,s{n % 3}" for n in range(700)]
    text = "\n".join(["click,item_id,n,shop", *rows])
    guess = guesses.guess(save(tmp_path, text))
    assert "item_id" in guess.schema.sparse_features
    (note,) = [note for note in guess.notes if "written as 7.0" in note]
    assert note.startswith("The values of item_id")


def test_a_header_that_comes_again(tmp_path):
    rows = [f"{n % 2},{n}.5,s{n % 5}" for n in range(200)]
    part = "\n".join(["click,price,shop", *rows])
    guess = guesses.guess(save(tmp_path, f"{part}\n{part}\n"))
    assert guess.schema.dense_features == ("price",)
    assert any("occurs again in 1 of the rows" in note for note in guess.notes)


def test_rows_of_other_lengths_are_noted(tmp_path):
    rows = [f"{n % 2},{n}.5,s{n % 5}" for n in range(200)]
    rows[20] += ",more"
    rows[90] = "cut"
    guess = guesses.guess(save(tmp_path, "\n".join(["click,price,shop", *rows])))
    (note,) = guess.notes
    assert note.startswith("2 of 201 rows do not have 3 columns")


def test_bytes_that_are_not_utf8(tmp_path):
    rows = [f"{n % 2},{n}.5,".encode() + b"caf\xe9%d" % (n % 5) for n in range(200)]
    rows[7] += b",\xff\xfe"
    guess = guesses.guess(save(tmp_path, b"\n".join([b"click,price,shop", *rows])))
    assert guess.schema.sparse_features == ("shop",)
    assert "caf\\xe9" in guess.table()


@pytest.mark.parametrize("text", [
    "click,device,country,price\n" + "1,mobile,DE,3.5\n0,device,FR,1.25\n" * 60,
    ",click,country,price\n" + "7,1,DE,3.5\n8,0,FR,1.25\n" * 60,
    "click, country, price\n" + "1, DE, 3.5\n0, FR, 1.25\n" * 60,
], ids=["a name that is a value, too", "an index", "blanks"])  # fmt: skip
def test_headers_that_name_a_label(tmp_path, text):
    assert guesses.guess(save(tmp_path, text)).schema.label.column == "click"


def test_values_with_line_breaks_are_left_out(tmp_path):
    text = "click,title,c\n" + '1,"a\nb",x\n0,"c\nd",y\n' * 60
    assert guesses.guess(save(tmp_path, text)).schema.sparse_features == ("c",)
