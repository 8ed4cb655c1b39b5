"""The built-in schemas by name: layouts of public click logs."""

import dataclasses
import functools

from pipelines.schema.columns import FALSE_TEXTS, Dense, Label, Sparse, Text
from pipelines.schema.schema import Schema

_INTEGERS = tuple(f"I{number}" for number in range(1, 14))
_CATEGORIES = tuple(f"C{number}" for number in range(1, 27))
_AVAZU = ("C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id")
_AVAZU += ("app_domain", "app_category", "device_id", "device_ip", "device_model")
_AVAZU += ("device_type", "device_conn_type")
_AVAZU += tuple(f"C{number}" for number in range(14, 22))
_KDD12 = ("DisplayURL", "AdID", "AdvertiserID", "Depth", "Position", "QueryID")
_KDD12 += ("KeywordID", "TitleID", "DescriptionID", "UserID")


def _criteo() -> Schema:
    """Return the layout of the Kaggle and Terabyte sets."""
    return Schema(
        label=Label("label", positive=("1",), negative=("0",)),
        dense=tuple(Dense(name, "log1p", integer=True) for name in _INTEGERS),
        sparse=tuple(Sparse(name, separator=",") for name in _CATEGORIES),
        format=Text("\t", False, ("label", *_INTEGERS, *_CATEGORIES)),
    )


def _criteo_x1() -> Schema:
    """Return the layout of Criteo_x1 of BARS and FuxiCTR.

    A CSV file with a header, made from the files of Cheng, Shen and Huang, "Adaptive
    Factorization Network" (AAAI 2020). Its numbers are already scaled to about [0, 1],
    so they are not transformed.
    https://github.com/reczoo/Datasets/tree/main/Criteo
    """
    return Schema(
        label="label",
        dense=_INTEGERS,
        sparse=_CATEGORIES,
        format=Text(columns=("label", *_INTEGERS, *_CATEGORIES)),
    )


def _criteo_x4() -> Schema:
    """Return the layout of Criteo_x4 of BARS and FuxiCTR.

    The Kaggle set as CSV with a header, where the label is `Label`, split 8:1:1 as in
    Song et al., "AutoInt" (CIKM 2019). Numbers are the raw counts.
    https://github.com/reczoo/Datasets/tree/main/Criteo/Criteo_x4
    """
    return Schema(
        label="Label",
        dense=tuple(Dense(name, "log1p") for name in _INTEGERS),
        sparse=_CATEGORIES,
        format=Text(columns=("Label", *_INTEGERS, *_CATEGORIES)),
    )


def _criteo_x4_001() -> Schema:
    """Return the layout of Criteo_x4 with all numbers as categories.

    The setting `001` of BARS: the rows of `criteo_x4`, whose numbers x above 2 are the
    categories floor(ln(x)²), so that each number has its own table.
    https://github.com/reczoo/Datasets/tree/main/Criteo/Criteo_x4
    """
    schema = _criteo_x4()
    numbers = tuple(Sparse(name, buckets="log2") for name in _INTEGERS)
    return dataclasses.replace(schema, dense=(), sparse=(*numbers, *schema.sparse))


def _avazu() -> Schema:
    """Return the layout of `train.csv` of Avazu's contest on Kaggle in 2014.

    All features are categories. `hour`, written YYMMDDHH, is the event time and not a
    feature; `id` is unique in each row and left out. Avazu_x4 of BARS has the same
    columns. https://www.kaggle.com/c/avazu-ctr-prediction/data
    """
    return Schema(
        label="click",
        sparse=_AVAZU,
        time="hour",
        format=Text(columns=("id", "click", "hour", *_AVAZU)),
    )


def _avazu_x1() -> Schema:
    """Return the layout of Avazu_x1 of BARS and FuxiCTR.

    The files of Cheng, Shen and Huang, "Adaptive Factorization Network" (AAAI 2020),
    with 22 numbered categories.
    https://github.com/reczoo/Datasets/tree/main/Avazu
    """
    features = tuple(f"feat_{number}" for number in range(1, 23))
    return Schema(
        label="label", sparse=features, format=Text(columns=("label", *features))
    )


def _frappe() -> Schema:
    """Return the layout of Frappe_x1 of BARS and FuxiCTR.

    Apps that users opened, each with two randomly drawn apps as negatives, and the
    context, from Cheng, Shen and Huang, "Adaptive Factorization Network" (AAAI 2020).
    A label of -1 also means no click.
    https://github.com/reczoo/Datasets/tree/main/Frappe
    """
    features = ("user", "item", "daytime", "weekday", "isweekend", "homework", "cost")
    features += ("weather", "country", "city")
    return Schema(
        label=Label("label", negative=(*FALSE_TEXTS, "-1", "-1.0")),
        sparse=features,
        group="user",
        format=Text(columns=("label", *features)),
    )


def _movielens() -> Schema:
    """Return the layout of MovielensLatest_x1 of BARS and FuxiCTR.

    Tags that users gave to films, and randomly drawn tags as negatives, from Cheng,
    Shen and Huang, "Adaptive Factorization Network" (AAAI 2020). As in the paper, a
    label of -1 means no click.
    https://github.com/reczoo/Datasets/tree/main/MovieLens
    """
    features = ("user_id", "item_id", "tag_id")
    return Schema(
        label=Label("label", negative=(*FALSE_TEXTS, "-1", "-1.0")),
        sparse=features,
        group="user_id",
        format=Text(columns=("label", *features)),
    )


def _movielens_ratings() -> Schema:
    """Return the layout of `ratings.csv` of GroupLens: MovieLens Latest, 20M, 25M.

    A rating of at least 4 stars counts as a click; `timestamp`, in seconds, is the
    event time. https://grouplens.org/datasets/movielens/
    """
    return Schema(
        label=Label("rating", threshold=4),
        sparse=("userId", "movieId"),
        time="timestamp",
        group="userId",
        format=Text(columns=("userId", "movieId", "rating", "timestamp")),
    )


def _kdd12() -> Schema:
    """Return the layout of `training.txt` of KDD Cup 2012, track 2 (Tencent).

    Twelve tab-separated columns without a header. A row gives the number of clicks in
    `Impression` views of an ad; at least one click makes the label 1.
    http://www.kddcup2012.org/c/kddcup2012-track2/data
    """
    return Schema(
        label=Label("Click", threshold=1),
        sparse=_KDD12,
        group="UserID",
        format=Text("\t", False, ("Click", "Impression", *_KDD12)),
    )


_MAKERS = {
    "criteo": _criteo,
    "criteo_x1": _criteo_x1,
    "criteo_x4": _criteo_x4,
    "criteo_x4_001": _criteo_x4_001,
    "avazu": _avazu,
    "avazu_x1": _avazu_x1,
    "frappe": _frappe,
    "movielens": _movielens,
    "movielens_ratings": _movielens_ratings,
    "kdd12": _kdd12,
}
NAMES = tuple(_MAKERS)


@functools.cache
def get(name: str) -> Schema:
    """Return a built-in schema by name.

    Args:
        name: One of `NAMES`.

    Example:

    >>> from pipelines.schema import layouts
    >>> len(layouts.get("criteo").columns)
    40
    """
    return _MAKERS[name]()
