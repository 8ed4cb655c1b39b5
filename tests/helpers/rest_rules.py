"""How TensorFlow Serving reads JSON requests and writes answers.

The rules of its `api_rest.md`, and where that is silent of `json_tensor.cc`. Its server
has no package, so they are written down here once more, as what documentation and
exports are held to.
"""

import base64
import json

import numpy as np
import tensorflow as tf


class Refused(ValueError):
    """What the server answers with HTTP 400."""


def read_request(text, signatures):
    """Turns a request's JSON into tensors.

    Args:
        text: The body.
        signatures: `SignatureDef` by name.

    Returns:
        Name of the signature, `"instances"` or `"inputs"`, and arrays by input.
    """
    body = json.loads(text)  # like the server it takes NaN and Infinity
    if not isinstance(body, dict):
        raise Refused("Is not object")
    name = body.get("signature_name", "serving_default")
    if name not in signatures:
        raise Refused(f"Serving signature name: {name} not found in signature def")
    dtypes = {
        key: tf.dtypes.as_dtype(info.dtype)
        for key, info in signatures[name].inputs.items()
    }
    forms = [key for key in ("instances", "inputs") if key in body]
    if len(forms) != 1:
        raise Refused("expecting one of 'inputs' or 'instances'")
    read = _read_rows if forms == ["instances"] else _read_columns
    return name, forms[0], read(body[forms[0]], dtypes)


def write_response(form, outputs):
    """The JSON of an answer: without the name, as there is one output.

    Args:
        form: Of the request.
        outputs: Array by output.
    """
    (values,) = outputs.values()
    if form == "instances" and len(values) < 1:
        raise Refused("has invalid batch size: 0")
    key = {"instances": "predictions", "inputs": "outputs"}[form]
    return json.dumps({key: values.tolist()})


def _read_rows(instances, dtypes):
    if not isinstance(instances, list) or not instances:
        raise Refused("No values in 'instances' array")
    named = _is_object(instances[0])
    if not named and len(dtypes) > 1:
        raise Refused("instances is a plain list, but expecting list of objects")
    columns = {name: [] for name in dtypes}
    for each in instances:
        if _is_object(each) != named:
            raise Refused("Expecting value/list or object, as the first item")
        each = each if named else dict.fromkeys(dtypes, each)
        if set(each) != set(dtypes):
            raise Refused(f"must only have keys: {sorted(dtypes)}")
        for name, value in each.items():
            columns[name].append(_read_tensor(value, dtypes[name]))
    for name, column in columns.items():
        if len({value.shape for value in column}) > 1:
            raise Refused(f"Expecting one shape of {name}")
    return {name: np.stack(column) for name, column in columns.items()}


def _read_columns(inputs, dtypes):
    if not _is_object(inputs):
        if len(dtypes) > 1:
            raise Refused("inputs is a plain value/list, but expecting an object")
        inputs = dict.fromkeys(dtypes, inputs)
    missing = set(dtypes) - set(inputs)  # others are ignored
    if missing:
        raise Refused(f"Missing named input: {sorted(missing)}")
    return {name: _read_tensor(inputs[name], dtypes[name]) for name in dtypes}


def _is_object(value):
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value):
    is_one = isinstance(value, dict) and list(value) == ["b64"]
    return is_one and isinstance(value["b64"], str)


def _read_tensor(value, dtype):
    """The first element of each list says how long the lists of its level are."""
    shape, first = [], value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    leaves = []
    _collect(value, shape, dtype, leaves)
    kind = object if dtype == tf.string else dtype.as_numpy_dtype
    return np.array(leaves, kind).reshape(shape)


def _collect(value, shape, dtype, leaves):
    if isinstance(value, list):
        if not shape or len(value) != shape[0]:
            raise Refused("Encountered list at unexpected size or level")
        for each in value:
            _collect(each, shape[1:], dtype, leaves)
    elif shape:
        raise Refused(f"JSON Value: {value} found at incorrect level")
    else:
        leaves.append(_read_leaf(value, dtype))


def _read_leaf(value, dtype):
    if dtype == tf.string:
        if _is_base64(value):
            return base64.b64decode(value["b64"], validate=True)
        if isinstance(value, str):
            return value.encode()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if dtype == tf.int64 and isinstance(value, int) and abs(value) < 1 << 63:
            return value
        if dtype == tf.float32:
            most = float(np.finfo(np.float32).max)
            if not np.isfinite(value) or abs(value) <= most:
                # A whole number must be one of float32's.
                if not isinstance(value, int) or abs(value) < 1 << 24:
                    return value
    raise Refused(f"JSON Value: {value!r} is not of expected type: {dtype.name}")
