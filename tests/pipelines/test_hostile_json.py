"""JSON files that hold anything: the error names the file, and the key if it can."""

import json

import pytest

from pipelines import records
from pipelines.reports.comparison import make_report
from pipelines.runs.config import RunConfig
from pipelines.runs.folder import RunFolder
from pipelines.runtime import disk
from pipelines.scoring import unfinished
from pipelines.vocabulary import HashVocabulary

DEEP = "[" * 200_000
NO_JSON = {
    "deep": DEEP,
    "deep and whole": DEEP + "]" * 200_000,
    "deep objects": '{"config":' * 100_000 + "1" + "}" * 100_000,
    "no object": "[]",
    "nothing": "",
    "not UTF-8": b"\xff\xfe{}",
    "cut": '{"config": {',
}


def write(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(data)


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start()
    data = {"train": ["/a/day_0"], "valid": [], "run": "demo", "devices": 1}
    folder.describe(RunConfig(), data, HashVocabulary(10))
    return folder


@pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json_object(content, run, tmp_path):
    write(run.config_path, content)
    write(tmp_path / "manifest.json", content)
    write(tmp_path / "a.csv.unfinished.json", content)
    write(run.metrics_path, content)
    for read, path in (
        (run.read_config, run.config_path),
        (lambda: make_report([run.path]), run.config_path),
        (lambda: records.Manifest.load(tmp_path), tmp_path / "manifest.json"),
        (lambda: disk.read_json(run.metrics_path), run.metrics_path),
    ):
        with pytest.raises(ValueError, match=f"{path} is damaged: ") as error:
            read()
        assert len(str(error.value)) < 500 and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="a.csv.unfinished.json"):
        unfinished.check(tmp_path / "a.csv", {"settings": {}, "files": {}})


@pytest.mark.parametrize("depth", [90, 101, 300, 900, 980, 995])
def test_what_one_function_can_take_and_the_next_cannot(depth, tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(f'{{"sha256": "", "a": {"[" * depth}{"]" * depth}}}')
    with pytest.raises(ValueError, match="damaged"):
        records.Manifest.load(tmp_path)


@pytest.mark.parametrize(
    "part, name, value, message",
    [
        (
            "config",
            "batch_size",
            "many",
            "`batch_size` must be int | None. Received: batch_",
        ),
        ("config", "batch_size", True, "`batch_size` must be int"),
        ("config", "batch_size", 0, "`batch_size` must be at least 1"),
        ("config", "learning_rate", [1], "`learning_rate` must be float"),
        ("config", "learning_rate", float("nan"), "`learning_rate` must be a finite"),
        ("config", "bottom_mlp_dims", 5, "`bottom_mlp_dims` must be tuple"),
        ("config", "bottom_mlp_dims", [1, None], "`bottom_mlp_dims` must be tuple"),
        ("config", "interaction", {}, "`interaction` must be Optional[Literal"),
        ("config", "patience", "x" * 10_000, "`patience` must be int"),
        ("config", "colour", "red", "There is no option 'colour'"),
        ("data", "train", "a file", "`train` must be list"),
        ("data", "train", [1], "`train` must be list"),
        ("data", "records", 5, "`records` must be str"),
        ("data", "devices", "two", "`devices` must be int"),
        ("data", "rows_by_epoch", [None], "`rows_by_epoch` must be list"),
        ("data", "content", [], "`content` must be dict"),
        (None, "config", [], "`config` must be dict"),
        (None, "data", "", "`data` must be dict"),
        (None, "multi_hot", 5, "`multi_hot` must be dict"),
        (None, "vocabulary_digest", None, "`vocabulary_digest` must be str"),
    ],
)
def test_odd_values_are_named_with_their_file(part, name, value, message, run):
    content = json.loads(run.config_path.read_text())
    (content if part is None else content[part])[name] = value
    run.config_path.write_text(json.dumps(content))
    with pytest.raises(ValueError) as error:
        run.read_config()
    text = str(error.value)
    assert text.startswith(f"{run.config_path} is damaged: {message}")
    assert len(text) < 500


def test_bags_of_unknown_options_are_named(run):
    content = json.loads(run.config_path.read_text())
    content["multi_hot"] = {"colour": 1}
    run.config_path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="config.json is damaged: `multi_hot`: "):
        run.load_parser()


def test_numbers_of_a_report_that_are_none(run):
    for name, value in (("metrics", 5), ("num_rows", "x"), ("seconds", [])):
        run.metrics_path.write_text(json.dumps({name: value}))
        with pytest.raises(ValueError, match=f"metrics.json is damaged: `{name}` must"):
            make_report([run.path])
