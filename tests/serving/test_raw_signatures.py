"""Exports of models of any schema: signatures, files, and the requests they show."""

import base64
import json
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import row_lines
from helpers.schema_vocabulary import make_vocabulary

import tf_dlrm
from pipelines.formats.parser import Parser
from pipelines.schema import Dense, Parquet, Schema, Sparse

SCHEMAS = {
    **row_lines.SCHEMAS,
    "numbers as categories, too": Schema(
        "y",
        [Dense("x", "log1p")],
        [
            Sparse("n"),
            Sparse("n", name="range", buckets="log2"),
            Sparse("x", name="level", buckets="log2"),
            Sparse("x", name="x4", buckets="quantile"),
            Sparse("x", name="tens", buckets="width", width=10),
        ],
    ),
    "one number": Schema(
        "y", Dense("x", "log1p"), Sparse("x", name="level", buckets="log2")
    ),
    "parquet": Schema(
        "y", [Dense("x", "log1p")], ["c", Sparse("d", separator="|")], format=Parquet()
    ),
}
LINES = {"criteo": {"serving_tsv"}}


@pytest.fixture(
    scope="module",
    params=[
        "quoted",
        *(
            pytest.param(name, marks=pytest.mark.integration)
            for name in (
                "criteo",
                "weights",
                "positions",
                "numbers as categories, too",
                "one number",
                "parquet",
            )
        ),
    ],
)
def export(request, tmp_path_factory):
    schema = SCHEMAS[request.param]
    parser = Parser(make_vocabulary(schema))
    keras.utils.set_random_seed(2)
    bottom = (16, 4) if schema.dense else None
    model = tf_dlrm.DLRM(parser.spec(4), bottom, (16, 1))
    folder = tmp_path_factory.mktemp("export") / "ctr"
    path = tf_dlrm.export_saved_model(model, folder, preprocessor=parser)
    return request.param, schema, parser, model, pathlib.Path(path)


def test_signatures_follow_the_schema(export):
    name, schema, parser, _, path = export
    signatures = set(tf.saved_model.load(str(path)).signatures)
    lines = LINES.get(name, {"serving_lines"})
    always = {"serving_default", "serving_ragged", "serving_examples"}
    assert signatures == always | lines
    stored = (path / "assets.extra/schema.json").read_text()
    assert Schema.from_json(stored) == schema
    assert parser.line_columns == [
        str(column)
        for column in row_lines.line_columns(schema)
        if column != schema.label.column or name == "positions"
    ]


def test_requests_in_the_readme_are_answered(export):
    _, _, parser, model, path = export
    text = (path / "assets.extra/README.md").read_text()
    signatures = tf.saved_model.load(str(path)).signatures
    bodies = re.findall(
        r"http://localhost:8501/v1/models/ctr:predict <<'REQUEST'\n(.*)\n", text
    )
    assert len(bodies) == len(signatures) - 2
    shown = [float(x) for x in re.findall(r"The probability .*? is ([01]\.\d+)", text)]
    for body, probability in zip(bodies, shown, strict=True):
        request = json.loads(body)
        signature = signatures[request["signature_name"]]
        (instance,) = request["instances"]
        value = (
            base64.b64decode(instance["b64"])
            if isinstance(instance, dict)
            else instance.encode()
        )
        (name,) = signature.structured_input_signature[1]
        answer = signature(**{name: tf.constant([value])})["probabilities"]
        assert answer.numpy()[0, 0] == pytest.approx(probability, abs=2e-6)
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == len(bodies)
    for block, probability in zip(blocks, shown, strict=True):
        printed = []
        exec(block, {"folder": str(path), "print": printed.append})
        assert printed[0][0, 0] == pytest.approx(probability, abs=2e-6)


def test_lines_score_as_the_model_does(export):
    _, _, parser, model, path = export
    lines = parser.sample_lines(20)
    examples = tf.constant(parser.to_examples(lines))
    expected = model(parser.features(tf.constant(lines))).numpy()
    signatures = tf.saved_model.load(str(path)).signatures
    assert len(np.unique(expected)) > 5
    got = signatures["serving_examples"](examples=examples)["probabilities"]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    for name in ("serving_lines", "serving_tsv"):
        if name in signatures:
            got = signatures[name](lines=tf.constant(lines))["probabilities"]
            np.testing.assert_allclose(got, expected, atol=1e-6)


def test_an_export_without_raw_fields_shows_ids(tmp_path):
    spec = tf_dlrm.FeatureSpec(("x",), [tf_dlrm.EmbeddingTable("c", 5, 2)])
    model = tf_dlrm.DLRM(spec, (2,), (1,))
    path = tf_dlrm.export_saved_model(model, tmp_path / "ctr")
    text = pathlib.Path(path, "assets.extra/README.md").read_text()
    (body,) = re.findall(r"<<'REQUEST'\n(.*)\n", text)
    request = json.loads(body)
    (instance,) = request["instances"]
    signature = tf.saved_model.load(path).signatures[request["signature_name"]]
    dtypes = {"dense_features": tf.float32, "sparse_features": tf.int64}
    inputs = {k: tf.constant([v], dtypes[k]) for k, v in instance.items()}
    probability = float(re.search(r"The probability .*? is ([01]\.\d+)", text)[1])
    answer = signature(**inputs)["probabilities"].numpy()
    assert answer[0, 0] == pytest.approx(probability, abs=2e-6)
