"""The wheel holds the two packages and nothing else, and every command runs from it."""

import email
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata

import pytest
import wheel_cases

from pipelines.commands import COMMANDS

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = ("tf_dlrm", "pipelines")
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built of copies, so that no old `build/` gets into it."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet"]
    required = int(re.search(r"\d+", PROJECT["build-system"]["requires"][0]).group())
    if int(metadata.version("setuptools").split(".")[0]) >= required:
        command += [
            "--no-build-isolation"
        ]  # else pip installs a newer one to build with
    command += ["--wheel-dir", str(folder), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def described(wheel):
    """The wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder that the wheel is installed into; nothing else is in it."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index"]
    command += ["--quiet", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def results(installed, tmp_path_factory):
    """What `wheel_cases.py` prints, run in a folder of its own with that package."""
    done = subprocess.run(
        [sys.executable, "-P", str(ROOT / "tests" / "wheel_cases.py"), str(ROOT)],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    lines = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    assert lines, done.stderr[-2000:]
    files, *results = [json.loads(line.removeprefix("RESULT ")) for line in lines]
    return files, {each["command"]: each for each in results}, done.stderr


def test_the_wheel_holds_the_two_packages_and_nothing_else(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    modules = [path for name in SOURCES for path in ROOT.glob(f"{name}/**/*.py")]
    expected = {path.relative_to(ROOT).as_posix() for path in modules}
    data = {"tf_dlrm/py.typed", "pipelines/runs/named_runs.toml"}
    assert names == expected | data


def test_the_metadata_are_those_of_the_project(described):
    project = PROJECT["project"]
    version = (ROOT / "tf_dlrm" / "version.py").read_text()
    assert f'"{described["Version"]}"' in version
    assert described["License-Expression"] == project["license"] == "Apache-2.0"
    plain = [r for r in described.get_all("Requires-Dist") if "extra ==" not in r]
    assert len(plain) == len(project["dependencies"])
    extras = set(described.get_all("Provides-Extra"))
    assert extras == set(project["optional-dependencies"])


def test_the_page_of_a_package_index_has_no_relative_links(described):
    """Such a link would lead to a page that the index does not have."""
    page = described.get_payload()
    assert "tf_dlrm" in page
    page = re.sub(r"(?ms)^```.*?^```$", "", page)
    targets = re.findall(r"\]\(([^)\s]*)", page)
    targets += re.findall(r"""\b(?:src|href|srcset)=["']([^"']*)""", page)
    targets += re.findall(r"(?m)^\[[^\]]+\]:\s*(\S+)", page)
    relative = [target for target in targets if not re.match("[a-z]+:", target)]
    assert not relative


def test_the_console_script_shows_the_commands(installed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", installed / "bin" / "tf-dlrm", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "train" in done.stdout and "predict" in done.stdout


def test_the_installed_package_is_the_one_that_runs(installed, results):
    files, _, _ = results
    for name in SOURCES:
        assert pathlib.Path(files[name]).is_relative_to(installed)


@pytest.mark.parametrize("command", wheel_cases.COMMANDS)
def test_a_command_needs_nothing_but_the_wheel(command, results):
    _, by_command, stderr = results
    assert command in by_command, stderr[-2000:]
    assert by_command[command]["code"] == 0, stderr[-2000:]
    assert not by_command[command]["opened"]


def test_every_command_is_tried():
    # `benchmark` and `demo` take minutes; both have tests of their own.
    tried = {command.split()[0] for command in wheel_cases.COMMANDS}
    assert tried == set(COMMANDS) - {"benchmark", "demo"}
