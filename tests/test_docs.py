"""The pages of docs/: examples run, links lead somewhere, the site is built."""

import contextlib
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from helpers import guide
from helpers.devices import on_devices

import pipelines
import tf_dlrm
from pipelines import cli
from pipelines.synthetic import Planted

pytestmark = pytest.mark.integration

ROOT = guide.DOCS.parent
PAGE = "tutorials/quick_start.md"
PAGES = sorted(
    [*guide.DOCS.rglob("*.md"), *ROOT.glob("*.md"), ROOT / "benchmarks/README.md"]
)


def test_quick_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in guide.commands("From the shell", PAGE)[:2]:
        assert command[0] == "generate"
        assert cli.main(command) in (0, None)
    names = guide.run_page(PAGE, {})
    assert 0.70 < names["result"]["auc"] < 0.80
    assert names["probabilities"].shape == (20_000, 1)


@pytest.mark.slow
def test_quick_start_from_the_shell(tmp_path, monkeypatch):
    """tests/pipelines/test_cli.py runs these commands on less, each time."""
    monkeypatch.chdir(tmp_path)
    typed = guide.commands("From the shell", PAGE)
    names = [command[0] for command in typed]
    assert names == ["generate", "generate", "train", "evaluate", "export", "predict"]
    for command in typed:
        assert cli.main(command) in (0, None), shlex.join(command)
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 20_001


def test_data_frames():
    names = guide.run_page("how_to/data_frames.md", {})
    ((features, label),) = names["train"].map(lambda *batch: batch)
    assert features["sparse_features"].shape[:2] == (2, 2) and sum(label) == 1
    ((features, _),) = pipelines.from_dataframe(names["logs"], names["parser"])
    assert features["sparse_features"].to_list() == [[[1], [1, 2]], [[2], [0]]]


def test_growing_ids():
    names = guide.run_page("how_to/growing_ids.md", {})
    assert len(names["ids"]) == names["layer"].occupancy("item").num_ids > 200


