"""Named runs: each is the published network, trains, reloads and exports."""

import csv
import dataclasses
import json
import pathlib
import re
import shlex

import numpy as np
import pytest

from pipelines import cli, prepare, runs
from pipelines.commands import COMMANDS
from pipelines.runs import build_model
from pipelines.runs.named_runs import NamedRun, to_markdown
from pipelines.schema import layouts
from pipelines.synthetic import Planted, SchemaLog
from tf_dlrm import optimizers

ROOT = pathlib.Path(__file__).parents[2]
NUM_ROWS, VALUES = 600, 3  # values seen so often have a row
PAIRS = 27 * 26 // 2  # of 26 embeddings and the bottom vector
WIDE = (400, 400, 400, 1)


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
    "criteo_x1_dlrm": mlp(13, (400, 400, 400, 10), True) + mlp(10 + PAIRS, WIDE, True),
    "criteo_x4_dlrm": mlp(39 * 38 // 2, (1000, 1000, 1)),
    "avazu_dlrm": mlp(22 * 21 // 2, WIDE, True),
    "frappe_dlrm": mlp(10 * 10, WIDE, True),
    "movielens_dlrm": mlp(3 * 10, WIDE, True),
    "paper_dcn": mlp(13, (16,)) + cross(27 * 16, 6, 23) + mlp(27 * 16, (512, 256, 1)),
}
# The settings in the logs of BARS, and the schema of the files.
BARS = {
    "criteo_x1_dlrm": {"schema": "criteo_x1", "penalty": 1e-5, "op": "dot"}
    | {"dropout": 0.2, "bottom_dropout": 0, "bottom": (400, 400, 400)},
    "criteo_x4_dlrm": {"schema": "criteo_x4_001", "penalty": 1e-5, "op": "dot"}
    | {"dropout": 0.2, "width": 16, "batch": 10_000, "min_count": 10}
    | {"top": (1000, 1000), "norm": False},
    "avazu_dlrm": {"schema": "avazu_x1", "penalty": 0.01, "op": "dot", "dropout": 0.3},
    "frappe_dlrm": {"schema": "frappe", "penalty": 0.1, "op": "cat", "dropout": 0.4},
    "movielens_dlrm": {"schema": "movielens", "penalty": 0.01, "op": "cat"}
    | {"dropout": 0.2},
}
COMMON = {"width": 10, "batch": 4096, "min_count": 1, "top": (400, 400, 400)}
COMMON |= {"norm": True}


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
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in BARS])
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


@pytest.mark.parametrize("name", BARS)
def test_the_recipe_is_that_of_the_log(name):
    log, config = {**COMMON, **BARS[name]}, runs.get(name)
    assert (config.embedding_dim, config.batch_size) == (log["width"], log["batch"])
    assert (config.min_count, config.interaction) == (log["min_count"], log["op"])
    assert (config.dropout, config.l2) == (log["dropout"], log["penalty"])
    assert config.top_mlp_dims == (*log["top"], 1)
    norm = "before_activation" if log["norm"] else "none"
    assert config.batch_normalization == norm
    if "bottom" in log:
        assert config.bottom_mlp_dims == (*log["bottom"], log["width"])
        assert config.bottom_dropout == log["bottom_dropout"]
    assert (config.optimizer, config.learning_rate) == ("adam", 0.001)
    assert config.learning_rate_decay == "plateau" and config.saved_model == "best"
    assert (config.epochs, config.monitor, config.patience) == (100, "auc", 2)
    assert config.initial_embedding_limit / 3**0.5 == pytest.approx(1e-4, rel=1e-4)
    (line,) = (line for line in runs.EXPERIMENTS[name].command if "--run" in line)
    assert f"--schema {log['schema']} " in line and "--valid" in line
    # What the model gets: torch's dense Adam on whole tables, at the rate of the MLPs.
    schema = layouts.get(log["schema"])
    spec = schema.spec([5] * len(schema.tables), config.embedding_dim)
    model = build_model.make_model(config, spec)
    assert {t.embedding_dim for t in model.spec.tables} == {log["width"]}
    found = sum(v.shape.num_elements() for v in model.dense_variables)
    assert found == NETWORKS[name]
    build_model.compile_model(model, config, 9, schema=schema)
    tables = model.embedding_optimizer
    assert isinstance(tables, optimizers.DenseAdam) and tables.learning_rate is None
    assert (tables.l2, tables.rule.epsilon) == (log["penalty"], 1e-8)
    assert tables.rule.corrects_epsilon and model.optimizer.epsilon == 1e-8
    assert (tables.rule.beta_1, tables.rule.beta_2) == (0.9, 0.999)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.001)


