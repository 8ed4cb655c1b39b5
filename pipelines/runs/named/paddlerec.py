"""PaddleRec's DLRM: one hashed table for all features."""

from pipelines.runs.config import RunConfig
from pipelines.runs.named.description import NamedRun, Published


def paddlerec() -> RunConfig:
    """PaddleRec's DLRM on Criteo Kaggle: all features share one hashed table."""
    return RunConfig(
        batch_normalization="after_activation",
        initial_embedding_limit=1.0,
        hash_buckets=1_000_001,
        shared_table=True,
        optimizer="sgd",
        learning_rate=0.1,
        batch_size=2048,
        epochs=2,
    )


RUNS = (
    NamedRun(
        name="paddlerec",
        summary="PaddleRec's DLRM on Criteo Kaggle: one hashed table for all features.",
        data="PaddleRec's files of Criteo Kaggle: slot_train_data_full (44.0M rows), "
        "slot_test_data_full (1.84M); here train.txt, split so",
        command=(
            "head -n 44000000 train.txt > train.tsv; tail -n +44000001 train.txt > "
            "test.tsv",
            "tf-dlrm train --run paddlerec --train train.tsv --valid test.tsv "
            "--out runs/paddlerec",
        ),
        make=paddlerec,
        settings=(
            "github.com/PaddlePaddle/PaddleRec, models/rank/dlrm: config_bigdata.yaml "
            "at 11caffd, net.py at 257285d",
            "2 epochs, and initial embeddings in +-1: its author's "
            "github.com/Andy1314Chen/DLRM-Paddle, README.md at 01d79c5, net.py at "
            "58ab458 (PaddleRec's own has 1 epoch, and a truncated normal with "
            "standard deviation 1)",
        ),
        published=(
            Published(
                "AUC 0.804146 on the full test slots",
                "github.com/Andy1314Chen/DLRM-Paddle, README.md at 01d79c5",
            ),
            Published(
                "AUC 0.79+ with 1 epoch",
                "github.com/PaddlePaddle/PaddleRec, models/rank/dlrm/README.md at "
                "f155200",
            ),
        ),
        differences=(
            "The original ends in two logits, with ReLU and batch normalization on "
            "them and on the bottom vector; here it ends in one logit, and only hidden "
            "layers are normalized.",
            "The original scales integers by fixed ranges; here they are log(x + 1).",
            "The rows of its test files are not documented; the last 1.84M are a "
            "guess.",
        ),
    ),
)
