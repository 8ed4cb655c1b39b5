"""Exports are verified by TensorFlow's C library, in a process without its Python."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

import pipelines
import tf_dlrm
from pipelines.cli import main
from tf_dlrm.serving import c_library, verify_saved_model

pytestmark = pytest.mark.integration

SIGNATURES = {
    "serving_default",
    "serving_ragged",
    "serving_tsv",
    "serving_examples",
    "serving_candidates",
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    values = [[b"a%d" % i, b"a value of more than 22 bytes"] for i in range(26)]
    parser = pipelines.criteo.Parser(pipelines.vocabulary.Vocabulary(values))
    model = tf_dlrm.DLRM(parser.spec(4), (8, 4), (8, 1))
    return tf_dlrm.export_saved_model(
        model,
        tmp_path_factory.mktemp("base") / "ctr",
        preprocessor=parser,
        max_hotness=2,
        candidate_features=("C3", "I2"),
    )


@pytest.fixture
def copy(exported, tmp_path):
    return pathlib.Path(shutil.copytree(exported, tmp_path / "ctr" / "7"))


def test_the_c_library_gives_the_recorded_answers(exported):
    found = verify_saved_model(exported)
    assert set(found["largest_difference"]) == SIGNATURES
    assert max(found["largest_difference"].values()) <= 1e-6


def test_the_process_never_imports_tensorflow(exported):
    script = c_library.__file__
    program = (
        f"import runpy, sys; sys.argv[1:] = ['{exported}']\n"
        f"try: runpy.run_path({script!r}, run_name='__main__')\n"
        "except SystemExit as error: print(error.code)\n"
        "print([m for m in sys.modules if m.startswith(('tensorf', 'tf_', 'ker'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-2:] == ["0", "[]"], done.stderr[-2000:]


def test_the_newest_version_is_taken(copy, capsys):
    shutil.copytree(copy, copy.with_name("10"))
    shutil.rmtree(copy)
    assert main(["verify", str(copy.parent)]) == 0
    assert "returned the recorded answers" in capsys.readouterr().out


def test_another_answer_is_told(copy, capsys):
    path = copy / c_library.RECORDED
    content = json.loads(path.read_text())
    content[2]["outputs"]["probabilities"]["values"][3] += 1e-4
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="serving_tsv differs .* by 0.0001"):
        verify_saved_model(copy)
    assert main(["verify", str(copy)]) != 0
    assert "serving_tsv differs" in capsys.readouterr().err


def test_a_signature_without_requests_is_told(copy):
    path = copy / c_library.RECORDED
    content = [
        e for e in json.loads(path.read_text()) if "ragged" not in e["signature"]
    ]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="No request is recorded for serving_ragged"):
        verify_saved_model(copy)


@pytest.mark.parametrize("part", ["variables", "saved_model.pb", "assets"])
def test_a_model_that_is_not_whole_is_told(copy, part):
    target = copy / part
    shutil.rmtree(target) if target.is_dir() else target.write_bytes(b"cut")
    with pytest.raises(ValueError, match="cannot be loaded|failed"):
        verify_saved_model(copy)


def test_places_without_a_model_or_library_are_told(exported, tmp_path):
    with pytest.raises(ValueError, match="contains no versions"):
        verify_saved_model(tmp_path)
    with pytest.raises(ValueError, match="TensorFlow's C library cannot be loaded"):
        verify_saved_model(exported, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["2.20.0", "2.19.1"])
def test_servers_that_lag_behind_give_the_recorded_answers(exported, tmp_path, version):
    """Each wheel is unpacked where nothing else is: 0.7 GB to load, 1.7 on disk."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile"]
    command += ["--no-cache-dir", "--target", str(tmp_path), f"tensorflow=={version}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip finds no tensorflow=={version}: {done.stderr[-200:]}")
    try:
        found = verify_saved_model(exported, tmp_path / "tensorflow")
    finally:
        shutil.rmtree(tmp_path)
    assert found["library"] == version
    assert set(found["largest_difference"]) == SIGNATURES
    assert max(found["largest_difference"].values()) <= 1e-6
