"""Each block of the pages on TensorFlow Serving does what it says."""

import concurrent.futures
import json
import re
import shlex

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    json_format,
    message_factory,
    text_format,
    wrappers_pb2,
)
from helpers import guide, rest_rules
from tensorflow.core.protobuf import saved_model_pb2

pytest.importorskip("tensorflow_serving", reason="takes tensorflow-serving-api")
import grpc
from tensorflow_serving.apis import (
    get_model_status_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

pytestmark = pytest.mark.integration

PAGES = ("tutorials/serve.md", "how_to/query_a_server.md", "how_to/run_a_server.md")
DOCS = "\n".join(guide.read(page) for page in PAGES)
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCS, re.S)
URL = r"http://localhost:8501/v1/models/(\w+)"


def blocks(kind, start):
    return [text for name, text in BLOCKS if name == kind and text.startswith(start)]


def answered_requests():
    """`(model, body, answer)` of each request by curl and the answer below it."""
    found = []
    for (kind, text), (kind_below, below) in zip(BLOCKS, BLOCKS[1:]):
        if kind == "bash" and text.startswith("curl -X POST"):
            assert kind_below == "json", text
            command, dash_x, post, url, dash_d, body = shlex.split(text)
            assert (command, dash_x, post, dash_d) == ("curl", "-X", "POST", "-d")
            model = re.fullmatch(URL + ":predict", url).group(1)
            found.append((model, body, json.loads(below)))
    return found


