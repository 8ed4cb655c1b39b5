"""Requests to an exported model, with the answers of the original model.

They verify an export before it gets its name, are recorded in it for verification on
other machines, and warm up servers.

# B rows, F sparse features, L padded length
"""

import base64
import functools
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_dlrm.features import EmbeddingTable
from tf_dlrm.growing_ids import LARGEST_ID
from tf_dlrm.model import DLRM
from tf_dlrm.runtime import xla
from tf_dlrm.runtime.types import PathLike
from tf_dlrm.serving.c_library import RECORDED, Request
from tf_dlrm.serving.candidates import Split
from tf_dlrm.serving.signatures import ServingModule

# Largest difference of a reloaded model: it has the same graph, but other kernels.
TOLERANCE = 1e-6


class _Answer(NamedTuple):
    """The probabilities and margins of a `Request`."""

    probabilities: np.ndarray
    margins: np.ndarray | None = None


def make_requests(
    model: DLRM,
    module: ServingModule,
    preprocessor: Any,
    num_rows: int,
    batch_sizes: Iterable[int],
) -> tuple[list[Request], list[Request]]:
    """Generate requests to each signature, with the model's answers.

    Args:
        model: The `DLRM`.
        module: The model's `ServingModule`.
        preprocessor: The preprocessor, or `None`.
        num_rows: Number of rows, or of candidates, of the recorded requests.
        batch_sizes: Numbers of rows of the warm-up requests.

    Returns:
        The requests to record, one for each signature; and warm-up requests of each
        size, which a server accepts with and without batching, because all inputs of a
        request have the same number of rows: ragged rows have one id each, and there is
        one candidate.
    """
    # Use a graph of the model, as `predict` does, because eager kernels round
    # differently. With quantized tables, use the module before it is saved.
    model_predict = functools.partial(model, training=False)
    # Unknown ids in a table with fallback="error" are errors of the model only.
    rules = [table.growing for table in model.spec.tables]
    has_errors = any(own is not None and own.fallback == "error" for own in rules)
    is_own = module.quantized is None and not has_errors
    predict = model_predict if is_own else module.predict
    # One graph for each form of the ids, for any number of rows.
    dense = tf.TensorSpec((None, model.spec.num_dense), tf.float32)
    num_sparse = model.spec.num_sparse
    padded = tf.TensorSpec((None, num_sparse, module.max_hotness), tf.int64)
    ragged = tf.RaggedTensorSpec((None, num_sparse, None), tf.int64, ragged_rank=2)
    weights = tf.RaggedTensorSpec((None, num_sparse, None), tf.float32, ragged_rank=2)
    ragged_columns = {"dense_features": dense, "sparse_features": ragged}
    predict_padded, predict_ragged, predict_weighted = (
        tf.function(predict, input_signature=[columns], autograph=False)
        for columns in (
            {"dense_features": dense, "sparse_features": padded},
            ragged_columns,
            {**ragged_columns, "sparse_weights": weights},
        )
    )

    def answers(features: dict[str, Any]) -> _Answer:
        ids = features["sparse_features"]
        is_ragged = isinstance(ids, tf.RaggedTensor)
        predict = predict_ragged if is_ragged else predict_padded
        if "sparse_weights" in features:
            predict = predict_weighted
        if "dense_features" not in features:  # a model without dense features
            features = {"dense_features": tf.zeros((ids.shape[0], 0)), **features}
        with xla.disabled():  # compiling does not pay off for a few rows
            probabilities: np.ndarray = predict(features).numpy()
        slice_ids = module.slice_ids(ids)

        def corrected(difference: float) -> np.ndarray:
            near = np.clip(probabilities + np.float32(difference), 0.0, 1.0)
            answer: np.ndarray = module.correct(near, slice_ids)
            return answer

        if module.calibration is None:
            return _Answer(probabilities)
        answer = corrected(0.0)
        ends = corrected(-TOLERANCE), corrected(TOLERANCE)
        return _Answer(answer, np.max([np.abs(end - answer) for end in ends], axis=0))

    recorded = _make(model, module, preprocessor, num_rows, answers)
    for_warm_up = [
        request
        for size in batch_sizes
        for request in _make(model, module, preprocessor, size, answers, True)
    ]
    return recorded, [request for request in for_warm_up if _has_equal_rows(request)]


def _has_equal_rows(request: Request) -> bool:
    return len({len(value) for value in request.inputs.values()}) == 1


