"""`tf-dlrm publish`, `follow-deltas`, `rollback` and `release`, on runs."""

import pytest
from helpers import delta_oracle

import pipelines
import tf_dlrm
from pipelines import cli
from pipelines.publishing import publish
from pipelines.runs import RunConfig
from pipelines.synthetic import Planted

pytestmark = pytest.mark.integration

CONFIG = RunConfig(
    embedding_dim=4,
    bottom_mlp_dims=(8, 4),
    top_mlp_dims=(8, 1),
    interaction="dot",
    hash_buckets=2000,
    batch_size=128,
    epochs=1,
    jit_compile="off",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Yesterday's run, and today's, which starts from it on few rows."""
    folder = tmp_path_factory.mktemp("runs")
    Planted().write(folder / "day_0", 1000, 0)
    Planted().write(folder / "day_1", 100, 1000)
    first, _ = pipelines.runs.train(CONFIG, folder / "day_0", None, folder / "0")
    second, _ = pipelines.runs.train(
        CONFIG, folder / "day_1", None, folder / "1", warm_start=first.path
    )
    return first, second


def test_a_second_run_is_a_delta_of_the_first(runs, tmp_path, capsys):
    base_dir, served = tmp_path / "published", tmp_path / "served"
    command = ["publish", "--output", str(base_dir), "--table-dtype", "int8", "--model"]
    for run in runs:
        assert cli.main([*command, str(run.path)]) == 0
    said = capsys.readouterr().out
    assert "published 1.0, a base" in said and "published 1.1, a delta with" in said
    follow = ["follow-deltas", str(base_dir), "--output", str(served), "--once"]
    assert cli.main(follow) == 0
    full = pipelines.runs.export(runs[1], tmp_path / "full", table_dtype="int8")
    delta_oracle.assert_equal(
        delta_oracle.weights_of(served / "1"), delta_oracle.weights_of(full)
    )
    assert cli.main(follow) == 0
    assert "its newest version is 1.1 already" in capsys.readouterr().out
    assert cli.main(["rollback", str(base_dir), "--to", "0"]) == 0
    assert "replicas serve 1.0 from now on" in capsys.readouterr().out
    assert cli.main(follow) == 0
    first = pipelines.runs.export(runs[0], tmp_path / "full", table_dtype="int8")
    delta_oracle.assert_equal(
        delta_oracle.weights_of(served / "2"), delta_oracle.weights_of(first)
    )
    assert cli.main(["release", str(base_dir)]) == 0
    assert tf_dlrm.serving.Replica(base_dir).head() == (1, 1)
    assert cli.main(["rollback", str(base_dir), "--to", "7"]) == 2
    assert "Delta 2 of base 1 is missing" in capsys.readouterr().err


def test_an_unchanged_model_and_other_options(runs, tmp_path):
    done = [publish(runs[0], tmp_path) for _ in range(2)]
    assert [p.position for p in done] == [(1, 0), (1, 1)] and not done[1].num_rows
    other = publish(runs[0], tmp_path, max_hotness=3)
    assert other.position == (2, 0)
    assert publish(runs[0], tmp_path, dtype="int8", max_hotness=3).position == (3, 0)
