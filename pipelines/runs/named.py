"""Named runs: functions that each return the one config of a training run."""

from pipelines.runs.config import RunConfig


def demo() -> RunConfig:
    """A million planted rows in two minutes, within 0.005 AUC of the best possible.

    Adagrad starts its accumulators at almost 0: at Keras' 0.1 the gradients of rows
    of a mean loss would not be felt in a single pass.
    """
    return RunConfig(
        bottom_mlp_dims=(128, 64, 16),
        top_mlp_dims=(128, 64, 1),
        learning_rate=0.02,
        embedding_learning_rate=0.1,
        initial_accumulator_value=1e-6,
        learning_rate_decay="linear",
        batch_size=1024,
    )


def dlrm_kaggle() -> RunConfig:
    """The Criteo Kaggle run of facebookresearch/dlrm (`dlrm_s_criteo_kaggle.sh`).

    One epoch with SGD at 0.1 and batches of 128; every value has a row.
    """
    return RunConfig(min_count=1, optimizer="sgd", learning_rate=0.1, batch_size=128)


def criteo_sample() -> RunConfig:
    """Eight thousand real Criteo rows: few rows a table, small start, three passes.

    Chosen on inner splits of the first 8,000 rows of the Kaggle set (train on 4,800
    or 6,400, judge the next 1,600); see benchmarks/criteo_sample.py. With so few rows
    plain concatenation learns more than dot products.
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


RUNS = {run.__name__: run for run in (demo, dlrm_kaggle, criteo_sample)}


def get(name: str) -> RunConfig:
    """Returns the config of a named run.

    Raises:
        ValueError: If there is no such run.
    """
    if name not in RUNS:
        raise ValueError(f"There is no run '{name}'. Runs: {', '.join(RUNS)}")
    return RUNS[name]()
