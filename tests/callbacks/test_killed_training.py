"""A training killed anywhere ends bit-equal to one that was not."""

import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration


HERE = pathlib.Path(__file__).parent


def run_cases(script, *arguments):
    done = subprocess.run(
        [sys.executable, HERE / script, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "passed"


@pytest.mark.breadth(0, 1)
@pytest.mark.parametrize("case, num_kills", [("records", 2), ("text", 1)])
def test_killed_anywhere_it_ends_bit_equal(case, num_kills, tmp_path):
    run_cases("resume_cases.py", num_kills, tmp_path, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["records", "text", "executions", "endless", "days"])
def test_killed_six_times_it_ends_bit_equal(case, tmp_path):
    run_cases("resume_cases.py", 6, tmp_path, case)