def _sample_ids(
    embedding: Any,
    table: EmbeddingTable,
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> np.ndarray:
    """Return ids of a table, and -1; for a growing table, also ids without a row."""
    if table.growing is None:
        return rng.integers(-1, table.vocabulary_size, shape)
    known = embedding.get_ids(table.name)
    known = np.concatenate([known[known >= 0], [-1]])
    ids: np.ndarray = rng.choice(known, shape)
    if table.growing.fallback == "error":
        return ids
    return np.where(rng.random(shape) < 0.25, rng.integers(0, LARGEST_ID, shape), ids)


def _make(
    model: DLRM,
    module: ServingModule,
    preprocessor: Any,
    num_rows: int,
    answers: Callable[[dict[str, Any]], "_Answer"],
    one_id_a_row: bool = False,
) -> list[Request]:
    spec, length = model.spec, module.max_hotness
    rng = np.random.default_rng(0)
    dense = rng.exponential(size=(num_rows, spec.num_dense)).astype("float32")
    tables = [table for table in spec.tables for _ in table.features]
    shape = num_rows, length
    ids = np.stack(
        [_sample_ids(model.embedding, table, shape, rng) for table in tables], axis=1
    )

    def answer(dense: np.ndarray, ids: np.ndarray) -> _Answer:
        constants = {"dense_features": dense, "sparse_features": ids}
        return answers({name: tf.constant(value) for name, value in constants.items()})

    expected = answer(dense, ids)
    requests = [
        Request(
            "serving_default",
            {"dense_features": dense, "sparse_features": ids},
            *expected,
        )
    ]
    bags = ids
    if one_id_a_row:
        bags = np.full_like(ids, -1)
        bags[:, 0, 0] = np.maximum(ids[:, 0, 0], 0)
        expected = answer(dense, bags)
    requests.append(
        Request(
            "serving_ragged",
            {
                "dense_features": dense,
                "sparse_values": bags[bags >= 0],
                "sparse_row_lengths": (bags >= 0).sum(axis=2),
            },
            *expected,
        )
    )
    if hasattr(preprocessor, "sample_lines"):
        lines = preprocessor.sample_lines(num_rows)
        expected = answers(preprocessor.features(tf.constant(lines)))
        raw = {}
        if module.lines_signature is not None:
            raw[module.lines_signature] = ("lines", lines)
        if "serving_examples" in module.functions:
            raw["serving_examples"] = ("examples", preprocessor.to_examples(lines))
        requests += [
            Request(signature, {name: np.array(texts, object)}, *expected)
            for signature, (name, texts) in raw.items()
        ]
    if "serving_candidates" in module.functions:
        split = Split(spec, module.candidate_features)
        inputs = {
            "dense_features": dense[:1, split.shared_dense],
            "sparse_features": ids[:1, split.shared_sparse],
            "candidate_dense_features": dense[:, split.own_dense],
            "candidate_sparse_features": ids[:, split.own_sparse],
        }
        dense, ids = dense.copy(), ids.copy()
        dense[:, split.shared_dense] = inputs["dense_features"]
        ids[:, split.shared_sparse] = inputs["sparse_features"]
        requests.append(Request("serving_candidates", inputs, *answer(dense, ids)))
    return requests


def record(requests: list[Request], folder: PathLike) -> None:
    """Write requests and answers to `assets.extra/tf_dlrm_requests.json`.

    Strings are base64; numbers are read back exactly.
    """
    content = [
        {
            "signature": request.signature,
            "inputs": {k: _to_json(v) for k, v in request.inputs.items()},
            "outputs": {"probabilities": _to_json(request.probabilities)},
            **_margins(request),
        }
        for request in requests
    ]
    text = json.dumps(content) + "\n"
    (pathlib.Path(folder) / RECORDED).write_text(text, encoding="utf-8")


def _margins(request: Request) -> dict[str, Any]:
    return {} if request.margins is None else {"margins": _to_json(request.margins)}


def _to_json(array: np.ndarray) -> dict[str, Any]:
    if array.dtype == object:
        values = [base64.b64encode(value).decode() for value in array.reshape(-1)]
        return {"dtype": "string", "shape": array.shape, "values": values}
    return {
        "dtype": array.dtype.name,
        "shape": array.shape,
        "values": array.reshape(-1).tolist(),
    }
