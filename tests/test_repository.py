"""Files around the code, such as workflows and the citation: valid, in agreement."""

import pathlib
import re
import tomllib

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML comes with the extra `test`")

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
OTHERS = (
    ".github/dependabot.yml",
    ".github/ISSUE_TEMPLATE/bug.yml",
    ".github/ISSUE_TEMPLATE/config.yml",
    ".github/ISSUE_TEMPLATE/feature.yml",
    ".pre-commit-config.yaml",
    "CITATION.cff",
)
TOOLS = {"build", "mkdocs", "mypy", "pip", "pytest", "ruff", "twine"}


def load(path):
    # YAML 1.1 reads the key `on` as true, GitHub as a word.
    loaded = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in loaded.items()}


def steps(workflow):
    for job in workflow["jobs"].values():
        yield from job["steps"]


@pytest.mark.parametrize("path", OTHERS)
def test_a_file_is_valid_yaml(path):
    assert load(path)


def test_the_workflows_are_there():
    names = {path.stem for path in WORKFLOWS}
    assert names == {"ci", "docs", "nightly", "publish"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_limits(path):
    """Least rights, one run a branch, a timeout a job, actions by major version."""
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 120, name
        rights = job.get("permissions", {})
        assert rights in ({}, {"id-token": "write"}), name
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step), step
        if "uses" in step:
            action, _, version = step["uses"].partition("@")
            major = re.fullmatch(r"v\d+|release/v\d+", version)
            assert major, f"{action} is not pinned to a major version: {version!r}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_exists(path):
    workflow = load(path)
    extras = set(PROJECT["optional-dependencies"])
    for step in steps(workflow):
        command = step.get("run", "")
        assert set(re.findall(r"python -m (\w+)", command)) <= TOOLS
        for named in re.findall(r"\.\[([\w,]+)\]", command):
            assert set(named.split(",")) <= extras
        for name in re.findall(r"(?:tests|tf_dlrm)/[\w/]+\.py", command):
            assert (ROOT / name).is_file(), name


def test_only_publish_may_ask_for_a_token_and_only_by_a_tag():
    for path in WORKFLOWS:
        workflow = load(path)
        jobs = [job for job in workflow["jobs"].values() if "permissions" in job]
        if path.stem == "publish":
            assert workflow["on"] == {"push": {"tags": ["v*"]}}
            (job,) = jobs
            assert job["environment"] == "pypi" and job["needs"] == "smoke"
        else:
            assert not jobs


def test_ci_runs_every_python_that_the_package_names():
    prefix = "Programming Language :: Python :: 3."
    named = [c for c in PROJECT["classifiers"] if c.startswith(prefix)]
    pythons = [name.split(" :: ")[-1] for name in named]
    for stem, job in (("ci", "test"), ("publish", "smoke")):
        workflow = load(f".github/workflows/{stem}.yml")
        assert workflow["jobs"][job]["strategy"]["matrix"]["python"] == pythons
    assert PROJECT["requires-python"] == f">={pythons[0]}"


def test_ci_runs_what_the_local_script_runs():
    local = (ROOT / ".ci" / "run").read_text()
    checks = re.findall(r"(?m)^python -m (?:ruff|mypy).*$", local)
    assert len(checks) == 3
    run = [step.get("run") for step in steps(load(".github/workflows/ci.yml"))]
    assert set(checks) <= set(run)
    tiers = [line for line in run if line and "pytest" in line]
    assert len(tiers) == 2 and sum("-m integration" in line for line in tiers) == 1


def test_the_citation_names_the_paper_and_the_package():
    citation = load("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    (paper,) = citation["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]
    assert len(paper["authors"]) == 24
    assert paper["authors"][0]["family-names"] == "Naumov"


@pytest.mark.parametrize(
    "name", ["CODE_OF_CONDUCT.md", "RELEASE.md", "SECURITY.md", "LICENSE"]
)
def test_a_page_of_the_project_is_there_and_names_no_address_of_a_person(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.findall(r"[\w.]+@[\w-]+\.\w+", text)


def test_the_release_steps_run_what_exists():
    text = (ROOT / "RELEASE.md").read_text(encoding="utf-8")
    assert set(re.findall(r"(?m)^\s*python -m (\w+)", text)) <= TOOLS | {"venv"}
    for name in re.findall(r"(?:tests|tf_dlrm)/[\w/]+\.py", text):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"`(\w+\.yml)`", text):
        assert (ROOT / ".github" / "workflows" / name).is_file(), name
