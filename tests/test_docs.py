"""The pages of docs/: their examples run, their links lead somewhere."""

import re
import shlex

import numpy as np
import pytest
from helpers import guide

import pipelines
import tf_dlrm
from pipelines import cli
from pipelines.synthetic import Planted

pytestmark = pytest.mark.integration

ROOT = guide.DOCS.parent
PAGE = "getting_started.md"
PAGES = sorted(
    [*guide.DOCS.rglob("*.md"), *ROOT.glob("*.md"), ROOT / "benchmarks/README.md"]
)


def test_getting_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in guide.commands("From the shell", PAGE)[:2]:
        assert command[0] == "generate"
        assert cli.main(command) in (0, None)
    names = guide.run_page(PAGE, {})
    assert 0.70 < names["result"]["auc"] < 0.80
    assert names["probabilities"].shape == (20_000, 1)
    # Clicks are drawn at 0.6 and 0.1: no model sees more than these two.
    assert names["own_result"]["auc"] > 0.68
    assert 0 < float(names["probability"][0, 0]) < 1


@pytest.mark.slow
def test_getting_started_from_the_shell(tmp_path, monkeypatch):
    """tests/pipelines/test_cli.py runs these commands on less, each time."""
    monkeypatch.chdir(tmp_path)
    typed = guide.commands("From the shell", PAGE)
    names = [command[0] for command in typed]
    assert names == ["generate", "generate", "train", "evaluate", "export", "predict"]
    for command in typed:
        assert cli.main(command) in (0, None), shlex.join(command)
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 20_001


def test_data_frames():
    names = guide.run("Data frames", {}, "data.md")
    ((features, label),) = names["train"].map(lambda *batch: batch)
    assert features["sparse_features"].shape[:2] == (2, 2) and sum(label) == 1
    ((features, _),) = pipelines.from_dataframe(names["logs"], names["parser"])
    assert features["sparse_features"].to_list() == [[[1], [1, 2]], [[2], [0]]]


def test_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = guide.run_page("model.md", {})
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
    assert {type(each) for each in names["again"].embedding_optimizer.values()} == {
        tf_dlrm.optimizers.RowWiseAdagrad,
        tf_dlrm.optimizers.SparseSGD,
    }
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
    for name in ("train", "valid"):
        names[name] = pipelines.criteo.read(folder / f"{name}.tsv", parser, 150)
    return names


def test_training(criteo_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = guide.run_page("training.md", {**criteo_model})
    assert any((tmp_path / "checkpoints/ctr").glob("step-*"))
    assert names["stop"].best is not None
    moved = names["maps"]["C1"]
    rows = [names[m].embedding.get_table("C1") for m in ("old_model", "model")]
    np.testing.assert_array_equal(rows[1][moved[moved >= 0]], rows[0][moved >= 0])
    assert str(names["report"]) in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Steps 100 to 110 were not profiled")
def test_watching(criteo_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = criteo_model["vocabulary"].values("C1")
    guide.run_page("watching.md", {**criteo_model, "names": ["", *values]})
    assert any((tmp_path / "logs/train").glob("events*"))
    labels = tmp_path / "logs/train/projector/C1_labels.tsv"
    assert len(labels.read_text().splitlines()) > len(values)


def test_evaluation(capsys):
    rng = np.random.default_rng(0)
    names = {"labels": rng.integers(0, 2, 500), "predictions": rng.random(500)}
    names |= {"countries": rng.choice(["DE", "FR"], 500), "tf_dlrm": tf_dlrm}
    names = guide.run_page("evaluation.md", {**names, "users": rng.integers(0, 9, 500)})
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


def test_every_page_is_in_the_index():
    linked = re.findall(r"\]\(([^)]+\.md)\)", (guide.DOCS / "README.md").read_text())
    pages = {str(page.relative_to(guide.DOCS)) for page in guide.DOCS.rglob("*.md")}
    assert pages - {"README.md"} <= set(linked)
