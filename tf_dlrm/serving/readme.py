"""`assets.extra/README.md` of an export: example requests with the model's answers."""

import base64
import json
import pprint
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dlrm.calibration import Correction, SlicedCorrection
from tf_dlrm.serving.c_library import Request

_MOST_NAMES = 60
_IN_PYTHON = (
    "The same request in Python, without a server; `folder` is the folder of this "
    "version, which contains `saved_model.pb`:"
)


def write_readme(
    model_name: str,
    requests: list[Request],
    preprocessor: Any = None,
    calibration: Correction | SlicedCorrection | None = None,
) -> str:
    """Return a Markdown page with a request to each signature that takes raw fields.

    Args:
        model_name: Name of the model on the server.
        requests: Requests to the model's signatures, with answers.
        preprocessor: The preprocessor. With `None`, the page has a request to
            `serving_default` instead.
        calibration: Correction of the probabilities. Default: none.
    """
    by_name = {request.signature: request for request in requests}
    parts = [
        f"# Requests to the model `{model_name}`\n\n"
        "TensorFlow Serving answers these requests on its REST port, 8501 by default. "
        "A request may contain several instances; the answer has one probability for "
        "each of them."
    ]
    if calibration is not None:
        parts.append(_correction(calibration))
    others = ("serving_default", "serving_ragged", "serving_candidates")
    raw = [by_name[name] for name in by_name if name not in others]
    for request in raw:
        (name,) = request.inputs
        make = _lines if name == "lines" else _examples
        parts += make(request, model_name, preprocessor)
    if not raw and "serving_default" in by_name:
        parts += _default(by_name["serving_default"], model_name)
    return "\n\n".join(parts) + "\n"


def _correction(calibration: Correction | SlicedCorrection) -> str:
    facts = calibration.describe()
    names = {"platt": "Platt's method", "isotonic": "isotonic regression"}
    text = (
        "All probabilities of this export are corrected by "
        f"{names[calibration.method]}, fitted on {facts['num_rows']:,} rows."
    )
    if "slice_feature" in facts:
        text += (
            f" {len(facts['slice_ids']):,} values of `{facts['slice_feature']}` have "
            "a correction of their own."
        )
    return text


def _lines(request: Request, model_name: str, preprocessor: Any) -> list[str]:
    line = request.inputs["lines"][0]
    columns = getattr(preprocessor, "line_columns", None)
    delimiter = getattr(preprocessor, "delimiter", "\t")
    names = f" {_listed(columns)}, separated by `{delimiter!r}`" if columns else ""
    unread = " Cells of columns that are not features may be empty." if columns else ""
    return [
        f"## `{request.signature}`: lines of a log\n\n"
        f"A line has the columns{names or ' of the training files'}.{unread}",
        _curl(request.signature, [_text(line)], model_name),
        f"The probability of this line is {_probability(request)}. {_IN_PYTHON}",
        _python(
            "import tensorflow as tf",
            "",
            "signatures = tf.saved_model.load(folder).signatures",
            f"lines = tf.constant([{line!r}])",
            f'answer = signatures["{request.signature}"](lines=lines)',
            'print(answer["probabilities"].numpy())',
        ),
    ]


def _examples(request: Request, model_name: str, preprocessor: Any) -> list[str]:
    example = request.inputs["examples"][0]
    types: dict[str, str] = preprocessor.example_features()
    rows = [
        f"| `{name}` | {kind} |" for name, kind in list(types.items())[:_MOST_NAMES]
    ]
    if len(types) > _MOST_NAMES:
        rows.append(f"| ... | {len(types) - _MOST_NAMES} more, in `tf_dlrm.json` |")
    table = "\n".join(["| feature | type |", "| --- | --- |", *rows])
    values = pprint.pformat(_values(example), sort_dicts=False, width=80)
    return [
        f"## `{request.signature}`: `tf.Example` messages\n\n"
        "A message contains raw fields by name. Omit missing fields.",
        table,
        _curl(request.signature, [_base64(example)], model_name),
        f"The probability of this message is {_probability(request)}. {_IN_PYTHON}",
        _python(
            "import tensorflow as tf",
            "",
            f"values = {values}",
            "message = tf.train.Example()",
            "for name, value in values.items():",
            "    feature = message.features.feature[name]",
            "    kinds = {int: feature.int64_list, float: feature.float_list}",
            "    kinds.get(type(value[0]), feature.bytes_list).value.extend(value)",
            "signatures = tf.saved_model.load(folder).signatures",
            "examples = tf.constant([message.SerializeToString()])",
            f'answer = signatures["{request.signature}"](examples=examples)',
            'print(answer["probabilities"].numpy())',
        ),
    ]


def _default(request: Request, model_name: str) -> list[str]:
    instance = {name: value[0].tolist() for name, value in request.inputs.items()}
    return [
        "## `serving_default`: transformed numbers and ids\n\n"
        "An id of -1 stands for a missing id.",
        _curl(request.signature, [instance], model_name),
        f"The probability of this row is {_probability(request)}.",
    ]


def _curl(signature: str, instances: list[Any], model_name: str) -> str:
    body = json.dumps({"signature_name": signature, "instances": instances})
    address = f"http://localhost:8501/v1/models/{model_name}:predict"
    return f"```sh\ncurl -d @- {address} <<'REQUEST'\n{body}\nREQUEST\n```"


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _listed(columns: list[str]) -> str:
    names = ", ".join(f"`{name}`" for name in columns[:_MOST_NAMES])
    more = len(columns) - _MOST_NAMES
    return f"{names} and {more} more" if more > 0 else names


def _probability(request: Request) -> str:
    return f"{float(np.reshape(request.probabilities, -1)[0]):.6f}"


def _text(line: bytes) -> Any:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return _base64(line)


def _base64(content: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(content).decode()}


def _values(example: bytes) -> dict[str, list[Any]]:
    """Return the fields of a serialized `tf.Example` message."""
    features = tf.train.Example.FromString(example).features.feature
    kinds = ("int64_list", "float_list", "bytes_list")
    return {
        name: [v for kind in kinds for v in getattr(features[name], kind).value]
        for name in sorted(features)
    }
