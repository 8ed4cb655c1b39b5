"""Warm-up requests, which TensorFlow Serving runs before it accepts other requests.

The file contains messages of TensorFlow Serving. This module describes the few fields
that a request needs, so that writing the file requires no package but TensorFlow.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tf_dlrm.runtime.types import PathLike
from tf_dlrm.serving.c_library import Request

BATCH_SIZES = (1, 8, 64)
WARM_UP = "assets.extra/tf_serving_warmup_requests"

_FIELD = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "tf_dlrm.serving"
# Names and numbers of fields in model.proto, predict.proto and prediction_log.proto of
# tensorflow_serving/apis 2.19. On the wire, a nested `TensorProto` equals its bytes,
# and a map equals a list of its entries.
_MESSAGES = {
    "ModelSpec": [("name", 1, "string"), ("signature_name", 3, "string")],
    "Input": [("key", 1, "string"), ("value", 2, "bytes")],
    "PredictRequest": [("model_spec", 1, "ModelSpec"), ("inputs", 2, "Input*")],
    "PredictLog": [("request", 1, "PredictRequest")],
    "PredictionLog": [("predict_log", 6, "PredictLog")],
}


def _make_classes() -> dict[str, Any]:
    """Create the classes of `_MESSAGES`, by name."""
    file = descriptor_pb2.FileDescriptorProto(
        name="tf_dlrm/serving/warm_up.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind in fields:
            field = message.field.add(name=field_name, number=number)
            many = kind.endswith("*")
            field.label = _FIELD.LABEL_REPEATED if many else _FIELD.LABEL_OPTIONAL
            if kind in ("string", "bytes"):
                field.type = getattr(_FIELD, f"TYPE_{kind.upper()}")
            else:
                field.type = _FIELD.TYPE_MESSAGE
                field.type_name = f".{_PACKAGE}.{kind.removesuffix('*')}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")
        )
        for name in _MESSAGES
    }


def write(requests: Sequence[Request], model_name: str, folder: PathLike) -> None:
    """Write requests as TFRecords of `PredictionLog`.

    Args:
        requests: The requests. A server refuses a model that fails on any of them.
        model_name: Name of the model on the server.
        folder: Directory of the exported version.
    """
    make_log = _make_classes()["PredictionLog"]
    with tf.io.TFRecordWriter(str(pathlib.Path(folder) / WARM_UP)) as writer:
        for request in requests:
            log = make_log()
            message = log.predict_log.request
            message.model_spec.name = model_name
            message.model_spec.signature_name = request.signature
            for name, value in request.inputs.items():
                tensor = tf.make_tensor_proto(value).SerializeToString()
                message.inputs.add(key=name, value=tensor)
            writer.write(log.SerializeToString(deterministic=True))
