"""`export_saved_model`: export of a DLRM as a SavedModel for TensorFlow Serving."""

import contextlib
import gc
import json
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tf_dlrm.calibration import Correction, SlicedCorrection
from tf_dlrm.embedding import EmbeddingLayer
from tf_dlrm.features import FeatureSpec
from tf_dlrm.model import DLRM
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.place import place_of
from tf_dlrm.runtime.types import PathLike
from tf_dlrm.serving import versions, warm_up
from tf_dlrm.serving.c_library import Request
from tf_dlrm.serving.readme import write_readme
from tf_dlrm.serving.requests import TOLERANCE, make_requests, record
from tf_dlrm.serving.signatures import (
    PROBABILITIES,
    ServingModule,
    weights_for_inference,
)
from tf_dlrm.version import __version__

_NUM_RECORDED = 16


def export_saved_model(
    model: DLRM,
    base_dir: PathLike,
    version: int | None = None,
    preprocessor: Any = None,
    max_hotness: int = 1,
    candidate_features: Sequence[str] = (),
    table_dtype: str = "float32",
    calibration: Correction | SlicedCorrection | None = None,
    updatable: bool = False,
    compact: bool = False,
) -> str:
    r"""Export a model to `base_dir/<version>` for TensorFlow Serving.

    The function writes the model to a temporary directory, loads it again, compares it
    with the original on generated requests to every signature, and only then renames
    the directory, so that a version is complete or absent. Its `assets.extra` contains
    requests with the model's answers, to verify the export on other machines; warm-up
    requests of 1, 8 and 64 rows for TensorFlow Serving; and a `README.md` with example
    requests, as a curl command and in Python, and the answers of this model.

    Args:
        model: A `DLRM`.
        base_dir: Directory of the model's versions, such as `"saved_models/ctr"`.
        version: Positive integer. Default: the largest existing version plus one,
            determined when the directory is renamed, so that concurrent exports do not
            collide.
        preprocessor: A `pipelines.Parser`, to serve raw lines and messages with the
            vocabulary of the training data, or your own
            `tf_dlrm.serving.Preprocessor`. Default: none.
        max_hotness: Length L of the bags of `serving_default`, padded with -1. It is
            static, so that the server can batch requests.
        candidate_features: Names of the features that differ between the items that
            `serving_candidates` scores for one user and context. At least one of them
            must be sparse. Default: no such signature.
        table_dtype: Storage format of the tables: `"float32"`; `"float16"` or
            `"bfloat16"`, which take half the bytes; or `"int8"` or `"int4"`, integers
            with a float16 scale and offset for each row, which take 0.27 or 0.14 times
            the bytes at width 64. Lookups return float32 in any case.
        calibration: Correction of the model's probabilities, from
            `tf_dlrm.calibration.fit_correction`. Every signature applies it, after the
            correction for `negative_sampling_rate`; `model.predict` does not. If it
            differs by slice, the first id of that feature in a row decides, and a row
            whose id has no curve of its own is corrected like all rows. Default: none.
        updatable: Whether to add the signature `apply_delta`, with which a server
            changes rows of the loaded model, see `tf_dlrm.serving.Replica`. The bases
            of `tf_dlrm.callbacks.PublishDeltas` have it.
        compact: Whether growing tables are exported as sorted ids and their rows
            instead of all slots. The answers are equal. Choose it for a smaller export;
            finding an id then takes a bisection instead of a few probes.

    Returns:
        The path of the version directory. All signatures return `probabilities`,
        float32 `(B, 1)`, corrected for the model's `negative_sampling_rate`, and by
        `calibration`:

        - `serving_default` takes `dense_features`, transformed, float32
          `(B, num_dense)`; and `sparse_features`, int64
          `(B, num_sparse, max_hotness)`. Ids that are -1 or out of range are ignored;
          ids of growing tables without a row read the `fallback` of their table. A
          dense value that is not finite counts as missing, which is 0.
        - `serving_ragged` takes `dense_features`; `sparse_values`, all ids in the order
          of rows and features, int64 `(V,)`; and `sparse_row_lengths`, the number of
          ids of each feature of each row, int64 `(B, num_sparse)` or flat. The server
          cannot batch these requests.
        - `serving_tsv` (with a preprocessor for Criteo's logs; `serving_lines` for
          other text formats) takes `lines`, raw lines with or without the label, string
          `(B,)`.
        - `serving_examples` (with a preprocessor) takes `examples`, serialized
          `tf.Example` messages of raw fields, string `(B,)`. Names and types of the
          fields are in `assets.extra/tf_dlrm.json`.
        - `serving_candidates` takes one row of the shared features in `dense_features`
          and `sparse_features`, and N rows of the candidates' features in
          `candidate_dense_features` and `candidate_sparse_features`, each in the order
          of the model. It looks up the shared row once and returns probabilities
          `(N, 1)`.

    Raises:
        ValueError: If a weight is not finite, an argument is out of range, or the
            preprocessor's vocabulary does not match the model.
        TypeError: If the preprocessor or the embedding layer lacks a required method.
        FileExistsError: If the version exists.
        RuntimeError: If the exported model does not reproduce the model's predictions.

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
    if place_of(model.distribute_strategy).num_workers > 1:
        raise UserError(
            "A model of several workers cannot be exported, because each of them has "
            "a part of the tables. Save it with `model.save`, load it in one process, "
            "and export that."
        )
    if type(model.embedding).lookup is EmbeddingLayer.lookup:
        raise TypeError(
            "To export a model, its embedding layer must define `lookup(ids, "
            "weights=None)`, the forward pass without range checks (see "
            f"EmbeddingCollection). Received: {type(model.embedding).__name__}"
        )
    if not isinstance(calibration, Correction | SlicedCorrection | None):
        raise TypeError(
            "`calibration` must be the result of `tf_dlrm.calibration.fit_correction`. "
            f"Received: {calibration!r}"
        )
    versions.choose_version(base_dir, version)  # fail early
    _check_finite(model)
    original = preprocessor
    methods = ("spec", "features", "for_serving")
    if preprocessor is not None:
        if not all(hasattr(preprocessor, name) for name in methods):
            raise TypeError(
                "`preprocessor` must be a pipelines.Parser, or have the methods "
                f"{', '.join(methods)}. Received: {type(preprocessor).__name__}"
            )
        _check_vocabulary(model.spec, preprocessor)
    with contextlib.ExitStack() as stack:
        if preprocessor is not None:
            preprocessor = preprocessor.for_serving()
            # Its files are large copies: remove them immediately, also after an error.
            stack.callback(getattr(preprocessor, "close", lambda: None))
        module = ServingModule(
            model,
            int(max_hotness),
            preprocessor,
            candidate_features,
            table_dtype,
            calibration,
            updatable,
            compact,
        )
        staged = stack.enter_context(versions.staged_directory(base_dir, version))
        staging = staged.path
        with _quiet():  # TensorFlow would log the temporary directory
            tf.saved_model.save(module, str(staging), signatures=module.functions)
        _write_description(model, staging, module, int(max_hotness))
        recorded, for_warm_up = make_requests(
            model, module, original, _NUM_RECORDED, warm_up.BATCH_SIZES
        )
        record(recorded, staging)
        name = pathlib.Path(base_dir).name
        _write_texts(recorded, name, original, calibration, staging)
        warm_up.write(for_warm_up, name, staging)
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
                f"Weight '{variable.name}' is not finite (NaN or infinity), so the "
                "model cannot be exported. Restore an earlier checkpoint."
            )


def _is_finite(variable: tf.Variable) -> bool:
    if variable.shape.rank != 2:
        return bool(tf.reduce_all(tf.math.is_finite(variable)))
    # Block by block, because a table may take most of the memory.
    return row_ops.is_finite(variable)


def _check_vocabulary(spec: FeatureSpec, preprocessor: Any) -> None:
    widths = {table.embedding_dim for table in spec.tables}
    own_spec = preprocessor.spec(embedding_dim=max(widths))

    def sizes(spec: FeatureSpec) -> dict[str, Any]:
        return {
            f: t.vocabulary_size if t.growing is None else "growing"
            for t in spec.tables
            for f in t.features
        }

    received, expected = sizes(own_spec), sizes(spec)
    wrong = [name for name in expected if received.get(name) != expected[name]]
    if wrong or own_spec.num_dense != spec.num_dense:
        name = (wrong or ["dense"])[0]
        raise UserError(
            "The preprocessor's vocabulary does not match the model: feature "
            f"'{name}' has {expected.get(name, spec.num_dense)} ids in the model and "
            f"{received.get(name, own_spec.num_dense)} in the vocabulary ({len(wrong)} "
            f"of {len(expected)} features differ)."
        )


def _write_description(
    model: DLRM, staging: pathlib.Path, module: ServingModule, max_hotness: int
) -> None:
    """Write `assets.extra/tf_dlrm.json`, a description for people and clients."""
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
    if module.calibration is not None:
        description["calibration"] = module.calibration.describe()
    if "serving_candidates" in module.functions:
        description["candidate_features"] = list(module.candidate_features)
    if "serving_examples" in module.functions:
        description["example_features"] = module.preprocessor.example_features()
    text = json.dumps(description, indent=2)
    (folder / "tf_dlrm.json").write_text(text + "\n", encoding="utf-8")


def _write_texts(
    requests: list[Request],
    name: str,
    preprocessor: Any,
    calibration: Correction | SlicedCorrection | None,
    staging: pathlib.Path,
) -> None:
    """Write `assets.extra/README.md` and the files of the preprocessor."""
    texts = dict(getattr(preprocessor, "export_files", dict)())
    texts["README.md"] = write_readme(name, requests, preprocessor, calibration)
    for file, text in texts.items():
        (staging / "assets.extra" / file).write_text(text, encoding="utf-8")


def _replay(requests: list[Request], staging: pathlib.Path) -> None:
    """Load the exported model and compare it with the original on requests."""
    signatures = tf.saved_model.load(str(staging)).signatures
    for request in requests:
        inputs = {name: tf.constant(value) for name, value in request.inputs.items()}
        answer = signatures[request.signature](**inputs)
        _compare(request, answer)
    del signatures, answer
    gc.collect()  # the loaded tables are part of a reference cycle


def _compare(request: Request, answer: dict[str, tf.Tensor]) -> None:
    difference, excess = request.compare(answer[PROBABILITIES].numpy())
    if not excess <= TOLERANCE:
        raise RuntimeError(
            f"Signature {request.signature} of the exported model differs from the "
            f"model by {difference:.2g} on generated rows (allowed: {TOLERANCE}). The "
            "version was not created."
        )
