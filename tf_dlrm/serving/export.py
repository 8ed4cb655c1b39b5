"""`export_saved_model`: a DLRM as a SavedModel that TensorFlow Serving can load."""

import contextlib
import gc
import json
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dlrm.embedding import EmbeddingLayer
from tf_dlrm.features import FeatureSpec
from tf_dlrm.model import DLRM
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import PathLike
from tf_dlrm.serving import versions, warm_up
from tf_dlrm.serving.c_library import Request
from tf_dlrm.serving.readme import write_readme
from tf_dlrm.serving.requests import make_requests, record
from tf_dlrm.serving.signatures import (
    PROBABILITIES,
    ServingModule,
    weights_for_inference,
)
from tf_dlrm.version import __version__

# Bounds of what a reloaded model may differ by: the same graph, other kernels.
_TOLERANCE = 1e-6
_NUM_RECORDED = 16


def export_saved_model(
    model: DLRM,
    base_dir: PathLike,
    version: int | None = None,
    preprocessor: Any = None,
    max_hotness: int = 1,
    candidate_features: Sequence[str] = (),
    table_dtype: str = "float32",
) -> str:
    r"""Write the model to `base_dir/<version>` for TensorFlow Serving.

    The model is written to a temporary directory, loaded again, compared with the
    original on generated requests to every signature, and only then renamed: a version
    is complete or absent. Its `assets.extra` holds requests with the model's answers,
    to verify the export elsewhere, warm-up requests of 1, 8 and 64 rows for
    TensorFlow Serving, and a `README.md` with an example request that this model
    answers, by curl and in Python.

    Args:
        model: A `DLRM`.
        base_dir: Directory of the model's versions, such as `"saved_models/ctr"`.
        version: Positive integer. Default: the one after the largest version, decided
            when the directory is renamed, so concurrent exports do not collide.
        preprocessor: A `pipelines.Parser`, to serve raw lines and messages with the
            vocabulary of the training; or `None`. See
            `tf_dlrm.serving.Preprocessor` for your own.
        max_hotness: Length L of the bags of `serving_default`, padded with -1. It is
            static so that the server can batch requests.
        candidate_features: Names of the features that differ between the items that
            `serving_candidates` scores for one user and context, at least one of them
            sparse. Default: no such signature.
        table_dtype: How tables are stored: `"float32"`; `"float16"` or `"bfloat16"`
            in half of the bytes; `"int8"` or `"int4"` in 0.27 or 0.14 of them at width
            64, integers with a float16 scale and offset for each row. Lookups give
            float32 in all of them.

    Returns:
        The path of the version directory. Signatures in it, all with the output
        `probabilities` float32 `(B, 1)`, corrected for the model's
        `negative_sampling_rate`:

        - `serving_default`: `dense_features` float32 `(B, num_dense)`, transformed;
          `sparse_features` int64 `(B, num_sparse, max_hotness)`. An id of -1, or
          outside of its table, is ignored. A dense value that is not finite counts as
          missing, which is 0.
        - `serving_ragged`: `dense_features`; `sparse_values` int64 `(V,)`, all ids by
          row, then feature; `sparse_row_lengths` int64 `(B, num_sparse)` or flat, how
          many each has. It cannot be batched by the server.
        - `serving_tsv` (with a preprocessor of Criteo's logs; `serving_lines` of other
          text): `lines` string `(B,)`, raw lines with or without the label.
        - `serving_examples` (with a preprocessor): `examples` string `(B,)`,
          serialized `tf.Example` messages of raw fields; their names and types are
          in `assets.extra/tf_dlrm.json`.
        - `serving_candidates`: `dense_features` and `sparse_features` of one row with
          the features that are shared, `candidate_dense_features` and
          `candidate_sparse_features` of N rows with the others, each in the model's
          order. Shared rows are looked up once. Probabilities `(N, 1)`.

    Raises:
        ValueError: If a weight is not finite, an argument is out of range, or the
            preprocessor's vocabulary is not the model's.
        FileExistsError: If the version exists.
        RuntimeError: If the written model does not repeat the model's predictions.

    Example:

    ```python
    path = tf_dlrm.export_saved_model(model, "saved_models/ctr", preprocessor=parser)
    served = tf.saved_model.load(path).signatures["serving_tsv"]
    served(lines=tf.constant(["0\t1\t..."]))["probabilities"]
    ```
    """
    is_count = hasattr(max_hotness, "__index__") and not isinstance(max_hotness, bool)
    if not is_count or int(max_hotness) < 1:
        raise UserError(
            f"`max_hotness` must be a positive integer. Received: {max_hotness!r}"
        )
    if type(model.embedding).lookup is EmbeddingLayer.lookup:
        raise TypeError(
            "The embedding layer must define `lookup(ids, weights=None)`, its forward "
            "pass without range checks, to be exported (see EmbeddingCollection). "
            f"Received: {type(model.embedding).__name__}"
        )
    versions.choose_version(base_dir, version)  # fails now, not after all the work
    _check_finite(model)
    original = preprocessor
    wanted = ("spec", "features", "for_serving")
    if preprocessor is not None:
        if not all(hasattr(preprocessor, name) for name in wanted):
            raise TypeError(
                "`preprocessor` must be a pipelines.Parser, or have its "
                f"{', '.join(wanted)}. Received: {type(preprocessor).__name__}"
            )
        _check_vocabulary(model.spec, preprocessor)
    with contextlib.ExitStack() as stack:
        if preprocessor is not None:
            preprocessor = preprocessor.for_serving()
            # Its files are copied, and large: they go at once, also on an error.
            stack.callback(getattr(preprocessor, "close", lambda: None))
        module = ServingModule(
            model, int(max_hotness), preprocessor, candidate_features, table_dtype
        )
        staged = stack.enter_context(versions.staged_directory(base_dir, version))
        staging = staged.path
        with _quiet():  # it would name the temporary directory
            tf.saved_model.save(module, str(staging), signatures=module.functions)
        _write_description(model, staging, module, int(max_hotness))
        recorded, for_warm_up = make_requests(
            model, module, original, _NUM_RECORDED, warm_up.BATCH_SIZES
        )
        record(recorded, staging)
        _write_texts(recorded, pathlib.Path(base_dir).name, original, staging)
        warm_up.write(for_warm_up, pathlib.Path(base_dir).name, staging)
        _replay(recorded + for_warm_up, staging)
    return str(pathlib.Path(base_dir) / str(staged.version))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_finite(model: DLRM) -> None:
    for variable in weights_for_inference(model):
        if variable.dtype.is_floating and not _is_finite(variable):
            raise UserError(
                f"Weight '{variable.name}' is not finite (NaN or infinity); a model "
                "like this is not exported."
            )


