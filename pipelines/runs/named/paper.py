"""The experiments of the paper: Naumov et al. 2019, arXiv 1906.00091."""

from pipelines.runs.config import RunConfig
from pipelines.runs.named.description import NamedRun, Published

_PAPER = "arXiv 1906.00091"


def paper_dcn() -> RunConfig:
    """A DCN of the size of `dlrm_kaggle`: six cross layers, then 512 and 256.

    With rank 23 it has about as many parameters outside the tables as the DLRM (475,329
    and 475,985).
    """
    return RunConfig(
        bottom_mlp_dims=(16,),
        interaction="cross",
        cross_layers=6,
        cross_rank=23,
        min_count=1,
        optimizer="sgd",
        learning_rate=0.1,
        batch_size=128,
        epochs=1,
    )


RUNS = (
    NamedRun(
        name="paper_dcn",
        summary="The Deep & Cross network that the paper compares DLRM with.",
        data="same as dlrm_kaggle",
        command=(
            "tf-dlrm train --run paper_dcn --train data/kaggle --out runs/dcn",
            "tf-dlrm train --run paper_dcn --optimizer adagrad --learning-rate 0.01 "
            "--initial-accumulator-value 0 --adagrad-epsilon 1e-20 "
            "--train data/kaggle --out runs/dcn_adagrad",
        ),
        make=paper_dcn,
        settings=(
            f"{_PAPER}, section 5.1: six cross layers, a deep network of 512 and 256",
        ),
        differences=(
            "The original is DCN with vectors, cross and deep network in parallel; "
            "here it is DCN-v2 with matrices of rank 23 and the deep network on top.",
            "A layer of width 16, the width of the tables, transforms the dense "
            "features.",
        ),
    ),
    NamedRun(
        name="paper_comparison",
        summary="DLRM against DCN of equal size, with SGD and Adagrad: the curves.",
        data="millions of planted rows, generated; with a file of Criteo Kaggle "
        "rows, these too",
        command=(
            "python benchmarks/comparison.py --rows 3000000 "
            "--sample criteo_kaggle_sample.tsv.gz",
        ),
        settings=(
            f"{_PAPER}, section 5.1 and figure 5: SGD and Adagrad, no regularization, "
            "no tuning. It gives no learning rates; SGD at 0.1 comes from the script, "
            "Adagrad at 0.01 is PyTorch's default",
        ),
        published=(
            Published(
                "on Criteo Kaggle, in an epoch, DLRM has the slightly higher training "
                "and validation accuracy; curves, no numbers",
                f"{_PAPER}, section 5.1 and figure 5",
            ),
        ),
    ),
    NamedRun(
        name="paper_single_socket",
        summary="The paper's single-socket run: 8 tables of 1M x 64, long bags.",
        data="1,000 batches of 2,048 random rows, generated",
        command=(
            "tf-dlrm benchmark --workload paper_single_socket --optimizer sgd "
            "--steps 1000 --rounds 1 --profile --out runs/single_socket",
        ),
        settings=(
            f"{_PAPER}, section 5.2 and its footnote: --arch-mlp-bot=512-512-64 "
            "--arch-mlp-top=1024-1024-1024-1 --num-indices-per-lookup=100, which are "
            "bags of 1 to 100 ids. It does not name the optimizer",
        ),
        published=(
            Published(
                "around 256 s on the CPU (Caffe2; Big Basin has two Xeon 6138 of 20 "
                "cores), 62 s on one V100",
                f"{_PAPER}, section 5.2",
            ),
        ),
    ),
)
