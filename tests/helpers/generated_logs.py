"""Generated click logs of many layouts, each with a signal that a model can learn.

`write_<layout>(folder, num_rows, seed)` writes files and returns their paths. The
effects of values are the same for every seed, so one seed gives training rows and
another one validation rows. `LAYOUTS` maps a name to the writer and to the schema of
its files.
"""

import csv
import datetime
import decimal
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from helpers.planted_columns import Rows, folder_of, hex_texts, named, texts, write
from pipelines.schema import Dense, Label, Parquet, Schema, Sparse, Text, layouts

_CITIES = [f"city_{name}" for name in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
_COUNTRIES = ["DE", "FR", "US", "IN", "NA", "BR", "JP", "NG"]
_DEVICES = ["phone", "tablet", "desktop", "tv"]
_START = datetime.datetime(2026, 1, 1)


def _criteo_columns(rows):
    integers = [rows.counts(0.1) for _ in range(13)]
    sizes = np.geomspace(4, 5000, 26).astype(int)
    categories = [rows.ids(size, 0.3) for size in sizes]
    return integers, categories


def write_criteo(folder, num_rows, seed=0):
    """Tabs, no header: label, 13 integers with gaps, 26 hashed categories."""
    rows = Rows(num_rows, seed)
    integers, categories = _criteo_columns(rows)
    columns = [rows.gaps(texts(column)) for column in integers]
    columns += [
        rows.gaps(hex_texts(ids, salt), 0.05) for salt, ids in enumerate(categories)
    ]
    label = texts(rows.clicks())
    return write(folder_of(folder) / "day_0.tsv", [label, *columns], "\t")


def write_criteo_x1(folder, num_rows, seed=0):
    """CSV with a header: scaled numbers, categories as numbers."""
    rows = Rows(num_rows, seed)
    integers, categories = _criteo_columns(rows)
    columns = [
        [f"{x:.6g}" for x in np.minimum(column / 50, 1).tolist()] for column in integers
    ]
    columns += [texts(ids + 1000 * place) for place, ids in enumerate(categories)]
    header = layouts.get("criteo_x1").text.columns
    label = [f"{click}.0" for click in rows.clicks()]
    return write(folder_of(folder) / "train.csv", [label, *columns], ",", header)


def write_criteo_x4(folder, num_rows, seed=0):
    """CSV with a header: the rows of `write_criteo` under names."""
    (path,) = write_criteo(folder, num_rows, seed)
    lines = pathlib.Path(path).read_text().replace("\t", ",")
    pathlib.Path(path).unlink()
    path = folder_of(folder) / "train.csv"
    path.write_text(",".join(layouts.get("criteo_x4").text.columns) + "\n" + lines)
    return [str(path)]


def write_avazu(folder, num_rows, seed=0):
    """CSV with a header: only categories, an hour YYMMDDHH and an id of the row."""
    rows = Rows(num_rows, seed)
    names = layouts.get("avazu").text.columns
    hours = np.sort(rows.rng.integers(0, 240, num_rows))
    numbers = np.arange(num_rows) * 1_000_003 + 10**16 + seed
    columns = {"id": texts(numbers)}
    columns["hour"] = [f"1410{21 + hour // 24}{hour % 24:02}" for hour in hours]
    for place, name in enumerate(names[3:]):
        size = 7 if "type" in name or "pos" in name else 40 * (place + 2)
        ids = rows.ids(size, 0.25)
        is_text = name.startswith(("site", "app", "device_i", "device_m"))
        columns[name] = hex_texts(ids, place) if is_text else texts(ids + 1000)
    columns["click"] = texts(rows.clicks())
    columns = [columns[name] for name in names]
    return write(folder_of(folder) / "train.csv", columns, ",", names)


def _write_ids(folder, num_rows, seed, name, sizes):
    """CSV with a header: label and categories, each id in one column only."""
    rows = Rows(num_rows, seed)
    firsts = np.cumsum([0, *sizes])
    columns = [texts(rows.ids(size) + first) for size, first in zip(sizes, firsts)]
    header = layouts.get(name).text.columns
    label = texts(rows.clicks())
    return write(folder_of(folder) / "train.csv", [label, *columns], ",", header)


def write_avazu_x1(folder, num_rows, seed=0):
    """CSV with a header: label and 22 categories."""
    sizes = np.geomspace(4, 2000, 22).astype(int).tolist()
    return _write_ids(folder, num_rows, seed, "avazu_x1", sizes)


def write_frappe(folder, num_rows, seed=0):
    """CSV with a header: label, user, app and eight categories of the context."""
    sizes = (300, 900, 7, 7, 2, 3, 2, 9, 80, 230)
    return _write_ids(folder, num_rows, seed, "frappe", sizes)


def write_movielens(folder, num_rows, seed=0):
    """CSV with a header: label, user, item, tag."""
    rows = Rows(num_rows, seed)
    columns = [texts(rows.ids(size)) for size in (800, 500, 300)]
    header = layouts.get("movielens").text.columns
    label = texts(rows.clicks())
    return write(folder_of(folder) / "train.csv", [label, *columns], ",", header)


def write_movielens_ratings(folder, num_rows, seed=0):
    """CSV with a header: user, film, rating from 0.5 to 5, time in seconds."""
    rows = Rows(num_rows, seed)
    users, films = rows.ids(400), rows.ids(500)
    stars = np.clip(
        np.round(7 + 2 * rows.logits + rows.rng.normal(size=num_rows)), 1, 10
    )
    times = 1_100_000_000 + rows.rng.integers(0, 10**8, num_rows)
    columns = [texts(users + 1), texts(films + 1), texts(stars / 2), texts(times)]
    header = layouts.get("movielens_ratings").text.columns
    return write(folder_of(folder) / "ratings.csv", columns, ",", header)


def write_kdd12(folder, num_rows, seed=0):
    """Tabs, no header: clicks, impressions, then ids."""
    rows = Rows(num_rows, seed)
    columns = [texts(rows.ids(300, 0.5).astype(np.uint64) * 61_234_567_890_123 + 7)]
    columns += [texts(rows.ids(size, 0.5) * 977 + 20_000) for size in (600, 200)]
    depth = rows.rng.integers(1, 4, num_rows)
    position = np.minimum(rows.rng.integers(1, 4, num_rows), depth)
    rows.logits -= 0.4 * (position - 1)
    columns += [texts(depth), texts(position)]
    columns += [texts(rows.ids(size, 0.5)) for size in (900, 700, 800, 600, 1000)]
    impressions = 1 + (rows.rng.random(num_rows) < 0.1)
    clicks = rows.clicks() * np.minimum(impressions, rows.rng.integers(1, 3, num_rows))
    columns = [texts(clicks), texts(impressions), *columns]
    return write(folder_of(folder) / "training.txt", columns, "\t")


def write_semicolons(folder, num_rows, seed=0):
    """Semicolons, quoted fields with delimiters, quotes and line ends inside."""
    rows = Rows(num_rows, seed)
    titles = [f'The "{n}"; vol. {n % 7}' if n % 3 else f"Plain {n}" for n in range(60)]
    price = np.exp(rows.amounts() + 2)
    columns = [
        [f"{x:.2f}" for x in price.tolist()],
        rows.gaps(named(rows.ids(8), _COUNTRIES), 0.05),
        named(rows.ids(60), titles),
        named(rows.ids(4), _DEVICES),
        [f"Seen by guest {n},\nall was well; or so" for n in range(num_rows)],
    ]
    label = named(rows.clicks(), ["no", "yes"])
    path = folder_of(folder) / "log.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=";", lineterminator="\r\n")
        writer.writerow(["clicked", "price", "country", "title", "device", "comment"])
        writer.writerows(zip(label, *columns))
    return [str(path)]


def write_pipes(folder, num_rows, seed=0):
    r"""Vertical bars, no header, \N for missing."""
    rows = Rows(num_rows, seed)
    age = np.clip(np.round(rows.amounts() * 12 + 40), 16, 90).astype(int)
    columns = [
        rows.gaps(texts(age), 0.1, r"\N"),
        [f"{x:.3f}" for x in rows.amounts().tolist()],
        rows.gaps(named(rows.ids(26), _CITIES), 0.1, r"\N"),
        named(rows.ids(4), _DEVICES),
        hex_texts(rows.ids(400), 3),
    ]
    label = texts(rows.clicks())
    return write(folder_of(folder) / "log.txt", [label, *columns], "|")


def _parquet_table(rows, first_second=0):
    num_rows = rows.num_rows
    lengths = rows.rng.integers(0, 6, num_rows)
    items = rows.ids(200, 1.2, (num_rows, 6))
    history = [[f"i{n}" for n in row[:k]] for row, k in zip(items.tolist(), lengths)]
    price = np.exp(rows.amounts() + 3)
    amounts = [decimal.Decimal(99 + 100 * n) / 100 for n in rows.counts().tolist()]
    seconds = first_second + np.sort(rows.rng.integers(0, 86_400, num_rows))
    times = [_START + datetime.timedelta(seconds=n) for n in seconds.tolist()]
    shop = pa.array(named(rows.ids(26), [f"shop {n}" for n in range(26)]))
    columns = {
        "user_id": pa.array(rows.ids(300, 0.5), pa.int64()),
        "item": pa.array([f"i{n}" for n in rows.ids(200).tolist()]),
        "shop": shop.dictionary_encode(),
        "history": pa.array(history, pa.list_(pa.string())),
        "price": pa.array(price, mask=rows.rng.random(num_rows) < 0.1),
        "amount": pa.array(amounts, pa.decimal128(12, 2)),
        "is_new": pa.array(rows.rng.random(num_rows) < 0.3),
        "event_time": pa.array(times, pa.timestamp("ms")),
        "vector": pa.array(rows.rng.random((num_rows, 2)).tolist()),
    }
    return pa.table({"click": pa.array(rows.clicks(), pa.int8()), **columns})


def write_parquet(folder, num_rows, seed=0):
    """Parquet with lists, a dictionary, timestamps, decimals, booleans and nulls."""
    path = folder_of(folder) / "log.parquet"
    pq.write_table(_parquet_table(Rows(num_rows, seed)), path)
    return [str(path)]


def write_partitions(folder, num_rows, seed=0):
    """Parquet files in folders by day, as Spark writes them."""
    paths = []
    for day in range(3):
        size = num_rows * (day + 1) // 3 - num_rows * day // 3
        part = folder_of(pathlib.Path(folder) / f"day=2026-01-0{day + 1}")
        table = _parquet_table(Rows(size, (seed, day)), day * 86_400)
        pq.write_table(table.drop_columns(["vector"]), part / "part-0.parquet")
        paths.append(str(part / "part-0.parquet"))
    return paths


def write_booleans(folder, num_rows, seed=0):
    """CSV: booleans, NULL for missing, a weight of each row, counts, a constant."""
    rows = Rows(num_rows, seed)
    is_member = rows.ids(2, 0.8)
    columns = {
        "member": named(is_member, ["false", "true"]),
        "num_visits": rows.gaps(texts(rows.counts()), 0.15, "NULL"),
        "balance": [f"{x:.2f}" for x in (rows.amounts() * 100).tolist()],
        "plan": rows.gaps(named(rows.ids(5), list("ABCDE")), 0.1, "NULL"),
        "has_app": texts((rows.rng.random(num_rows) < 0.4).astype(int)),
        "weight": [f"{x:.2f}" for x in rows.rng.uniform(0.5, 2, num_rows).tolist()],
        "version": ["v1"] * num_rows,
    }
    columns = {"converted": named(rows.clicks(), ["false", "true"]), **columns}
    return write(folder_of(folder) / "log.csv", columns.values(), ",", columns)


def write_weighted_bags(folder, num_rows, seed=0):
    """CSV: cells of several values, with weights in one column, and users."""
    rows = Rows(num_rows, seed)
    items = rows.ids(150, 1.5, (num_rows, 5))
    topics = rows.ids(30, 1.5, (num_rows, 4))
    weights = rows.rng.integers(1, 20, (num_rows, 4)) / 4
    sizes = rows.rng.integers(0, 6, num_rows).tolist()
    bags, weighted = [], []
    for row, names, values, size in zip(
        items.tolist(), topics.tolist(), weights.tolist(), sizes
    ):
        bags.append("|".join(f"p{n}" for n in row[:size]))
        pairs = zip(names[: size + 1], values)
        weighted.append("|".join(f"topic{n}:{value:g}" for n, value in pairs))
    columns = {
        "user": [f"u{n}" for n in rows.ids(250, 0.4).tolist()],
        "product": [f"p{n}" for n in rows.ids(150).tolist()],
        "recent_products": bags,
        "topics": weighted,
        "hour": texts(rows.ids(24, 0.2)),
        "dwell_seconds": [f"{x:.1f}" for x in np.exp(rows.amounts() + 2).tolist()],
    }
    columns["label"] = texts(rows.clicks())
    return write(folder_of(folder) / "log.csv", columns.values(), ",", columns)


def write_categories_only(folder, num_rows, seed=0):
    """CSV without any number."""
    rows = Rows(num_rows, seed)
    columns = {
        "site": named(rows.ids(26), [f"site{n}.example" for n in range(26)]),
        "country": named(rows.ids(8), _COUNTRIES),
        "device": named(rows.ids(4), _DEVICES),
        "campaign_id": texts(rows.ids(120) + 5000),
        "zip": [f"{n * 37:05}" for n in rows.ids(400).tolist()],
    }
    columns = {"is_click": texts(rows.clicks()), **columns}
    return write(folder_of(folder) / "log.csv", columns.values(), ",", columns)


def write_wide(folder, num_rows, seed=0):
    """CSV of 2,000 numbers and one category."""
    rows = Rows(num_rows, seed)
    site = hex_texts(rows.ids(50), 9)
    numbers = rows.rng.normal(size=(num_rows, 2000))
    rows.logits += numbers[:, :20] @ np.linspace(0.3, 0.05, 20)
    label = texts(rows.clicks())
    columns = [[f"{x:.3f}" for x in column] for column in numbers.T.tolist()]
    header = ["target", "site", *(f"x{n}" for n in range(2000))]
    return write(folder_of(folder) / "log.csv", [label, site, *columns], ",", header)


_PARQUET = Schema(
    label="click",
    dense=[Dense("price", "log1p"), Dense("amount", "log1p")],
    sparse=["user_id", "item", "shop", Sparse("history", separator=",", table="item")]
    + ["is_new"],
    time="event_time",
    group="user_id",
    format=Parquet(),
)
_NULLS = ("", "NULL")

LAYOUTS = {
    "criteo": (write_criteo, layouts.get("criteo")),
    "criteo_x1": (write_criteo_x1, layouts.get("criteo_x1")),
    "avazu": (write_avazu, layouts.get("avazu")),
    "movielens": (write_movielens, layouts.get("movielens")),
    "kdd12": (write_kdd12, layouts.get("kdd12")),
    "semicolons": (
        write_semicolons,
        Schema(
            label=Label("clicked", ("yes",), ("no",)),
            dense=Dense("price", "log1p"),
            sparse=["country", "title", "device"],
            format=Text(";", quoted=True),
        ),
    ),
    "pipes": (
        write_pipes,
        Schema(
            label="label",
            dense=[Dense("age", "standardize"), Dense("score", "standardize")],
            sparse=["city", "device", "item"],
            format=Text(
                "|",
                header=False,
                columns=("label", "age", "score", "city", "device", "item"),
                missing=("", r"\N"),
            ),
        ),
    ),
    "parquet": (write_parquet, _PARQUET),
    "partitions": (write_partitions, _PARQUET),
    "booleans": (
        write_booleans,
        Schema(
            label="converted",
            dense=[
                Dense("num_visits", "log1p"),
                Dense("balance", "standardize"),
                "has_app",
            ],
            sparse=["member", "plan"],
            weight="weight",
            format=Text(missing=_NULLS),
        ),
    ),
    "weighted_bags": (
        write_weighted_bags,
        Schema(
            label="label",
            dense=Dense("dwell_seconds", "log1p"),
            sparse=[
                *("user", "product"),
                Sparse("recent_products", separator="|", table="product"),
                Sparse("topics", separator="|", weight_separator=":"),
                "hour",
            ],
            group="user",
        ),
    ),
    "categories_only": (
        write_categories_only,
        Schema(
            label="is_click",
            sparse=["site", "country", "device", "campaign_id", "zip"],
        ),
    ),
    "wide": (
        write_wide,
        Schema(
            label="target",
            dense=[Dense(f"x{n}", "standardize") for n in range(2000)],
            sparse="site",
        ),
    ),
}