def _is_finite(variable: tf.Variable) -> bool:
    if variable.shape.rank != 2:
        return bool(tf.reduce_all(tf.math.is_finite(variable)))
    # Block by block: a table may be most of the memory.
    return row_ops.is_finite(variable)


def _check_vocabulary(spec: FeatureSpec, preprocessor: Any) -> None:
    widths = {table.embedding_dim for table in spec.tables}
    made = preprocessor.spec(embedding_dim=max(widths))

    def sizes(of: FeatureSpec) -> dict[str, int]:
        return {f: t.vocabulary_size for t in of.tables for f in t.features}

    got, expected = sizes(made), sizes(spec)
    wrong = [name for name in expected if got.get(name) != expected[name]]
    if wrong or made.num_dense != spec.num_dense:
        name = (wrong or ["dense"])[0]
        raise UserError(
            "The preprocessor's vocabulary does not match the model: feature "
            f"'{name}' has {expected.get(name, spec.num_dense)} ids in the model and "
            f"{got.get(name, made.num_dense)} in the vocabulary ({len(wrong)} of "
            f"{len(expected)} features differ)."
        )


def _write_description(
    model: DLRM, staging: pathlib.Path, module: ServingModule, max_hotness: int
) -> None:
    """`assets.extra/tf_dlrm.json`: what a person or a client needs to know."""
    folder = staging / "assets.extra"
    folder.mkdir()
    tables = module.weights[: len(model.embedding.lookup_variables)]
    description = {
        "tf_dlrm": __version__,
        "tensorflow": tf.__version__,
        "max_hotness": max_hotness,
        "signatures": sorted(module.functions),
        "table_dtype": module.table_dtype,
        "table_bytes": sum(v.shape.num_elements() * v.dtype.size for v in tables),
        "dtype_policy": model.dtype_policy.name,
        "negative_sampling_rate": model.negative_sampling_rate,
        "features": model.spec.get_config(),
    }
    if "serving_candidates" in module.functions:
        description["candidate_features"] = list(module.candidate_features)
    if "serving_examples" in module.functions:
        description["example_features"] = module.preprocessor.example_features()
    text = json.dumps(description, indent=2)
    (folder / "tf_dlrm.json").write_text(text + "\n", encoding="utf-8")


def _write_texts(
    requests: list[Request], name: str, preprocessor: Any, staging: pathlib.Path
) -> None:
    """`assets.extra/README.md`, and the files of the preprocessor beside it."""
    texts = dict(getattr(preprocessor, "export_files", dict)())
    texts["README.md"] = write_readme(name, requests, preprocessor)
    for file, text in texts.items():
        (staging / "assets.extra" / file).write_text(text, encoding="utf-8")


def _replay(requests: list[Request], staging: pathlib.Path) -> None:
    """Load what was written and compares it with the model on generated requests."""
    signatures = tf.saved_model.load(str(staging)).signatures
    for request in requests:
        inputs = {name: tf.constant(value) for name, value in request.inputs.items()}
        got = signatures[request.signature](**inputs)
        _compare(request.signature, got, request.probabilities)
    del signatures, got
    gc.collect()  # the loaded tables hang in a circle of references


def _compare(name: str, got: dict[str, tf.Tensor], expected: np.ndarray) -> None:
    difference = float(np.abs(got[PROBABILITIES].numpy() - expected).max())
    if not difference <= _TOLERANCE:
        raise RuntimeError(
            f"Signature {name} of the exported model differs from the model by "
            f"{difference:.2g} on generated rows (allowed: {_TOLERANCE}); it was not "
            "put in place."
        )
