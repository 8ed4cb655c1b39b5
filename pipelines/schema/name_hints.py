"""Hints from column names: ids, amounts, labels, times, weights, users."""

import re
from collections.abc import Sequence

_ID_WORDS = set(
    "id ids uid uuid guid key code codes zip zipcode postcode hash md5 type kind "
    "category categories cat class brand campaign creative advertiser publisher site "
    "domain url host app page item items product sku movie video song artist author "
    "shop store seller ad ads adgroup user member customer visitor cookie country "
    "region city state language lang locale gender sex os browser device model make "
    "carrier isp network channel slot format banner placement position pos weekday "
    "dow hour month ip agent ua tag tags genre genres segment cluster bucket group "
    "topic keyword query title job occupation education sparse version".split()
)
_AMOUNT_WORDS = set(
    "count counts cnt num number nb n total sum price amount cost age clicks views "
    "impressions imps score rate ratio ctr avg mean max min std var duration seconds "
    "secs minutes ms days hours dwell length len size quantity qty distance bid budget "
    "revenue income depth width height rank recency frequency freq since percent pct "
    "prob probability visits sessions orders purchases stars likes dense numeric "
    "float int".split()
)
_LABELS = (
    *("label", "click", "clicked", "is_click", "is_clicked", "isclick", "clk"),
    *("target", "y", "conversion", "converted", "is_conversion", "purchase"),
    *("purchased", "is_purchase", "bought", "installed", "is_install", "outcome"),
    *("response", "is_positive", "like", "liked", "is_like", "rating", "stars"),
    "clicks",
)
_LABEL_WORDS = {"label", "click", "clicked", "target", "conversion", "converted"}
_GROUPS = (
    *("user", "user_id", "userid", "uid", "uuid", "member_id", "customer_id"),
    *("visitor_id", "cookie_id", "viewer_id", "profile_id", "account_id"),
)
_TIMES = (
    *("timestamp", "event_time", "time", "datetime", "ts", "event_timestamp"),
    *("date_time", "created_at", "date", "event_date", "day", "hour", "unix_time"),
)
_WEIGHTS = (
    *("weight", "sample_weight", "weights", "w", "importance", "ips_weight"),
    *("importance_weight", "row_weight", "example_weight"),
)
_ROW_IDS = ("id", "row_id", "index", "rowid", "request_id", "impression_id", "event_id")


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case, without numbers at its end.

    Example:

    >>> words_of("lastClickCount_7d"), words_of("cat_12")
    (['last', 'click', 'count', '7', 'd'], ['cat'])
    """
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", name)
    while len(words) > 1 and words[-1].isdigit():
        words.pop()
    return [word.lower() for word in words]


def is_id(name: str) -> bool | None:
    """Return whether a number with this name is an id; `None` if the name is unclear.

    Example:

    >>> is_id("userId"), is_id("price"), is_id("x7"), is_id("item_price")
    (True, False, None, False)
    """
    if re.fullmatch(r"C[0-9]{1,3}", name):
        return True
    if re.fullmatch(r"I[0-9]{1,3}", name):
        return False
    words = words_of(name)
    if not words:
        return None
    if words[-1] in _AMOUNT_WORDS:
        return False
    if words[-1] in _ID_WORDS:
        return True
    if _AMOUNT_WORDS.intersection(words):
        return False
    return True if _ID_WORDS.intersection(words) else None


def label_rank(name: str) -> int | None:
    """Return the rank of a name for the label, 0 the likeliest; `None` if unlikely."""
    plain = "_".join(words_of(name)) or name.lower()
    if plain in _LABELS:
        return _LABELS.index(plain)
    if plain.replace("_", "") in _LABELS:
        return _LABELS.index(plain.replace("_", ""))
    words = words_of(name)
    if _LABEL_WORDS.intersection(words) and is_id(name) is None and len(words) < 4:
        return len(_LABELS)
    return None


def group_rank(name: str) -> int | None:
    """Return the rank of a name for the column of users; see `label_rank`."""
    return _rank(name, _GROUPS)


def time_rank(name: str) -> int | None:
    """Return the rank of a name for the event time; see `label_rank`."""
    return _rank(name, _TIMES)


def weight_rank(name: str) -> int | None:
    """Return the rank of a name for the weight of a row; see `label_rank`."""
    return _rank(name, _WEIGHTS)


def is_row_id(name: str) -> bool:
    """Return whether a name suggests an id of rows."""
    return _rank(name, _ROW_IDS) is not None


def _rank(name: str, names: Sequence[str]) -> int | None:
    plain = "_".join(words_of(name))
    for form in (plain, name.lower(), plain.replace("_", "")):
        if form in names:
            return names.index(form)
    return None
