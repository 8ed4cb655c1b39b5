"""A bad request gets a defined answer or a clear refusal, on every signature."""

import json
import os
import pathlib
import re
import subprocess
import sys

import bad_request_cases
import numpy as np
import pytest
import tensorflow as tf
from bad_request_cases import CASES

import pipelines
import tf_dlrm
from tf_dlrm.serving.c_library import read_recorded

pytestmark = pytest.mark.integration


SIGNATURES = sorted({case.signature for case in CASES.values()})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    values = [[b"a%d" % i, b"b%d" % i] for i in range(26)]
    parser = pipelines.criteo.Parser(pipelines.vocabulary.Vocabulary(values))
    model = tf_dlrm.DLRM(parser.spec(4), (8, 4), (8, 1), interaction="cat")
    return tf_dlrm.export_saved_model(
        model,
        tmp_path_factory.mktemp("ctr"),
        preprocessor=parser,
        max_hotness=2,
        candidate_features=("C3", "C5", "I2", "I4"),
    )


@pytest.fixture(scope="module")
def answers(exported):
    """What the C library answers to each case."""
    script = pathlib.Path(bad_request_cases.__file__)
    done = subprocess.run(
        [sys.executable, str(script), exported],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def loaded(exported):
    recorded = {each.signature: each.inputs for each in read_recorded(exported)}
    return recorded, tf.saved_model.load(exported)


@pytest.mark.parametrize("name", CASES)
def test_servers_refuse_or_answer(name, answers):
    case, (got, expected) = CASES[name], answers[name]
    if case.refused:
        assert isinstance(got, str), got
        assert re.search(case.refused, got), got[:500]
        assert len(got) < 5000
    else:
        assert isinstance(got, list), got[:500]
        assert got == expected and np.isfinite(got).all()


@pytest.mark.parametrize(
    "signature", sorted({case.signature for case in CASES.values()})
)
def test_servers_answer_as_before_after_all_of_them(signature, answers):
    got, expected = answers[f"after {signature}"]
    np.testing.assert_allclose(got, expected, atol=1e-6)


# Python looks at the shapes before the graph does, and says so in its own way.
REFUSALS = (tf.errors.InvalidArgumentError, ValueError, TypeError)


@pytest.mark.parametrize("name", CASES)
def test_python_refuses_or_answers(name, loaded):
    recorded, module = loaded
    case = CASES[name]
    signature = module.signatures[case.signature]

    def run(inputs):
        constants = {k: tf.constant(v) for k, v in inputs.items()}
        return signature(**constants)["probabilities"].numpy()

    bad, good = bad_request_cases.requests(recorded, case)
    if not case.refused:
        np.testing.assert_array_equal(run(bad), run(good))
        return
    with pytest.raises(REFUSALS) as caught:
        run(bad)
    if isinstance(caught.value, tf.errors.InvalidArgumentError):
        assert re.search(case.refused, str(caught.value))
    else:
        assert case.refused == bad_request_cases.SHAPE


def test_each_signature_takes_no_rows(loaded):
    recorded, module = loaded
    for name, inputs in recorded.items():
        empty = {
            key: value
            if name == "serving_candidates" and "cand" not in key
            else value[:0]
            for key, value in inputs.items()
        }
        constants = {
            k: tf.constant(v, tf.string if v.dtype == object else v.dtype)
            for k, v in empty.items()
        }
        got = module.signatures[name](**constants)["probabilities"]
        assert got.shape == (0, 1), name


def test_sums_that_overflow_are_refused(tmp_path):
    """A probability that is no number never leaves the model."""
    spec = tf_dlrm.FeatureSpec(("I0",), [tf_dlrm.EmbeddingTable("C0", 5, 4)])
    model = tf_dlrm.DLRM(spec, (4,), (1,), interaction="cross")
    for variable in model.bottom_mlp.dense_layers[0].weights:
        variable.assign(np.ones(variable.shape))
    path = tf_dlrm.export_saved_model(model, tmp_path)
    signature = tf.saved_model.load(path).signatures["serving_default"]
    ids = tf.zeros((3, 1, 1), tf.int64)
    with pytest.raises(tf.errors.InvalidArgumentError, match="sums overflow.*1"):
        dense = tf.constant([[1.0], [3e38], [0.0]])
        signature(dense_features=dense, sparse_features=ids)
