"""The runs of this project."""

import dataclasses

from pipelines.runs.config import RunConfig
from pipelines.runs.named.description import NamedRun


def demo() -> RunConfig:
    """A million planted rows in two minutes, within 0.005 AUC of the best possible.

    Adagrad's accumulators start near 0: with Keras' default of 0.1, the small gradients
    that rows get from a mean loss would have no effect in a single pass.
    """
    return RunConfig(
        bottom_mlp_dims=(128, 64, 16),
        top_mlp_dims=(128, 64, 1),
        learning_rate=0.02,
        embedding_learning_rate=0.1,
        initial_accumulator_value=1e-6,
        learning_rate_decay="linear",
        batch_size=1024,
        epochs=1,
    )


def default() -> RunConfig:
    """Return the defaults of `tf-dlrm train`.

    They are the demo's model, trained with values that suit the optimizer and the
    number of rows.
    """
    return dataclasses.replace(
        demo(),
        interaction=None,
        batch_size=None,
        epochs=None,
        learning_rate=None,
        embedding_learning_rate=None,
    )


def criteo_sample() -> RunConfig:
    """Eight thousand real Criteo rows: few rows per table, three passes.

    The options were chosen on inner splits of the first 8,000 rows of the Kaggle set
    (train on 4,800 or 6,400 rows, validate on the next 1,600); see
    benchmarks/criteo_sample.py. With so few rows, concatenation learns more than dot
    products.
    """
    return RunConfig(
        bottom_mlp_dims=(64, 32, 16),
        top_mlp_dims=(64, 1),
        interaction="cat",
        initial_embedding_limit=0.001,
        min_count=20,
        optimizer="adam",
        learning_rate=0.002,
        embedding_learning_rate=0.004,
        learning_rate_decay="linear",
        batch_size=128,
        epochs=3,
    )


RUNS = (
    NamedRun(
        name="demo",
        summary="A million planted rows, close to the best possible AUC.",
        data="generated click logs whose best possible AUC is known",
        command=("python benchmarks/planted.py --rows 1000000",),
        make=demo,
    ),
    NamedRun(
        name="criteo_sample",
        summary="The first 8,000 rows of Criteo Kaggle, with settings for so few.",
        data="the first rows of Criteo Kaggle: 8,000 to train, 2,000 to test",
        command=("python benchmarks/criteo_sample.py criteo_kaggle_sample.tsv.gz",),
        make=criteo_sample,
    ),
)
