"""Schemas to and from JSON that is short enough to write by hand."""

import dataclasses
import json
import reprlib
import typing
from collections.abc import Iterable
from typing import Any

from pipelines.runtime import UserError
from pipelines.schema.columns import (
    DEFAULT_NUM_BUCKETS,
    Dense,
    Label,
    Parquet,
    Sparse,
    Text,
)
from pipelines.schema.growing import Growing
from pipelines.value_types import check_types

_OTHERS = ("weight", "time", "group")


def write(schema: Any) -> str:
    """Return a schema as JSON text, without settings that have their defaults."""
    content: dict[str, Any] = {"label": _short(schema.label)}
    content["dense"] = [_short(feature) for feature in schema.dense]
    content["sparse"] = [_short(feature) for feature in schema.sparse]
    for name in _OTHERS:
        if getattr(schema, name) is not None:
            content[name] = getattr(schema, name)
    kind = "text" if isinstance(schema.format, Text) else "parquet"
    content["format"] = {"type": kind, **_differences(schema.format)}
    lines = [f" {json.dumps(k)}: {_lay_out(v)}" for k, v in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def read(text: str) -> dict[str, Any]:
    """Return the arguments of the `Schema` that a JSON text describes.

    Raises:
        ValueError: If the text is not JSON, or a key or value is wrong; the message
            names it.
    """
    try:
        content = json.loads(text, object_pairs_hook=_unique)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise UserError("a schema must be a JSON object, in braces.")
    _check_keys("the schema", content, ["label", "dense", "sparse", *_OTHERS, "format"])
    if "label" not in content:
        raise UserError('a schema must name the label\'s column: "label": "click".')
    values = dict(content)
    values["label"] = _read(Label, "label", content["label"])
    for name, kind in (("dense", Dense), ("sparse", Sparse)):
        features = content.get(name, [])
        if not isinstance(features, list):
            raise UserError(f'"{name}" must be a list of columns.')
        values[name] = tuple(
            _read(kind, f"{name}[{position}]", feature)
            for position, feature in enumerate(features)
        )
    if "format" in content:
        values["format"] = _read_format(content["format"])
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"the key {name!r} occurs twice in one object.")
    return dict(pairs)


def _differences(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that differ from their defaults."""
    content = {}
    for field in dataclasses.fields(value):
        own = getattr(value, field.name)
        if field.name == "name" and own == str(value.column):
            continue
        if field.name == "table" and own == value.name:
            continue
        if isinstance(own, Growing):
            content[field.name] = _differences(own) or True
        elif own != field.default:
            content[field.name] = list(own) if isinstance(own, tuple) else own
    if content.get("num_buckets") == DEFAULT_NUM_BUCKETS:
        del content["num_buckets"]
    return content


def _short(value: Any) -> Any:
    """Return a feature for JSON: only its column if all else has its default."""
    content = _differences(value)
    return content["column"] if list(content) == ["column"] else content


def _lay_out(value: Any) -> str:
    """Return JSON with each feature on its own line."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
    return json.dumps(value)


def _read(kind: type, place: str, content: Any) -> Any:
    if isinstance(content, str | int) and not isinstance(content, bool):
        content = {"column": content}
    if not isinstance(content, dict):
        raise UserError(
            f"{place} must be a column's name or an object. Received: "
            f"{json.dumps(content)[:60]}"
        )
    fields = {field.name: field for field in dataclasses.fields(kind)}
    _check_keys(place, content, fields)
    if "column" not in content:
        raise UserError(f'{place} needs a "column".')
    return _make(kind, place, content)


def _read_format(content: Any) -> Text | Parquet:
    kinds = {"text": Text, "parquet": Parquet}
    if not isinstance(content, dict) or content.get("type") not in kinds:
        raise UserError('"format" must be an object with "type": "text" or "parquet".')
    values = {name: value for name, value in content.items() if name != "type"}
    kind = kinds[content["type"]]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    _check_keys("format", values, fields)
    return _make(kind, "format", values)


def _make(kind: type, place: str, content: dict[str, Any]) -> Any:
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    try:
        check_types(content, typing.get_type_hints(kind))
        return kind(**values)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _check_keys(place: str, content: dict[str, Any], known: Iterable[str]) -> None:
    known = list(known)
    for name in content:
        if name not in known:
            raise UserError(
                f"{place} has no key {reprlib.repr(name)}. It may have: "
                f"{', '.join(known)}."
            )
