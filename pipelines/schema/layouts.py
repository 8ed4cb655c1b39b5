"""The built-in schemas by name: layouts of public click logs."""

from pipelines.schema.columns import FALSE_TEXTS, Dense, Label, Sparse, Text
from pipelines.schema.schema import Schema

_INTEGERS = tuple(f"I{number}" for number in range(1, 14))
_CATEGORIES = tuple(f"C{number}" for number in range(1, 27))
_AVAZU = (
    *"C1 banner_pos site_id site_domain site_category app_id app_domain".split(),
    *"app_category device_id device_ip device_model device_type".split(),
    *("device_conn_type", *(f"C{number}" for number in range(14, 22))),
)
_AVAZU_X1 = tuple(f"feat_{number}" for number in range(1, 23))
_FRAPPE = tuple(
    "user item daytime weekday isweekend homework cost weather country city".split()
)
_MOVIELENS = ("user_id", "item_id", "tag_id")
_KDD12 = (
    *"DisplayURL AdID AdvertiserID Depth Position QueryID KeywordID".split(),
    *("TitleID", "DescriptionID", "UserID"),
)
_LABEL_OR_MINUS = Label("label", negative=(*FALSE_TEXTS, "-1", "-1.0"))

_SCHEMAS = {
    # The Kaggle and Terabyte sets.
    "criteo": Schema(
        Label("label", positive=("1",), negative=("0",)),
        tuple(Dense(name, "log1p", integer=True) for name in _INTEGERS),
        tuple(Sparse(name, separator=",") for name in _CATEGORIES),
        format=Text("\t", False, ("label", *_INTEGERS, *_CATEGORIES)),
    ),
    # Criteo_x1 of BARS and FuxiCTR: a CSV file with a header, made from the files of
    # Cheng, Shen and Huang, "Adaptive Factorization Network" (AAAI 2020). Its numbers
    # are already scaled to about [0, 1], so they are not transformed.
    # https://github.com/reczoo/Datasets/tree/main/Criteo
    "criteo_x1": Schema(
        "label",
        _INTEGERS,
        _CATEGORIES,
        format=Text(columns=("label", *_INTEGERS, *_CATEGORIES)),
    ),
    # Criteo_x4 of BARS and FuxiCTR: the Kaggle set as CSV with a header, where the
    # label is `Label`, split 8:1:1 as in Song et al., "AutoInt" (CIKM 2019). Numbers
    # are the raw counts. https://github.com/reczoo/Datasets/tree/main/Criteo/Criteo_x4
    "criteo_x4": Schema(
        "Label",
        tuple(Dense(name, "log1p") for name in _INTEGERS),
        _CATEGORIES,
        format=Text(columns=("Label", *_INTEGERS, *_CATEGORIES)),
    ),
    # Criteo_x4 with all numbers as categories, the setting `001` of BARS: numbers x
    # above 2 are the categories floor(ln(x)²), so that each number has its own table.
    # https://github.com/reczoo/Datasets/tree/main/Criteo/Criteo_x4
    "criteo_x4_001": Schema(
        "Label",
        sparse=(*(Sparse(name, buckets="log2") for name in _INTEGERS), *_CATEGORIES),
        format=Text(columns=("Label", *_INTEGERS, *_CATEGORIES)),
    ),
    # `train.csv` of Avazu's contest on Kaggle in 2014. All features are categories.
    # `hour`, written YYMMDDHH, is the event time and not a feature; `id` is unique in
    # each row and left out. Avazu_x4 of BARS has the same columns.
    # https://www.kaggle.com/c/avazu-ctr-prediction/data
    "avazu": Schema(
        "click",
        sparse=_AVAZU,
        time="hour",
        format=Text(columns=("id", "click", "hour", *_AVAZU)),
    ),
    # Avazu_x1 of BARS and FuxiCTR: the files of Cheng, Shen and Huang, "Adaptive
    # Factorization Network" (AAAI 2020), with 22 numbered categories.
    # https://github.com/reczoo/Datasets/tree/main/Avazu
    "avazu_x1": Schema(
        "label", sparse=_AVAZU_X1, format=Text(columns=("label", *_AVAZU_X1))
    ),
    # Frappe_x1 of BARS and FuxiCTR: apps that users opened, each with two randomly
    # drawn apps as negatives, and the context, from Cheng, Shen and Huang, "Adaptive
    # Factorization Network" (AAAI 2020). A label of -1 also means no click.
    # https://github.com/reczoo/Datasets/tree/main/Frappe
    "frappe": Schema(
        _LABEL_OR_MINUS,
        sparse=_FRAPPE,
        group="user",
        format=Text(columns=("label", *_FRAPPE)),
    ),
    # MovielensLatest_x1 of BARS and FuxiCTR: tags that users gave to films, and
    # randomly drawn tags as negatives, from Cheng, Shen and Huang, "Adaptive
    # Factorization Network" (AAAI 2020). As in the paper, a label of -1 means no click.
    # https://github.com/reczoo/Datasets/tree/main/MovieLens
    "movielens": Schema(
        _LABEL_OR_MINUS,
        sparse=_MOVIELENS,
        group="user_id",
        format=Text(columns=("label", *_MOVIELENS)),
    ),
    # `ratings.csv` of GroupLens: MovieLens Latest, 20M, 25M. A rating of at least 4
    # stars counts as a click; `timestamp`, in seconds, is the event time.
    # https://grouplens.org/datasets/movielens/
    "movielens_ratings": Schema(
        Label("rating", threshold=4),
        sparse=("userId", "movieId"),
        time="timestamp",
        group="userId",
        format=Text(columns=("userId", "movieId", "rating", "timestamp")),
    ),
    # `training.txt` of KDD Cup 2012, track 2 (Tencent): twelve tab-separated columns
    # without a header. A row gives the number of clicks in `Impression` views of an ad;
    # at least one click makes the label 1.
    # http://www.kddcup2012.org/c/kddcup2012-track2/data
    "kdd12": Schema(
        Label("Click", threshold=1),
        sparse=_KDD12,
        group="UserID",
        format=Text("\t", False, ("Click", "Impression", *_KDD12)),
    ),
}
NAMES = tuple(_SCHEMAS)


def get(name: str) -> Schema:
    """Return a built-in schema by name.

    Args:
        name: One of `NAMES`.

    Example:

    >>> from pipelines.schema import layouts
    >>> len(layouts.get("criteo").columns)
    40
    """
    return _SCHEMAS[name]
