"""`tf-dlrm benchmark`: same data for all, whole reports, right arithmetic."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from pipelines import cli
from pipelines.benchmark import arms, breakdown, machine, measurement, results, runner
from pipelines.benchmark.jobs import Job, step_statistics
from pipelines.benchmark.workloads import (
    WORKLOADS,
    Workload,
    make_pool,
    scaling_workload,
)
from pipelines.text_tables import shorten_count

pytestmark = pytest.mark.integration

TINY = Workload("tiny", 3, (50, 7, 1000), 8, (16, 8), (16, 1))
BAGS = dataclasses.replace(TINY, name="bags", max_hotness=4)
QUICK = Job(TINY, batch_size=64, seconds=0.05, warmup_steps=3)


@pytest.fixture(scope="module")
def peers_common():
    path = arms.peers_folder() / "common.py"
    spec = importlib.util.spec_from_file_location("peers_common", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("workload", [TINY, BAGS], ids=lambda w: w.name)
def test_peers_get_the_same_batches(workload, peers_common):
    own = make_pool(workload, 2000, seed=3)
    theirs = peers_common.make_pool(dataclasses.asdict(workload), 2000, seed=3)
    assert len(own) == len(theirs) >= 8
    for (dense, label, bags), (dense_2, label_2, bags_2) in zip(own, theirs):
        np.testing.assert_array_equal(dense, dense_2)
        np.testing.assert_array_equal(label, label_2)
        for (ids, lengths), (ids_2, lengths_2), rows in zip(
            bags, bags_2, workload.table_sizes
        ):
            np.testing.assert_array_equal(ids, ids_2)
            np.testing.assert_array_equal(lengths, lengths_2)
            assert 0 <= ids.min() and ids.max() < rows
            assert lengths.sum() == len(ids)
            assert 1 <= lengths.min() and lengths.max() == workload.max_hotness


def test_a_ragged_batch_holds_the_bags_of_the_pool():
    pool = make_pool(BAGS, 64)
    dataset = measurement.make_dataset(dataclasses.replace(QUICK, workload=BAGS))
    for (dense, label, bags), (features, got_label) in zip(pool[:3], dataset):
        np.testing.assert_array_equal(features["dense_features"], dense)
        np.testing.assert_array_equal(got_label, label)
        rows = features["sparse_features"].to_list()
        for table, (ids, lengths) in enumerate(bags):
            expected = np.split(ids, np.cumsum(lengths)[:-1])
            assert [row[table] for row in rows] == [list(bag) for bag in expected]


def test_jobs_survive_json():
    job = dataclasses.replace(QUICK, workload=BAGS, jit_compile=True, optimizer="adam")
    assert Job.from_json(job.to_json()) == job


@pytest.mark.parametrize(
    "change",
    [{"mode": "both"}, {"optimizer": "lamb"}, {"jit_compile": 2}, {"seconds": 0}],
    ids=str,
)
def test_jobs_refuse_what_they_do_not_know(change):
    with pytest.raises(ValueError, match=f"`{next(iter(change))}` must be"):
        dataclasses.replace(QUICK, **change)


def test_workloads_refuse_dims_that_do_not_fit():
    with pytest.raises(ValueError, match="must end in `embedding_dim`"):
        dataclasses.replace(TINY, embedding_dim=4)
    with pytest.raises(ValueError, match="`table_sizes` must be positive"):
        dataclasses.replace(TINY, table_sizes=(5, 0))


def test_sizes_of_the_workloads():
    assert sum(WORKLOADS["kaggle"].table_sizes) == 33_762_577
    assert WORKLOADS["paper_single_socket"].table_bytes == 8 * 10**6 * 64 * 4
    assert TINY.state_bytes("adam") == 2 * TINY.table_bytes
    assert TINY.state_bytes("rowwise_adagrad") == 4 * 1057
    assert [shorten_count(n) for n in (10_000, 10**7, 10**8)] == ["10k", "10M", "100M"]


@pytest.mark.breadth(0, 1)
@pytest.mark.parametrize(
    "job",
    [
        dataclasses.replace(QUICK, optimizer="rowwise_adagrad", profile=True),
        dataclasses.replace(QUICK, workload=BAGS, precision="bfloat16", metrics=True),
        dataclasses.replace(QUICK, workload=BAGS, mode="inference"),
    ],
    ids=["train", "train-bags", "inference-bags"],
)
def test_our_arm_reports(job):
    result = arms.run_arm(arms.make_own(job))
    assert "failed" not in result, result
    assert result["workload"] == job.workload.name and result["mode"] == job.mode
    assert result["batch_size"] == 64 and result["precision"] == job.precision
    assert result["num_steps"] >= 2
    quantiles = [result[f"ms_per_step_p{q}"] for q in (10, 50, 90, 99)]
    assert 0 < quantiles[0] and quantiles == sorted(quantiles)
    speed = 64 / result["ms_per_step_p50"] * 1e3
    assert result["samples_per_s"] == pytest.approx(speed, rel=1e-3)
    assert result["peak_rss_mb"] > 50 and result["seconds_to_build"] > 0
    assert set(result["versions"]) == {"tensorflow", "keras"}
    expected = None if job.mode == "inference" else job.optimizer
    assert result["optimizer"] == expected
    if job.profile:
        shares = result["breakdown"]["share"]
        assert set(shares) == set(breakdown.CATEGORIES)
        assert sum(shares.values()) == pytest.approx(1, abs=0.01)
        for part in ("embedding lookup", "embedding update", "bottom MLP", "top MLP"):
            assert shares[part] > 0, part


def test_quantiles_of_steps():
    got = step_statistics([0.001 * i for i in range(1, 102)], batch_size=102)
    assert got["ms_per_step_p50"] == 51 and got["samples_per_s"] == 2000
    assert (got["ms_per_step_p10"], got["ms_per_step_p90"]) == (11, 91)
    assert got["num_steps"] == 101


def line(arm, number, speed, precision="float32", **more):
    return {
        "kind": "round", "arm": arm, "round": number, "samples_per_s": speed,
        "ms_per_step_p50": 2048e3 / speed, "ms_per_step_p90": 3000e3 / speed,
        "peak_rss_mb": 900.0, "table_mb": 100.0, "state_mb": 50.0,
        "precision": precision, **more,
    }  # fmt: skip


LINES = [
    {"kind": "round", "arm": "keras3_xla", "round": 0, "absent": "not installed"},
    line("tf_dlrm", 1, 120.0), line("tf_dlrm_bf16", 1, 300.0, "bfloat16"),
    line("torch", 1, 100.0), line("torchrec", 1, 50.0),
    line("torch_bf16", 1, 200.0, "bfloat16"),
    line("tf_dlrm", 2, 90.0), line("tf_dlrm_bf16", 2, 240.0, "bfloat16"),
    line("torch", 2, 50.0), line("torchrec", 2, 60.0),
    line("torch_bf16", 2, 120.0, "bfloat16"),
    line("tf_dlrm", 3, 70.0), line("tf_dlrm_bf16", 3, 100.0, "bfloat16"),
    line("torch", 3, 100.0), {"kind": "round", "arm": "torchrec", "round": 3,
                              "failed": "no | memory"},
    line("torch_bf16", 3, 100.0, "bfloat16"),
]  # fmt: skip


def test_ratios_are_to_the_best_peer_of_each_round():
    summary = results.summarize(LINES, QUICK)
    found = {(r["arm"], r["peer_precision"]): r for r in summary["ratios"]}
    assert {k: v["median"] for k, v in found.items()} == {
        ("tf_dlrm", "float32"): 1.2,
        ("tf_dlrm_bf16", "float32"): 3.0,
        ("tf_dlrm_bf16", "bfloat16"): 1.5,
    }
    rounds = found["tf_dlrm", "float32"]["rounds"]
    assert [r["ratio"] for r in rounds] == [1.2, 1.5, 0.7]
    assert [r["best_peer"] for r in rounds] == ["torch", "torchrec", "torch"]
    assert summary["arms"]["tf_dlrm"]["samples_per_s"] == 90.0
    assert summary["arms"]["torchrec"]["samples_per_s"] == 55.0
    assert summary["arms"]["torchrec"]["failed"] == "no | memory"
    assert summary["arms"]["keras3_xla"] == {"absent": "not installed"}


def test_the_table_says_all():
    summary = results.summarize(LINES, QUICK) | {"machine": machine.describe()}
    headings, rows = results.make_table(summary)
    assert headings[:5] == ["arm", "rows/s", "ms p50", "ms p90", "peak MB"]
    cells = {row[0]: row for row in rows}
    assert all(len(row) == len(headings) for row in rows)
    assert cells["tf_dlrm"][1] == "90" and cells["tf_dlrm"][-2:] == ["1.20", ""]
    assert cells["tf_dlrm_bf16"][-2:] == ["3.00", "1.50"]
    assert cells["keras3_xla"][1] == "not installed"
    text = results.to_markdown((headings, rows), summary)
    assert "torchrec (failed: no / memory)" in text


def test_scaling_ratios():
    lines = [
        line("tf_dlrm sgd 10k", 1, 2048.0), line("tf_dlrm sgd 10M", 1, 1024.0),
        line("tf_dlrm sgd 10k", 2, 2048.0), line("tf_dlrm sgd 10M", 2, 512.0),
    ]  # fmt: skip
    job = dataclasses.replace(QUICK, workload=scaling_workload(10_000))
    found = results.summarize_scaling(lines, job)["optimizers"]["sgd"]
    assert found["ratios"] == {"10M/10k": 3.0}
    assert found["ms"] == {"10k": 1000.0, "10M": 3000.0}
    assert found["extra_mb"] == {"10k": 750.0, "10M": 750.0}


def test_scaling_leaves_out_what_does_not_fit():
    hundred_million = 100 * 10**6 * 16 * 4
    jobs, skipped = runner.scaling_jobs(QUICK, hundred_million + runner.SPARE_BYTES)
    names = [name for name, _ in jobs]
    assert "tf_dlrm sgd 100M" in names and "tf_dlrm adam 10M" in names
    assert "tf_dlrm adam 100M" not in names and len(jobs) + len(skipped) == 15
    assert any(
        "tf_dlrm adam 100M: skipped, as it needs 19,3" in text for text in skipped
    )


def test_time_is_split_among_what_runs():
    events = [
        (0.0, 10.0, 1, "top MLP"),
        (2.0, 6.0, 1, "bottom MLP"),  # inside the one above: it runs, not both
        (4.0, 8.0, 2, "interaction"),
        (20.0, 30.0, 2, "interaction"),  # half of it is after the end
    ]
    assert breakdown.split_time(events, -2.0, 25.0) == pytest.approx(
        {
            "top MLP": 2 + 1 + 2,
            "bottom MLP": 2 + 1,
            "interaction": 1 + 1 + 5,
            "input and Python": 2 + 10,
        }
    )


@pytest.mark.parametrize(
    "name, category",
    [
        ("x/embedding_1/embedding_lookup/Call:XlaLaunch", "embedding lookup"),
        ("x/embedding_update_1/Call:XlaLaunch", "embedding update"),
        ("x/gradient_tape/bottom_mlp_1/dense_1/MatMul:_MklMatMul", "bottom MLP"),
        ("x/top_mlp_1/Relu:_MklNativeFusedMatMul", "top MLP"),
        ("x/interaction_1/GatherV2:GatherV2", "interaction"),
        ("x/ResourceScatterSub:ResourceScatterSub", "embedding update"),
        ("x/embedding_1/ResourceGather:ResourceGather", "embedding lookup"),
        ("x/sgd/AssignSubVariableOp:AssignSubVariableOp", "dense optimizer"),
        ("x/binary_crossentropy/Mul:Mul", "loss and metrics"),
        ("IteratorGetNext:IteratorGetNext", "input and Python"),
        ("x/Cast_3:Cast", "other"),
    ],
)
def test_operations_have_categories(name, category):
    assert breakdown.categorize(name) == category
    assert category in breakdown.CATEGORIES


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("fpu avx2 avx512f avx512_bf16 amx_tile amx_bf16", "amx"),
        ("fpu avx2 avx512f", "avx512"),
        ("fpu avx2", "avx2"),
        ("fpu", "other"),
    ],
)
def test_the_machine_in_general_terms(flags, expected):
    assert machine.instruction_set(f"processor : 0\nflags : {flags}\n") == expected
    assert set(machine.describe()) == {
        "cores", "instruction_set", "memory_gb", "date",
    }  # fmt: skip


def test_a_disturbed_round_is_marked():
    quiet, busy = (
        line("torch", 1, 10.0, other_cores=0.1),
        line("torch", 1, 10.0, other_cores=1.4),
    )
    assert "BUSY" not in runner.describe(quiet)
    assert "BUSY: other processes used 1.4 cores" in runner.describe(busy)
    assert 0 < machine.children_seconds() < machine.busy_seconds()


def fake(name, program, job=QUICK):
    return arms.Arm(name, job, (sys.executable, "-c", program))


def test_a_failing_arm_does_not_stop_the_others(tmp_path):
    shares = dict.fromkeys(breakdown.CATEGORIES, 1 / len(breakdown.CATEGORIES))
    report = line("", 0, 1000.0) | {
        "breakdown": {"share": shares, "ms_per_step": shares}
    }
    for name in ("arm", "round", "kind"):
        del report[name]
    good = fake("tf_dlrm", f"print({json.dumps(report)!r})")
    bad = fake("torch", "raise MemoryError('too big')")
    killed = fake("torchrec", "import os; os.kill(os.getpid(), 9)")
    absent = arms.Arm("keras3_xla", QUICK, absent=arms.NOT_INSTALLED)
    shown = []
    runner.run_benchmark(
        [bad, killed, good, absent], 2, tmp_path / "out", [good], shown.append
    )
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    *lines, summary = [json.loads(text) for text in lines]
    assert [entry["round"] for entry in lines if entry["arm"] == "tf_dlrm"] == [1, 2]
    assert summary["arms"]["torch"] == {"failed": "MemoryError: too big"}
    assert "killed by SIGKILL" in summary["arms"]["torchrec"]["failed"]
    assert summary["arms"]["keras3_xla"] == {"absent": "not installed"}
    assert summary["arms"]["tf_dlrm"]["samples_per_s"] == 1000.0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "failed: MemoryError: too big" in table and "not installed" in table
    for name in ("chart.png", "breakdown.png"):
        start = (tmp_path / "out" / name).read_bytes()[:8]
        assert start == b"\x89PNG\r\n\x1a\n"
    breakdowns = json.loads((tmp_path / "out" / "breakdown.json").read_text())
    assert set(breakdowns) == {"tf_dlrm"}
    assert len(shown) == 1 + 3 + 1 + 1  # absent, first round, second, profile


def test_peers_that_are_not_installed_are_listed():
    has = importlib.util.find_spec
    found = {arm.name: arm for arm in arms.make_peers(QUICK, ("float32", "bfloat16"))}
    assert set(found) == {"torch", "torch_bf16", "torchrec", "keras3_xla"}
    if has("torch") is None:
        assert found["torch"].absent == found["torchrec"].absent == "not installed"
    if has("keras_rs") is None:
        assert found["keras3_xla"].absent == "not installed"
    rowwise = dataclasses.replace(QUICK, optimizer="rowwise_adagrad")
    assert [a.name for a in arms.make_peers(rowwise, ("float32",))] == ["torchrec"]


def test_peers_need_the_repository(monkeypatch, tmp_path):
    monkeypatch.setattr(arms.pipelines, "__file__", str(tmp_path / "p" / "__init__.py"))
    with pytest.raises(ValueError, match="needs the folder benchmarks/peers"):
        arms.peers_folder()


def test_scaling_chart_and_table(tmp_path):
    from pipelines.benchmark import charts

    lines = [line("tf_dlrm sgd 10k", 1, 2048.0), line("tf_dlrm sgd 10M", 1, 1024.0)]
    job = dataclasses.replace(QUICK, workload=scaling_workload(10_000))
    summary = results.summarize_scaling(lines, job) | {"machine": machine.describe()}
    charts.draw_summary(summary, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000
    headings, rows = results.make_table(summary)
    assert dict(zip(headings, rows[0]))["10M/10k"] == "2.00"


def test_a_dry_run_prints_and_does_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["benchmark", "--out", str(out), "--profile", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "measure tf_dlrm, tf_dlrm_bf16" in text and "3 rounds of 8 s" in text
    assert "profile steps of tf_dlrm, tf_dlrm_bf16" in text and not out.exists()


def test_mistakes_are_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    for options, message in (
        (["--workload", "w1"], "w1"),
        (["--rounds", "0"], "--rounds must be positive"),
        (["--out", str(tmp_path / "file")], "is a file; name a folder"),
        (["--mode", "inference", "--metrics"], "--metrics needs --mode train"),
        (["--workload", "scaling", "--peers"], "--peers cannot be combined with"),
        (["--peer-python", "python9"], "--peer-python has no effect without --peers"),
        (["--peers", "--peer-python", "python9"], "must be a Python interpreter"),
    ):
        capsys.readouterr()
        assert cli.main(["benchmark", *options]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error, error


def test_the_command_imports_no_tensorflow():
    program = (
        "import sys; from pipelines import cli; "
        "cli.main(['benchmark', '--dry-run']); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.breadth(0, 1)
@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_a_number_of_steps_takes_a_time_in_all(steps_per_execution):
    changes = {"steps": 12, "steps_per_execution": steps_per_execution}
    result = arms.run_arm(arms.make_own(dataclasses.replace(QUICK, **changes)))
    assert "failed" not in result, result
    assert result["num_steps"] == 12 // steps_per_execution
    # All executions but one take at least the tenth percentile: two of three here.
    least = 12 * result["ms_per_step_p10"] / 1e3 * 0.6
    assert least - 0.01 <= result["total_seconds"] < 60
    assert f"{result['total_seconds']:,.1f} s in total" in runner.describe(result)


def test_steps_that_do_not_fit_are_refused(capsys):
    with pytest.raises(ValueError, match="`steps` must be positive"):
        dataclasses.replace(QUICK, steps=0)
    with pytest.raises(ValueError, match="`steps` must be a multiple"):
        dataclasses.replace(QUICK, steps=5, steps_per_execution=2)
    for option in ("--peers", "--mode inference"):
        command = ["benchmark", "--steps", "5", *option.split()]
        assert cli.main(command) == 2
        assert "--steps" in capsys.readouterr().err
