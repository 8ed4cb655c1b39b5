"""Named runs: each is the published network, trains, reloads and exports."""

import dataclasses
import json
import pathlib
import re
import shlex

import numpy as np
import pytest

from pipelines import cli, prepare, runs
from pipelines.commands import COMMANDS
from pipelines.runs.named import NamedRun, to_markdown
from pipelines.synthetic import Planted

ROOT = pathlib.Path(__file__).parents[2]
NUM_ROWS, VALUES = 600, 3  # values seen so often have a row
PAIRS = 27 * 26 // 2  # of 26 embeddings and the bottom vector


def mlp(num_inputs, dims, is_normalized=False):
    """Kernels and biases; of a normalized layer also a scale and an offset."""
    total = 0
    for i, dim in enumerate(dims):
        total += num_inputs * dim + dim
        total += 2 * dim if is_normalized and i < len(dims) - 1 else 0
        num_inputs = dim
    return total


def cross(width, layers, rank):
    return layers * (2 * width * rank + width)


MODELS = ("DLRM", "DCN")
# Parameters besides the tables, by what was published.
NETWORKS = {
    "demo": mlp(13, (128, 64, 16)) + mlp(16 + PAIRS, (128, 64, 1)),
    "criteo_sample": mlp(13, (64, 32, 16)) + mlp(27 * 16, (64, 1)),
    "dlrm_kaggle": mlp(13, (512, 256, 64, 16)) + mlp(16 + PAIRS, (512, 256, 1)),
    "dlrm_terabyte": mlp(13, (512, 256, 64)) + mlp(64 + PAIRS, (512, 512, 256, 1)),
    "mlperf_v1": mlp(13, (512, 256, 128)) + mlp(128 + PAIRS, (1024, 1024, 512, 256, 1)),
    "mlperf_v2": mlp(13, (512, 256, 128))
    + cross(27 * 128, 3, 512)
    + mlp(27 * 128, (1024, 1024, 512, 256, 1)),
    "paddlerec": mlp(13, (512, 256, 64, 16), True)
    + mlp(16 + PAIRS, (512, 256, 1), True),
    "fuxictr_criteo_x1": mlp(13, (400, 400, 400, 10), True)
    + mlp(10 + PAIRS, (400, 400, 400, 1), True),
    "paper_dcn": mlp(13, (16,)) + cross(27 * 16, 6, 23) + mlp(27 * 16, (512, 256, 1)),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    Planted().write(folder / "a.tsv", NUM_ROWS)
    options = prepare.Options(min_count=VALUES, multi_hot="uniform")
    prepare.prepare(folder / "a.tsv", folder / "multi_hot", options)
    return folder


def shrink(config):
    """The same network and optimizer, for data that are there."""
    small = {"batch_size": 64, "min_count": VALUES, "jit_compile": "off"}
    if config.hash_buckets is not None:
        small["hash_buckets"] = 501
    if config.learning_rate_decay == "epochs":
        small |= {"epochs": 2, "reduce_after_epochs": (1,)}
    else:
        small["epochs"] = 1
    return dataclasses.replace(config, **small)


def test_each_run_has_a_network():
    assert set(NETWORKS) == set(runs.RUNS)


@pytest.mark.breadth(0, 1)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_trains_and_exports(name, data, tmp_path):
    config = shrink(runs.get(name))
    assert type(config).from_json(config.to_json()) == config
    train = data / ("multi_hot" if name == "mlperf_v2" else "a.tsv")
    folder, results = runs.train(config, train, None, tmp_path / "run")
    assert np.isfinite(results["metrics"]["loss"])
    parser = folder.load_parser()
    model = folder.load_model(parser)
    sizes = parser.vocabulary.sizes[: 1 if config.shared_table else 26]
    assert len(model.spec.tables) == len(sizes)
    assert sum(t.num_parameters for t in model.spec.tables) == (
        sum(sizes) * config.embedding_dim
    )
    found = sum(v.shape.num_elements() for v in model.dense_variables)
    assert found == NETWORKS[name]
    path = pathlib.Path(runs.export(folder, tmp_path / "exported"))  # and compares
    assert (path / "saved_model.pb").exists()


def test_published_numbers_of_parameters():
    # The log of FuxiCTR's run counts 21,664,241, the paper 540M in both networks.
    assert 2_086_303 * 10 + NETWORKS["fuxictr_criteo_x1"] == 21_664_241
    dlrm, dcn = (33_762_577 * 16 + NETWORKS[n] for n in ("dlrm_kaggle", "paper_dcn"))
    assert round(dlrm / 1e6) == round(dcn / 1e6) == 541
    assert NETWORKS["paper_dcn"] == pytest.approx(NETWORKS["dlrm_kaggle"], rel=0.002)


@pytest.mark.parametrize("run", runs.EXPERIMENTS.values(), ids=lambda run: run.name)
def test_descriptions_name_what_exists(run):
    assert isinstance(run, NamedRun) and run.summary and run.data
    for line in run.command:
        for command in re.split(r"[;|] ", line):
            words = shlex.split(command)
            if words[0] == "tf-dlrm":
                assert cli._parse(words[1], COMMANDS[words[1]], words[2:])
            elif words[0] == "python":
                assert (ROOT / words[1]).is_file()
            if "--run" in words:
                assert words[words.index("--run") + 1] == run.name
    for each in run.published:
        assert each.result and re.search(r"github\.com|arXiv|script", each.source)
    text = run.describe()
    assert all(command in text for command in run.command)
    wrapped = [line for line in text.splitlines() if line[13:] not in run.command]
    assert max(map(len, wrapped)) <= 88


def test_the_command_lists_all(capsys):
    assert cli.main(["runs"]) == 0
    printed = capsys.readouterr().out
    for run in runs.EXPERIMENTS.values():
        assert run.describe() in printed


def test_the_docs_have_the_runs():
    assert to_markdown(runs.EXPERIMENTS.values()) in (
        ROOT / "docs/results/experiments.md"
    ).read_text(encoding="utf-8")


def test_results_are_those_that_were_measured():
    """What the descriptions say is what the files in benchmarks/results say."""
    content = json.loads((ROOT / "benchmarks/results/experiments.json").read_text())
    for entry in content["results"]:
        run = runs.EXPERIMENTS[entry["run"]]
        texts = [m.result for m in run.measured if entry["data"] in m.data]
        assert len(texts) == 1, entry
        for name in ("auc", "log_loss"):
            assert f"{entry[name]:.4f}" in texts[0], (entry, texts)
            if entry["best_possible"]:
                assert f"{entry['best_possible'][name]:.4f}" in texts[0]
        assert all(m.date == content["date"] for m in run.measured)
    content = json.loads((ROOT / "benchmarks/results/comparison.json").read_text())
    measured = runs.EXPERIMENTS["paper_comparison"].measured
    for found, data in zip(measured, content["data"].values(), strict=True):
        # DLRM and DCN with SGD, then with Adagrad.
        arms = {(arm["optimizer"], arm["model"]): arm for arm in data["arms"]}
        pairs = [(o, m) for o in ("SGD", "Adagrad") for m in MODELS]
        expected = [arms[pair]["accuracy"] for pair in pairs]
        told = [float(x) for x in re.findall(r"([\d.]+)%", found.result)]
        expected.append(data["accuracy_of_no_clicks"])
        np.testing.assert_allclose(told, np.array(expected) * 100, atol=0.006)
        dlrm, dcn = (arms["SGD", model]["other_parameters"] for model in MODELS)
        assert (dlrm, dcn) == (NETWORKS["dlrm_kaggle"], NETWORKS["paper_dcn"])