class Served:
    """An export as a server has it: signatures as they are in its file."""

    def __init__(self, folder):
        content = (folder / "saved_model.pb").read_bytes()
        graphs = saved_model_pb2.SavedModel.FromString(content).meta_graphs
        self.signatures = {
            name: signature
            for name, signature in graphs[0].signature_def.items()
            if not name.startswith("__")
        }
        self._loaded = tf.saved_model.load(str(folder))

    def run(self, name, inputs):
        """Holds the inputs to the signature, and runs it."""
        declared = self.signatures[name].inputs
        assert set(inputs) == set(declared)
        for key, value in inputs.items():
            expected = tf.dtypes.as_dtype(declared[key].dtype)
            assert tf.dtypes.as_dtype(value.dtype) == expected, key
            shape = tf.TensorShape(declared[key].tensor_shape)
            assert shape.is_compatible_with(value.shape), (key, shape, value.shape)
        constants = {key: tf.constant(value) for key, value in inputs.items()}
        outputs = self._loaded.signatures[name](**constants)
        return {key: value.numpy() for key, value in outputs.items()}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The models of the page by name, from where it puts them."""
    folder = tmp_path_factory.mktemp("page")
    (code,) = blocks("python", "import pipelines")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code, {})
    versions = (folder / "saved_models").glob("*/1")
    return {version.parent.name: Served(version) for version in versions}


def check_probabilities(values, num_rows):
    values = np.asarray(values)
    assert values.shape == (num_rows, 1)
    assert ((values > 0) & (values < 1)).all()


def test_requests_by_curl_are_answered_in_the_form_that_is_shown(served):
    seen = set()
    for model, body, shown in answered_requests():
        name, form, inputs = rest_rules.read_request(body, served[model].signatures)
        outputs = served[model].run(name, inputs)
        answer = json.loads(rest_rules.write_response(form, outputs))
        assert list(answer) == list(shown)
        for (values,) in (answer.values(), shown.values()):
            check_probabilities(values, len(outputs["probabilities"]))
        seen.add((name, form))
    assert seen == {
        ("serving_default", "instances"),
        ("serving_default", "inputs"),
        ("serving_tsv", "instances"),
        ("serving_examples", "instances"),
        ("serving_examples", "inputs"),
        ("serving_ragged", "inputs"),
        ("serving_candidates", "inputs"),
    }


def test_rows_and_columns_that_say_the_same_are_answered_alike(served):
    signatures = served["ctr"].signatures
    read = [rest_rules.read_request(b, signatures) for m, b, _ in answered_requests()
            if m == "ctr"]  # fmt: skip
    rows, columns = (inputs for name, _, inputs in read if name == "serving_default")
    columns["dense_features"] = np.nan_to_num(columns["dense_features"])
    for name, value in rows.items():
        np.testing.assert_array_equal(value, columns[name])


@pytest.mark.parametrize("name", ["serving_ragged", "serving_candidates"])
def test_what_cannot_be_written_by_rows_is_refused(served, name):
    """Their inputs have unequal numbers of rows."""
    (inputs,) = (
        json.loads(body)["inputs"]
        for model, body, _ in answered_requests()
        if json.loads(body).get("signature_name") == name
    )
    assert len({len(value) for value in inputs.values()}) > 1
    one = {key: value[0] for key, value in inputs.items()}
    body = json.dumps({"signature_name": name, "instances": [one, one]})
    with pytest.raises((AssertionError, tf.errors.InvalidArgumentError)):
        served["ctr"].run(*rest_rules.read_request(body, served["ctr"].signatures)[::2])


DENSE, SPARSE = [0.5, 1.25], [[17, -1], [3, -1], [5, 199]]
ROW = {"dense_features": DENSE, "sparse_features": SPARSE}


@pytest.mark.parametrize(
    "body, message",
    [
        ({"instances": []}, "No values"),
        ({"instances": [ROW], "inputs": ROW}, "one of"),
        ({"instances": [DENSE]}, "plain list"),
        ({"instances": [ROW, DENSE]}, "as the first item"),
        ({"instances": [{"dense_features": DENSE}]}, "must only have keys"),
        ({"inputs": {"dense_features": [DENSE]}}, "Missing named input"),
        ({"instances": [ROW, {**ROW, "dense_features": [0.5]}]}, "one shape"),
        ({"inputs": {**ROW, "sparse_features": [[[17], [3, -1]]]}}, "unexpected size"),
        ({"inputs": {**ROW, "sparse_features": [17.0]}}, "not of expected type"),
        ({"inputs": {**ROW, "sparse_features": [1 << 63]}}, "not of expected type"),
        ({"inputs": {**ROW, "dense_features": [1e39]}}, "not of expected type"),
        ({"inputs": {**ROW, "dense_features": ["0.5"]}}, "not of expected type"),
        ({"inputs": {**ROW, "dense_features": {"b64": "AA=="}}}, "expected type"),
        ({"signature_name": "serve", "instances": [ROW]}, "not found"),
    ],
)
def test_the_rules_refuse_what_the_server_refuses(served, body, message):
    with pytest.raises(rest_rules.Refused, match=message):
        rest_rules.read_request(json.dumps(body), served["ctr"].signatures)


def test_the_status_is_a_message_of_the_server():
    (shown,) = blocks("json", '{"model_version_status')
    status = json_format.Parse(shown, get_model_status_pb2.GetModelStatusResponse())
    states = status.model_version_status
    assert [(each.version, each.state) for each in states] == [
        (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE)
    ]
    urls = [shlex.split(text)[1] for text in blocks("bash", "curl http")]
    assert [re.fullmatch(URL + "(/metadata)?", url).group(2) for url in urls] == [
        None,
        "/metadata",
    ]


def test_the_gRPC_client_gets_its_answers(served):
    requests = []

    class Server(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            requests.append(request)
            spec = request.model_spec
            inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
            outputs = served[spec.name].run(spec.signature_name, inputs)
            response = predict_pb2.PredictResponse()
            for name, value in outputs.items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
            return response

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    service = prediction_service_pb2_grpc
    service.add_PredictionServiceServicer_to_server(Server(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    (code,) = blocks("python", "import grpc")
    assert "localhost:8500" in code
    names = {}
    # The first answer takes longer than a warm server's.
    code = code.replace("localhost:8500", f"localhost:{port}")
    exec(code.replace("timeout=1.0", "timeout=60.0"), names)
    server.stop(None)
    for name, num_rows in (("of_ids", 1), ("of_items", 2), ("of_raw", 1)):
        check_probabilities(names[name], num_rows)
    (by_curl,) = (
        inputs
        for model, body, _ in answered_requests()
        for name, form, inputs in [
            rest_rules.read_request(body, served[model].signatures)
        ]
        if (name, form) == ("serving_default", "instances")
    )
    expected = served["ctr"].run("serving_default", by_curl)["probabilities"]
    np.testing.assert_allclose(names["of_ids"], expected[:1], atol=1e-6)
    called = [(r.model_spec.name, r.model_spec.signature_name) for r in requests]
    assert called == [
        ("ctr", "serving_default"),
        ("ctr", "serving_candidates"),
        ("criteo", "serving_examples"),
    ]


def test_configurations_are_messages_of_the_server(served):
    configurations = [
        text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
        for text in blocks("proto", "model_config_list")
    ]
    assert len(configurations) == 2
    models = [each.model_config_list.config for each in configurations]
    assert [model.name for model in models[0]] == ["ctr", "criteo"]
    for model in [*models[0], *models[1]]:
        assert model.base_path == f"/models/{model.name}" and model.name in served
        assert model.model_platform == "tensorflow"
    (pinned,) = models[1]
    assert list(pinned.model_version_policy.specific.versions) == [1]
    assert dict(pinned.version_labels) == {"stable": 1}


def batching_parameters():
    """An empty `tensorflow.serving.BatchingParameters`, which no package has.

    As in `session_bundle_config.proto`, with the fields that are in question here.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name="batching.proto", package="tensorflow.serving", syntax="proto3"
    )
    file.dependency.append("google/protobuf/wrappers.proto")
    message = file.message_type.add(name="BatchingParameters")
    kinds = descriptor_pb2.FieldDescriptorProto
    for number, name in enumerate(
        ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches",
         "num_batch_threads"), start=1,
    ):  # fmt: skip
        message.field.add(
            name=name,
            number=number,
            type=kinds.TYPE_MESSAGE,
            type_name=".google.protobuf.Int64Value",
            label=kinds.LABEL_OPTIONAL,
        )
    pool = descriptor_pool.DescriptorPool()
    wrappers = descriptor_pb2.FileDescriptorProto()
    wrappers_pb2.DESCRIPTOR.CopyToProto(wrappers)
    pool.Add(wrappers)
    pool.Add(file)
    found = pool.FindMessageTypeByName("tensorflow.serving.BatchingParameters")
    return message_factory.GetMessageClass(found)()


