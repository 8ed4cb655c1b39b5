"""`tf-dlrm train` by several processes that `TF_CONFIG` names."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile

import h5py
import numpy as np
import pytest
import yaml
from helpers import guide
from helpers.workers import free_ports, tf_config

from pipelines.runs import devices
from pipelines.synthetic import Planted

OPTIONS = ["--epochs", "2", "--batch-size", "64", "--hash-buckets", "100"]
OPTIONS += ["--seed", "3", "--deterministic", "--plan", "row_wise"]
OPTIONS += ["--checkpoint-every-steps", "5", "--bottom-mlp-dims", "8", "4"]
OPTIONS += ["--top-mlp-dims", "8", "1", "--embedding-dim", "4"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Files of training and validation rows."""
    folder = tmp_path_factory.mktemp("rows")
    Planted().write(folder / "train.tsv", 701)
    Planted().write(folder / "valid.tsv", 150, 5000)
    return folder


def start(rows, out, *options, workers=2):
    """Start the command in each worker; return the processes."""
    command = [sys.executable, "-m", "pipelines.cli", "train"]
    command += ["--train", str(rows / "train.tsv"), "--valid", str(rows / "valid.tsv")]
    command += ["--out", str(out), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ports = free_ports(workers)
    return [
        subprocess.Popen(
            command,
            env={**environment, "TF_CONFIG": tf_config(ports, index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(workers)
    ]


def finish(processes, seconds=300):
    """Return exit code and output of each process; end those that have not ended."""
    try:
        texts = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(p.returncode, text) for p, text in zip(processes, texts, strict=True)]


def train(rows, out, *options, **more):
    results = finish(start(rows, out, *options, **more))
    assert [code for code, _ in results] == [0] * len(results), results


def weights_of(out):
    """All arrays of the weights that a run has saved."""
    arrays = {}
    with zipfile.ZipFile(out / "model.keras") as archive:
        with archive.open("model.weights.h5") as file, h5py.File(file) as weights:
            weights.visititems(
                lambda name, item: (
                    arrays.update({name: item[()]})
                    if isinstance(item, h5py.Dataset)
                    else None
                )
            )
    return arrays


@pytest.fixture(scope="module")
def uninterrupted(rows):
    train(rows, rows / "two", *OPTIONS)
    return rows / "two"


@pytest.mark.integration
def test_two_workers_equal_one_process(rows, uninterrupted):
    train(
        rows,
        rows / "one",
        *[o for o in OPTIONS if o not in ("--plan", "row_wise")],
        workers=1,
    )
    metrics = [
        np.genfromtxt(rows / name / "metrics.csv", delimiter=",", names=True)
        for name in ("one", "two")
    ]
    for name in metrics[0].dtype.names:
        np.testing.assert_allclose(metrics[1][name], metrics[0][name], atol=1e-4)
    one, two = weights_of(rows / "one"), weights_of(uninterrupted)
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=1e-4, err_msg=name)
    facts = json.loads((uninterrupted / "metrics.json").read_text())
    assert facts["num_rows"] == 2 * 701 or facts["num_rows"] == 701


@pytest.mark.integration
def test_a_killed_worker_stops_the_others_and_the_job_resumes(rows, uninterrupted):
    out = rows / "killed"
    processes = start(rows, out, *OPTIONS)
    first, second = processes
    until = time.monotonic() + 200
    while not list(out.glob("checkpoints/step-*")) and time.monotonic() < until:
        time.sleep(0.1)
    os.kill(second.pid, signal.SIGKILL)
    killed = time.monotonic()
    (code, text), _ = finish(processes)
    assert time.monotonic() - killed < 60
    (line,) = [
        line
        for line in text.splitlines()
        if "error:" in line.lower() and "Missing" in line
    ]
    assert code != 0 and "Missing: worker 1 (worker 1, 127.0.0.1:" in line
    train(rows, out, *OPTIONS, "--resume")
    for name in ("metrics.csv", "steps.csv"):
        assert (out / name).read_text() == (uninterrupted / name).read_text()
    expected, resumed = weights_of(uninterrupted), weights_of(out)
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


@pytest.mark.integration
def test_sigterm_at_one_worker_stops_all(rows):
    out = rows / "stopped"
    processes = start(rows, out, *OPTIONS, "--epochs", "50")
    until = time.monotonic() + 200
    while not list(out.glob("checkpoints/step-*")) and time.monotonic() < until:
        time.sleep(0.1)
    os.kill(processes[1].pid, signal.SIGTERM)
    (code, text), (other_code, _) = finish(processes)
    assert (code, other_code) == (143, 143), text
    assert "SIGTERM: training is saved in" in text
    assert not list(out.glob("model*"))


BAD = {
    "{": "not valid JSON",
    '{"cluster": {"ps": ["a:1"], "worker": ["b:2"]}}': "parameter servers",
    '{"cluster": {"worker": ["a:1", "b:2"]}}': "which worker this process is",
    '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 2}}': (
        "which worker this process is"
    ),
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_a_bad_tf_config_is_refused(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=BAD[text]):
        devices.make_strategy(1)


def test_without_other_workers_there_is_no_strategy(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1"]}}')
    assert devices.make_strategy(1) is None


def test_several_devices_of_several_workers_are_refused(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config([1, 2], 0))
    with pytest.raises(ValueError, match="num_devices=2"):
        devices.make_strategy(2)


PAGE = "how_to/several_machines.md"


@pytest.mark.integration
def test_the_script_of_the_page(tmp_path, monkeypatch):
    """Without `TF_CONFIG`, there is one worker."""
    monkeypatch.chdir(tmp_path)
    names = guide.run_page("how_to/several_machines.md", {})
    assert np.isfinite(names["history"].history["loss"]).all()
    assert (tmp_path / "model.keras").exists()


@pytest.mark.integration
def test_the_commands_of_the_page(rows, tmp_path):
    for number, name in enumerate(("day_0.gz", "day_1.gz")):
        Planted().write(tmp_path / name, 200, number * 200)
    (script,) = re.findall(r"```bash\n(.*?)```", guide.read(PAGE), re.S)
    for port, free in zip(("20211", "20212"), free_ports(2), strict=True):
        script = script.replace(port, str(free))
    script = script.replace("tf-dlrm", f"{sys.executable} -m pipelines.cli")
    script = script.replace("--resume", "--epochs 1 --hash-buckets 50")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (tmp_path / "runs/two_workers/model.keras").exists(), done.stderr


def test_the_job_files_of_the_page(monkeypatch):
    """They have the form that the services expect, and a valid `TF_CONFIG`."""
    kubernetes, vertex = re.findall(r"```yaml\n(.*?)```", guide.read(PAGE), re.S)
    service, job = yaml.safe_load_all(kubernetes)
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    name, pods = service["metadata"]["name"], job["spec"]["template"]["spec"]
    assert pods["subdomain"] == name == job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 4
    assert job["spec"]["completionMode"] == "Indexed"
    (container,) = pods["containers"]
    (port,) = [p["containerPort"] for p in container["ports"]]
    (volume,) = [v["name"] for v in pods["volumes"]]
    assert [m["name"] for m in container["volumeMounts"]] == [volume]
    (script,) = container["args"]
    shown = subprocess.run(
        ["sh", "-c", script.replace("exec tf-dlrm", "echo $TF_CONFIG #")],
        env={"JOB_COMPLETION_INDEX": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    config = json.loads(shown.stdout)
    assert config["cluster"]["worker"] == [
        f"{name}-{i}.{name}:{port}" for i in range(4)
    ]
    monkeypatch.setenv("TF_CONFIG", shown.stdout)
    assert devices.count_workers() == 4

    pools = yaml.safe_load(vertex)["jobSpec"]["workerPoolSpecs"]
    assert [pool["replicaCount"] for pool in pools] == [1, 3]
    for pool in pools:
        assert pool["containerSpec"]["command"] == ["tf-dlrm", "train"]
        assert pool["machineSpec"]["machineType"]
