"""The DLRM of the BARS benchmark, by FuxiCTR."""

from pipelines.runs.config import RunConfig
from pipelines.runs.named.description import Measured, NamedRun, Published


def fuxictr_criteo_x1() -> RunConfig:
    """BARS' DLRM on Criteo_x1: wide MLPs with batch normalization, Adam.

    In its log the learning rate falls to a tenth after epoch 12, and epoch 15 is the
    best. Initial embeddings have the standard deviation of its normal distribution,
    1e-4.
    """
    return RunConfig(
        embedding_dim=10,
        bottom_mlp_dims=(400, 400, 400, 10),
        top_mlp_dims=(400, 400, 400, 1),
        dropout=0.2,
        bottom_dropout=0.0,
        batch_normalization="before_activation",
        initial_embedding_limit=1.732e-4,
        min_count=1,
        optimizer="adam",
        learning_rate=0.001,
        learning_rate_decay="epochs",
        reduce_after_epochs=(12,),
        batch_size=4096,
        epochs=15,
    )


RUNS = (
    NamedRun(
        name="fuxictr_criteo_x1",
        summary="FuxiCTR's DLRM in the BARS benchmark, on Criteo_x1.",
        data="Criteo_x1 of BARS: 33.0M rows to train, 8.25M to validate, 4.59M to "
        "test, as tab-separated lines with a label",
        command=(
            "tf-dlrm train --run fuxictr_criteo_x1 --train train.tsv --valid valid.tsv "
            "--out runs/criteo_x1",
            "tf-dlrm evaluate --model runs/criteo_x1 --input test.tsv",
        ),
        make=fuxictr_criteo_x1,
        settings=(
            "github.com/reczoo/BARS, ranking/ctr/DLRM/DLRM_criteo_x1/"
            "DLRM_criteo_x1_001_4d897285.log at 1ffaf73",
            "the order of layers in an MLP: github.com/reczoo/FuxiCTR v1.2.1, "
            "fuxictr/pytorch/models/DLRM.py; the 21,664,241 parameters in the log are "
            "2,086,303 rows x 10 and these MLPs",
        ),
        published=(
            Published(
                "AUC 0.813804, log loss 0.438155 on the test rows",
                "github.com/reczoo/BARS, ranking/ctr/DLRM/DLRM_criteo_x1/README.md at "
                "bc97da0",
            ),
        ),
        differences=(
            "The original has an L2 penalty of 1e-5 on whole tables, which a "
            "row-sparse step cannot compute; here there is none.",
            "The original's Adam also updates rows that are not in the batch; here it "
            "is lazy.",
            "Numbers in Criteo_x1 are not scaled by log(x + 1).",
        ),
        measured=(
            Measured(
                "a million planted rows, 200,000 to test, one pass at one rate",
                "AUC 0.7458, log loss 0.4880 (best possible 0.8032, 0.4430)",
                "2026-11-21",
            ),
            Measured(
                "8,000 real rows, 2,000 to test",
                "AUC 0.6942, log loss 0.4980",
                "2026-11-21",
            ),
        ),
    ),
)