def test_batching_is_configured_for_the_warm_up_requests_and_without_padding():
    (text,) = blocks("proto", "max_batch_size")
    parameters = text_format.Parse(text, batching_parameters())
    assert parameters.max_batch_size.value >= 64
    assert parameters.num_batch_threads.value >= 1
    assert parameters.batch_timeout_micros.value < 10_000
    assert "pad_variable_length_inputs" not in text


def test_docker_mounts_and_flags_fit_the_configuration():
    lines = [text.replace("\\\n", " ") for text in blocks("bash", "docker run")]
    commands = [shlex.split(line) for line in lines]
    assert len(commands) == 2
    flags = set()
    for command in commands:
        image = command.index("tensorflow/serving")
        options = command[2:image]
        assert [options[i + 1] for i, o in enumerate(options) if o == "-p"] == [
            "8500:8500",
            "8501:8501",
        ]
        assert options[options.index("-v") + 1] == "$PWD/saved_models:/models:ro"
        flags |= set(command[image + 1 :])
    assert flags == {
        "--model_config_file=/models/models.config",
        "--model_config_file_poll_wait_seconds=60",
        "--enable_batching=true",
        "--batching_parameters_file=/models/batching.config",
    }
    for name in ("models.config", "batching.config"):
        assert f"`saved_models/{name}`" in DOCS