def test_multi_hot(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    Planted().write(tmp_path / "data/train.tsv", 600)
    monkeypatch.chdir(tmp_path)
    names = guide.run_page("how_to/multi_hot.md", {})
    bags = next(iter(names["train"]))[0]["sparse_features"]
    assert bags.row_lengths(axis=2).numpy().sum() == 600 * 214


def test_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for page in (
        "how_to/build_a_model.md",
        "how_to/change_the_model.md",
        "how_to/speed_up.md",
        "how_to/choose_optimizers.md",
        "how_to/sample_negatives.md",
        "how_to/save_a_model.md",
    ):
        guide.run_page(page, names)
    printed = capsys.readouterr().out
    assert str(names["spec"].sparse_features) in printed
    assert 'DLRM "' in printed
    batch = names["batch"]
    for name in ("with_dropout", "dcn", "fm", "fast", "sampled"):
        model = names[name]
        assert isinstance(model, tf_dlrm.DLRM)
        assert model(batch).shape == (512, 1), name
    narrow = {key: batch[key] for key in ("age", "price", "country")}
    assert names["mixed"]({**narrow, "item": batch["shown"]}).shape == (512, 1)
    saved = names["again"].embedding_optimizer
    assert isinstance(saved, tf_dlrm.optimizers.DenseAdam) and saved.l2 == 1e-5
    np.testing.assert_array_equal(names["model"](batch), names["again"](batch))


@pytest.fixture(scope="module")
def criteo_model(tmp_path_factory):
    """What the pages on training begin with: a model, its vocabulary and rows."""
    folder = tmp_path_factory.mktemp("rows")
    for number, name in enumerate(("train", "valid")):
        Planted().write(folder / f"{name}.tsv", 600, 600 * number)
    names = {"tf_dlrm": tf_dlrm}
    for name, min_count in (("old_", 3), ("", 2)):
        vocabulary = pipelines.Vocabulary.build([folder / "train.tsv"], min_count)
        parser = pipelines.criteo.Parser(vocabulary)
        model = tf_dlrm.DLRM(parser.spec(4), (8, 4), (8, 1))
        model.compile(
            "adagrad", metrics=tf_dlrm.metrics.click_metrics(), jit_compile=False
        )
        names |= {f"{name}vocabulary": vocabulary, f"{name}model": model}
    names["parser"] = parser
    for name in ("train", "valid"):
        names[name] = pipelines.criteo.read(folder / f"{name}.tsv", parser, 150)
    return names


def test_training(criteo_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = guide.run_page("how_to/resume.md", {**criteo_model})
    guide.run_page("how_to/best_model.md", names)
    guide.run_page("how_to/warm_start.md", names)
    assert any((tmp_path / "checkpoints/ctr").glob("step-*"))
    assert names["stop"].best is not None
    moved = names["maps"]["C1"]
    rows = [names[m].embedding.get_table("C1") for m in ("old_model", "model")]
    np.testing.assert_array_equal(rows[1][moved[moved >= 0]], rows[0][moved >= 0])
    assert str(names["report"]) in capsys.readouterr().out


def test_features_and_tables(criteo_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Planted().write("day_2.gz", 1200, 5000)
    names = guide.run_page("how_to/find_important_features.md", {**criteo_model})
    assert names["result"].num_rows == 1000
    assert names["result"].groups[0].name == "user"
    guide.run_page("how_to/shrink_tables.md", {**criteo_model})
    assert "\nC26 " in capsys.readouterr().out


def test_corrections(criteo_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    criteo_model["model"].fit(criteo_model["train"], epochs=5, verbose=0)
    names = guide.run_page("how_to/correct_probabilities.md", {**criteo_model})
    labels, corrected = names["labels"], names["corrected"]
    assert corrected.shape == (600, 1) and names["by_value"].by_id
    assert corrected.mean() == pytest.approx(labels.mean(), rel=1e-4)
    assert pipelines.scoring.load(names["path"])


@pytest.mark.filterwarnings("ignore:Steps 100 to 110 were not profiled")
def test_watching(criteo_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = criteo_model["vocabulary"].values("C1")
    guide.run_page(
        "how_to/watch_a_training.md", {**criteo_model, "names": ["", *values]}
    )
    assert any((tmp_path / "logs/train").glob("events*"))
    labels = tmp_path / "logs/train/projector/C1_labels.tsv"
    assert len(labels.read_text().splitlines()) > len(values)


def test_evaluation(capsys):
    rng = np.random.default_rng(0)
    names = {"labels": rng.integers(0, 2, 500), "predictions": rng.random(500)}
    names |= {"countries": rng.choice(["DE", "FR"], 500), "tf_dlrm": tf_dlrm}
    names |= {"users": rng.integers(0, 9, 500)}
    names = guide.run_page("how_to/evaluate.md", names)
    assert list(names["slices"].groups) == ["DE", "FR"]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_sections(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue  # of the web: not looked at here
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in _anchors(found), f"{path.name}: {target}"


def _anchors(path):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    kept = (re.sub(r"[^\w\- ]", "", each.lower()) for each in headings)
    return {each.replace(" ", "-") for each in kept}


def test_the_home_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("clicks.csv", "later.csv"):
        columns = {
            "click": rng.integers(0, 2, 2_000),
            "country": rng.choice(["DE", "FR", "US"], 2_000),
            "item": [f"i{n}" for n in rng.integers(0, 40, 2_000)],
            "price": rng.lognormal(2, 1, 2_000).round(2),
        }
        pd.DataFrame(columns).to_csv(name, index=False)
    for command in guide.all_commands("index.md"):
        assert cli.main(command) in (0, None), shlex.join(command)
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 2_001
    (block,) = guide.blocks("index.md")
    assert len(block.splitlines()) < 16
    guide.run_page("index.md", {})
    assert (tmp_path / "saved_models/ctr/2/saved_model.pb").exists()


def test_repeated_ids(capsys):
    names = guide.run_page("explanation/repeated_ids.md", {})
    np.testing.assert_allclose(
        names["layer"].get_table("item"), [[0.0], [-1.0], [0.0]], atol=1e-6
    )


@on_devices(2)
def run_several_devices(folder):
    page = "tutorials/several_devices.md"
    with contextlib.chdir(folder):
        names = guide.run_page(page, {})
    assert names["strategy"].num_replicas_in_sync == 2
    assert names["embedding"].plan.num_devices == 2
    assert np.isfinite(names["history"].history["val_auc"]).all()


def test_several_devices(tmp_path):
    commands = guide.all_commands("tutorials/several_devices.md")
    assert [command[0] for command in commands] == ["generate", "generate", "train"]
    with contextlib.chdir(tmp_path):
        for command in commands[:2]:
            command[command.index("--rows") + 1] = "3000"
            assert cli.main(command) in (0, None)
    subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *commands[2]], cwd=tmp_path, check=True
    )
    assert (tmp_path / "runs/two/plan.json").exists()
    run_several_devices(str(tmp_path))


def test_every_page_with_examples_is_run_by_a_test():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for page in guide.DOCS.rglob("*.md"):
        name = str(page.relative_to(guide.DOCS))
        if guide.blocks(name) or guide.all_commands(name):
            assert f'{name}"' in tests, name


def test_every_page_is_in_the_navigation():
    """Read as text: the settings have tags that only MkDocs understands."""
    settings = (ROOT / "mkdocs.yml").read_text()
    for page in guide.DOCS.rglob("*.md"):
        name = str(page.relative_to(guide.DOCS))
        assert name == "README.md" or f" {name}\n" in settings, name


def test_the_site_is_built_without_warnings(tmp_path):
    pytest.importorskip("mkdocs", reason="takes mkdocs-material and mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir"]
    done = subprocess.run(
        [*command, str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    home = (tmp_path / "site/index.html").read_text()
    # Nothing is loaded from another host.
    assert not re.findall(
        r"(?:src|href)=\"(?:https?:)?//[^\"]+\.(?:css|js|woff2?)", home
    )
    page = (tmp_path / "site/reference/api/pipelines.html").read_text()
    assert 'id="pipelines.Parser"' in page
