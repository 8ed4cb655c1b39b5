"""The scripts in examples/: each runs, and its last lines prove what it claims."""

import contextlib
import io
import pathlib
import re
import runpy
import tempfile

import pytest
from helpers.devices import on_devices

from tf_dlrm.runtime import xla

pytestmark = pytest.mark.integration

FOLDER = pathlib.Path(__file__).parents[1] / "examples"
DIGITS = r"(\d\.\d+)"


def auc_of_own_csv(printed):
    (auc,) = re.findall(rf"^AUC on new rows: {DIGITS}", printed, re.M)
    assert 0.69 < float(auc) < 0.77
    assert re.search("^country +country +category", printed, re.M)


def means_of_data_frame(printed):
    groups = re.findall(rf"^(other|items).* {DIGITS} +{DIGITS}$", printed, re.M)
    for group, click, p_click in groups:
        assert float(click) == pytest.approx(
            {"other": 0.1, "items": 0.6}[group], abs=0.05
        )
        assert float(p_click) == pytest.approx(float(click), abs=0.05)
    assert len(groups) == 2


def aucs_of_multi_hot_weights(printed):
    without, weighted = re.findall(rf"^AUC with.*: +{DIGITS}$", printed, re.M)
    assert float(without) + 0.01 < float(weighted) < 0.85


def differences_of_two_devices(printed):
    number = r"(\d\.\de-\d\d)"
    tables = re.findall(rf"^(user|item|country) +{number} {number}$", printed, re.M)
    assert len(tables) == 3
    for _, change, difference in tables:
        assert float(difference) < 1e-3 * float(change)
    assert "row_wise: 1 table" in printed


def answers_of_serve_and_query(printed):
    answers = re.findall(
        rf"^(serving_lines|serving_examples|.*predict): +{DIGITS}$", printed, re.M
    )
    assert len(answers) == 3 and len({answer for _, answer in answers}) == 1
    # This country likes the item.
    assert float(answers[0][1]) > 0.4
    assert re.search(
        r"^curl http://.*\"instances\": \[\"FR,i5,9.9\"\]}'$", printed, re.M
    )


def equality_of_resume(printed):
    assert "step-000000083" in printed
    assert printed.endswith("All weights are equal, bit for bit: True\n")


PROOFS = {
    "own_csv": auc_of_own_csv,
    "data_frame": means_of_data_frame,
    "multi_hot_weights": aucs_of_multi_hot_weights,
    "two_devices": differences_of_two_devices,
    "serve_and_query": answers_of_serve_and_query,
    "resume": equality_of_resume,
}


@on_devices(1)
def run_script(name, folder):
    """Run a script as its own program in a fresh process, and check its last lines."""
    tempfile.tempdir = folder
    with contextlib.redirect_stdout(io.StringIO()) as printed, xla.disabled():
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    PROOFS[name](printed.getvalue())


@pytest.mark.parametrize("name", PROOFS)
def test_example_runs_and_proves_its_point(name, tmp_path):
    run_script(name, str(tmp_path))


def test_every_script_is_tested_listed_and_explained():
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert names == set(PROOFS)
    table = (FOLDER / "README.md").read_text()
    for name in names:
        assert f"| [{name}.py]({name}.py) |" in table
        assert f"`python examples/{name}.py`" in (FOLDER / f"{name}.py").read_text()