@pytest.mark.integration
def test_the_recipe_trains_in_miniature(tmp_path):
    """All runs of BARS on generated rows of their layouts; one until it stops."""
    for name, log in BARS.items():
        out, schema = tmp_path / name, layouts.get(log["schema"])
        rows = SchemaLog(schema, num_values=20)
        rows.write(tmp_path / "train.csv", 400)
        rows.write(tmp_path / "valid.csv", 200, 400)
        small = {"batch_size": 100, "min_count": 2, "jit_compile": "off"}
        small["epochs"] = 9 if name == "movielens_dlrm" else 1
        config = dataclasses.replace(runs.get(name), **small)
        paths = tmp_path / "train.csv", tmp_path / "valid.csv"
        folder, results = runs.train(config, *paths, out, schema=schema)
        assert np.isfinite(results["metrics"]["loss"])
        assert folder.load_parser().vocabulary.schema == schema
    # The trainer of the log, on the same validations.
    with open(out / "metrics.csv") as file:
        values = [float(row["val_auc"]) for row in csv.DictReader(file)]
    best, without, reductions = -1.0, 0, 0
    for epoch, value in enumerate(values, start=1):
        if value > best:
            best, best_epoch, without = value, epoch, 0
        else:
            without, reductions = without + 1, min(reductions + 1, 3)  # to 1e-6
        assert without < 2 or epoch == len(values)
    assert without == 2 and reductions >= 2
    assert results["num_rate_reductions"] == reductions
    assert results["best"]["epoch"] == best_epoch
    assert results["best"]["auc"] == pytest.approx(best)


def test_published_numbers_of_parameters():
    # The logs of FuxiCTR's runs count rows x 10 and these networks, the paper 540M.
    published = {
        "criteo_x1_dlrm": (2_086_303, 21_664_241),
        "avazu_dlrm": (1_298_599, 13_402_391),
        "frappe_dlrm": (5_389, 417_891),
        "movielens_dlrm": (90_239, 1_238_391),
    }
    for name, (num_rows, total) in published.items():
        assert num_rows * 10 + NETWORKS[name] == total
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
        assert re.fullmatch(r"(?s).+ \(.*(github\.com|arXiv|script).*\)", each)
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
    """The docs have the figures of the files in benchmarks/results."""
    page = (ROOT / "docs/results/experiments.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line[:1] == "|"]
    rows = [[cell.strip() for cell in row] for row in rows]
    content = json.loads((ROOT / "benchmarks/results/experiments.json").read_text())
    for entry in content["results"]:
        best = entry["best_possible"] or {}
        expected = [entry["data"], *(f"{entry[k]:.4f}" for k in ("auc", "log_loss"))]
        expected += [", ".join(f"{best[k]:.4f}" for k in best), content["date"]]
        name = f"`{entry['run']}`"
        assert expected in [row[1:] for row in rows if row[0].startswith(name)]
    content = json.loads((ROOT / "benchmarks/results/comparison.json").read_text())
    for name, data in content["data"].items():
        arms = {(arm["optimizer"], arm["model"]): arm for arm in data["arms"]}
        for model in MODELS:
            (row,) = (row for row in rows if name in row[0] and row[1] == model)
            for cells, optimizer in zip(row[2:], ("SGD", "Adagrad"), strict=True):
                arm = arms[optimizer, model]
                accuracy, *others = cells.replace("%", "").split(", ")
                assert float(accuracy) == pytest.approx(100 * arm["accuracy"], abs=6e-3)
                assert others == [f"{arm[k]:.4f}" for k in ("auc", "log_loss")]
        assert f"{100 * data['accuracy_of_no_clicks']:.2f}%" in page
        dlrm, dcn = (arms["SGD", model]["other_parameters"] for model in MODELS)
        assert (dlrm, dcn) == (NETWORKS["dlrm_kaggle"], NETWORKS["paper_dcn"])
