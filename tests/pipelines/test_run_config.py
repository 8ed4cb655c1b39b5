"""`RunConfig`: what does not fit is refused; what is set reaches the model."""

import dataclasses
import json
import types

import keras
import numpy as np
import pytest

from pipelines import cli
from pipelines.runs import build_model
from pipelines.runs.config import RunConfig
from tf_dlrm import FeatureSpec, optimizers

SMALL = RunConfig(embedding_dim=4, bottom_mlp_dims=(8, 6, 4), top_mlp_dims=(8, 5, 1))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"cross_layers": 2}, "`cross_layers` requires interaction='cross'"),
        ({"cross_rank": 2}, "`cross_rank` requires interaction='cross'"),
        ({"interaction": "cross", "cross_rank": 0}, "`cross_rank` must be at least 1"),
        ({"shared_table": True}, "`shared_table` requires hash_buckets"),
        ({"bottom_dropout": 1.0}, "`bottom_dropout` must be at least 0 and below 1"),
        ({"adagrad_epsilon": -1.0}, "`adagrad_epsilon` must be a finite number"),
        ({"adam_epsilon": 1e-8}, "`adam_epsilon` requires optimizer='adam'"),
        ({"l2": -1.0}, "`l2` must be a finite number and not negative"),
        ({"warmup_steps": 3}, "`warmup_steps` requires learning_rate_decay='square'"),
        ({"decay_steps": 3}, "`decay_steps` requires learning_rate_decay='square'"),
        (
            {
                "learning_rate_decay": "square",
                "warmup_steps": 9,
                "decay_start_step": 5,
                "decay_steps": 1,
            },
            "`decay_start_step` must be at least warmup_steps",
        ),
        (
            {"reduce_after_epochs": (1,), "epochs": 2},
            "`reduce_after_epochs` requires learning_rate_decay='epochs'",
        ),
        (
            {"learning_rate_decay": "epochs", "epochs": 2},
            "`reduce_after_epochs` must be one or more increasing epochs below",
        ),
        (
            {
                "learning_rate_decay": "epochs",
                "epochs": 2,
                "reduce_after_epochs": (2,),
            },
            r"below epochs \(2\). Received: reduce_after_epochs=\(2,\)",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def make(**changes):
    config = dataclasses.replace(SMALL, **changes)
    model = build_model.make_model(config, FeatureSpec.criteo([10] * 26, 4))
    build_model.compile_model(model, config, num_steps=12)
    return model


def test_options_reach_the_model():
    model = make(
        interaction="cross",
        cross_layers=2,
        cross_rank=3,
        dropout=0.2,
        bottom_dropout=0.1,
        batch_normalization="after_activation",
        adagrad_epsilon=1e-20,
    )
    assert (model.interaction.num_layers, model.interaction.rank) == (2, 3)
    assert (model.bottom_mlp.dropout, model.top_mlp.dropout) == (0.1, 0.2)
    for mlp in (model.bottom_mlp, model.top_mlp):
        assert mlp.batch_normalization == "after_activation"
    assert model.optimizer.epsilon == model.embedding_optimizer.epsilon == 1e-20
    model = make(dropout=0.2)
    assert model.bottom_mlp.dropout == model.top_mlp.dropout == 0.2
    assert not model.bottom_mlp.normalizations


@pytest.mark.parametrize(
    "changes, expected",
    [
        (
            {
                "learning_rate_decay": "epochs",
                "epochs": 4,  # of three steps
                "reduce_after_epochs": (1, 3),
            },
            [1.0] * 3 + [0.1] * 6 + [0.01] * 3,
        ),
        (
            {
                "learning_rate_decay": "square",
                "warmup_steps": 4,
                "decay_start_step": 6,
                "decay_steps": 4,
            },
            [0.25, 0.5, 0.75, 1, 1, 1, 9 / 16, 4 / 16, 1 / 16, 0, 0, 0],
        ),
    ],
    ids=["epochs", "square"],
)
def test_learning_rates_fall_as_said(changes, expected):
    model = make(learning_rate=0.5, embedding_learning_rate=0.25, **changes)
    dense, tables = [], []
    for step in range(12):
        model.optimizer.iterations.assign(step)
        dense.append(float(model.optimizer.learning_rate))
        rate = model.embedding_optimizer.learning_rate
        tables.append(float(rate(step)))
    assert isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    np.testing.assert_allclose(dense, 0.5 * np.array(expected), atol=1e-6)
    np.testing.assert_allclose(tables, 0.25 * np.array(expected), atol=1e-6)


def test_l2_chooses_an_optimizer_of_whole_tables():
    tables = make(optimizer="adam", l2=1e-4).embedding_optimizer
    assert isinstance(tables, optimizers.DenseAdam) and tables.l2 == 1e-4
    options = {"initial_accumulator_value": 0.5, "adagrad_epsilon": 0.25}
    model = make(l2=1e-4, learning_rate=0.3, embedding_learning_rate=0.2, **options)
    expected = optimizers.DenseAdagrad(0.2, 0.5, 0.25, l2=1e-4).get_config()
    assert model.embedding_optimizer.get_config() == pytest.approx(expected)
    tables = make(optimizer="sgd", l2=1e-4, learning_rate=0.3).embedding_optimizer
    assert isinstance(tables, optimizers.SparseSGD) and tables.learning_rate is None
    assert tables.l2 == 1e-4
    assert not make(optimizer="adam").embedding_optimizer.moves_other_rows


@pytest.mark.parametrize("l2", [0.0, 1e-4])
def test_the_epsilon_of_adam(l2):
    model = make(optimizer="adam", l2=l2, adam_epsilon=1e-8)
    of_tables = model.embedding_optimizer.get_config()
    assert model.optimizer.epsilon == of_tables["epsilon"] == 1e-8
    assert of_tables["corrects_epsilon"] == bool(l2)
    config = make(optimizer="adam", l2=l2).embedding_optimizer.get_config()
    assert config["epsilon"] == 1e-7


def test_l2_is_refused_for_large_tables():
    config = dataclasses.replace(SMALL, l2=1e-4)
    spec = FeatureSpec.criteo([10**6] * 26, 4)
    model = types.SimpleNamespace(spec=spec)
    message = (
        "at most 64,000,000 values. They have 104,000,000. Use a larger `min_count`"
    )
    with pytest.raises(ValueError, match=message):
        build_model.compile_model(model, config, num_steps=12)


def test_options_of_the_command(tmp_path, capsys):
    """Each can be given to `tf-dlrm train`, and starts from the named run."""
    (tmp_path / "a.tsv").write_text("0" + 39 * "\t" + "\n")
    command = ["train", "--train", f"{tmp_path}/a.tsv", "--out", "o", "--dry-run"]
    changes = "--run criteo_x1_dlrm --epochs 5 --adam-epsilon 1e-3"
    changes += " --learning-rate-decay epochs --reduce-after-epochs 2 4"
    assert cli.main([*command, *changes.split()]) == 0
    printed = capsys.readouterr().out
    assert '"batch_normalization": "before_activation"' in printed
    assert '"bottom_dropout": 0.0' in printed and '"epochs": 5' in printed
    changes = "--interaction cross --cross-layers 2 --cross-rank 8"
    assert cli.main([*command, *changes.split()]) == 0
    assert '"cross_rank": 8' in capsys.readouterr().out
    assert cli.main([*command, "--optimizer", "adam", "--l2", "0.25"]) == 0
    assert '"l2": 0.25' in capsys.readouterr().out
    changes = "--run paddlerec --hash-buckets 99"
    assert cli.main([*command, *changes.split()]) == 0
    assert "hashing into 99 rows of one table" in capsys.readouterr().out
    assert cli.main([*command, *changes.split(), "--no-shared-table"]) == 0
    assert "hashing into 99 rows per table" in capsys.readouterr().out


def test_train_starts_from_the_config_in_a_file(tmp_path, capsys):
    """Options that are typed change it; another optimizer brings its own rates."""
    (tmp_path / "a.tsv").write_text("0" + 39 * "\t" + "\n")
    config = dataclasses.replace(SMALL, learning_rate=0.125, min_count=3, epochs=7)
    content = {"config": json.loads(config.to_json()), "trial": 3}
    (tmp_path / "best.json").write_text(json.dumps(content))
    command = ["train", "--train", f"{tmp_path}/a.tsv", "--out", "o", "--dry-run"]
    command += ["--config", f"{tmp_path}/best.json"]

    def read(*options):
        assert cli.main([*command, *options]) == 0
        printed = capsys.readouterr().out
        return RunConfig.from_json(printed[printed.index("- config: ") + 10 :])

    assert read() == config
    assert read("--epochs", "2") == dataclasses.replace(config, epochs=2)
    assert read("--optimizer", "sgd") == config.with_optimizer("sgd")
    assert read("--vocabulary", "v.tsv") == config  # which has a min_count of its own
    assert cli.main([*command, "--run", "demo"]) == 2
    assert "--config and --run both set the defaults" in capsys.readouterr().err
