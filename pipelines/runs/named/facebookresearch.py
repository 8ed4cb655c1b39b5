"""The runs for which facebookresearch/dlrm has scripts."""

from pipelines.runs.config import RunConfig
from pipelines.runs.named.description import NamedRun, Published

_REPOSITORY = "github.com/facebookresearch/dlrm"


def dlrm_kaggle() -> RunConfig:
    """The Criteo Kaggle run of facebookresearch/dlrm (`dlrm_s_criteo_kaggle.sh`).

    One epoch of SGD with learning rate 0.1 and batches of 128; every value has a row.
    """
    return RunConfig(
        min_count=1, optimizer="sgd", learning_rate=0.1, batch_size=128, epochs=1
    )


def dlrm_terabyte() -> RunConfig:
    """The Criteo Terabyte run of facebookresearch/dlrm (`dlrm_s_criteo_terabyte.sh`).

    As for the figure in its README, a share of 0.875 of the rows without a click is
    left out (`--data-sub-sample-rate=0.875`).
    """
    return RunConfig(
        embedding_dim=64,
        bottom_mlp_dims=(512, 256, 64),
        top_mlp_dims=(512, 512, 256, 1),
        min_count=1,
        max_vocabulary_size=10_000_000,
        optimizer="sgd",
        learning_rate=0.1,
        batch_size=2048,
        epochs=1,
        negative_sampling_rate=0.125,
    )


RUNS = (
    NamedRun(
        name="dlrm_kaggle",
        summary="facebookresearch/dlrm on Criteo Kaggle, and the paper's DLRM.",
        data="train.txt of Criteo Kaggle (45.8M rows, 7 days): days 1 to 6 to train, "
        "day 7 in halves for validation and test",
        command=(
            "tf-dlrm prepare --input train.txt --valid-share 0.07 --test-share 0.07 "
            "--min-count 1 --out data/kaggle",
            "tf-dlrm train --run dlrm_kaggle --train data/kaggle --out runs/kaggle",
        ),
        make=dlrm_kaggle,
        settings=(f"{_REPOSITORY}, bench/dlrm_s_criteo_kaggle.sh at bd1a716, 07e421d",),
        published=(
            Published(
                "best test accuracy about 79%, measured every 1,024 steps; "
                "78.1% after the epoch; no AUC",
                f"figure in the README, read by a user in {_REPOSITORY}/issues/90",
            ),
        ),
        differences=(
            "The original splits off exactly the rows of day 7; shares approximate it.",
        ),
    ),
    NamedRun(
        name="dlrm_terabyte",
        summary="facebookresearch/dlrm on Criteo Terabyte.",
        data="day_0 .. day_23 of Criteo Terabyte (4.4G rows): 23 days to train, the "
        "last in halves for validation and test",
        command=(
            "tf-dlrm prepare --input 'day_?' 'day_1?' day_20 day_21 day_22 --valid "
            "day_23 --min-count 1 --max-vocabulary-size 10000000 --out data/terabyte",
            "tf-dlrm train --run dlrm_terabyte --train data/terabyte "
            "--out runs/terabyte",
        ),
        make=dlrm_terabyte,
        settings=(
            f"{_REPOSITORY}, bench/dlrm_s_criteo_terabyte.sh at bd1a716 (2,048 rows "
            "per batch, at most 10M rows per table; up to 181ce8b: 128 and 20M)",
            "the share of rows without a click: README at bd8d4a4",
        ),
        published=(
            Published(
                "curves of loss and accuracy, without numbers",
                f"figure in {_REPOSITORY}'s README",
            ),
        ),
        differences=(
            "The original takes ids modulo 10M; here the rarest values share row 0.",
            "The original samples the negatives of all days, including the test, and "
            "corrects nothing; here only training rows are sampled, and predictions "
            "are corrected.",
        ),
    ),
)
