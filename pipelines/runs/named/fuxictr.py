"""The DLRMs of the BARS benchmark, by FuxiCTR, and one for its split Criteo_x4."""

from typing import Any

from pipelines.runs.config import RunConfig
from pipelines.runs.named.description import NamedRun, Published

_BARS = "github.com/reczoo/BARS"
_DLRM = f"{_BARS}, ranking/ctr/DLRM"
# Uniform in +-limit with the standard deviation of the original's normal values, 1e-4.
_LIMIT = 1.732e-4


def _recipe(**options: Any) -> RunConfig:
    """Return the recipe of BARS, with the options in which its runs differ.

    Dense Adam with a penalty on whole tables (`l2`), a tenth of the rate at each epoch
    without gain, the end at the second in a row, and the model of the best epoch.
    """
    recipe: dict[str, Any] = {
        "embedding_dim": 10,
        "top_mlp_dims": (400, 400, 400, 1),
        "batch_normalization": "before_activation",
        "initial_embedding_limit": _LIMIT,
        "min_count": 1,
        "optimizer": "adam",
        "adam_epsilon": 1e-8,
        "learning_rate": 0.001,
        "learning_rate_decay": "plateau",
        "batch_size": 4096,
        "epochs": 100,
        "monitor": "auc",
        "saved_model": "best",
        "patience": 2,
    }
    return RunConfig(**{**recipe, **options})


def criteo_x1_dlrm() -> RunConfig:
    """BARS' DLRM on Criteo_x1: wide MLPs with batch normalization.

    In its log the rate falls to a tenth after epoch 12, and epoch 15 is the best.
    """
    return _recipe(
        bottom_mlp_dims=(400, 400, 400, 10),
        dropout=0.2,
        bottom_dropout=0.0,
        l2=1e-5,
    )


def criteo_x4_dlrm() -> RunConfig:
    """A DLRM on Criteo_x4, whose 13 numbers are categories: 39 tables, no bottom MLP.

    The data and the recipe are those of BARS' other models on Criteo_x4; the top MLP is
    that of its PNN, which also reads the dot products of all pairs.
    """
    return _recipe(
        embedding_dim=16,
        top_mlp_dims=(1000, 1000, 1),
        dropout=0.2,
        batch_normalization="none",
        min_count=10,
        l2=1e-5,
        batch_size=10_000,
    )


def avazu_dlrm() -> RunConfig:
    """BARS' DLRM on Avazu_x1: categories only."""
    return _recipe(dropout=0.3, l2=0.01)


def frappe_dlrm() -> RunConfig:
    """BARS' DLRM on Frappe_x1: the embeddings of ten categories, concatenated."""
    return _recipe(interaction="cat", dropout=0.4, l2=0.1)


def movielens_dlrm() -> RunConfig:
    """BARS' DLRM on MovielensLatest_x1: user, film and tag, concatenated."""
    return _recipe(interaction="cat", dropout=0.2, l2=0.01)


_TRAINER = (
    "penalty, initial values, decay of the rate and end of the training: "
    "github.com/reczoo/FuxiCTR, fuxictr/pytorch/models/base_model.py at 31ebe17"
)
_DIFFERENCES = (
    "The original limits the norm of all gradients together to 10 and starts with "
    "biases of 0; here there is no limit, and biases start as in the paper.",
    "The MLPs have Keras' Adam, which adds epsilon before the bias correction; the "
    "tables have torch's.",
)


def _commands(name, schema):
    return (
        f"tf-dlrm train --run {name} --schema {schema} --train train.csv "
        f"--valid valid.csv --out runs/{schema}",
        f"tf-dlrm evaluate --model runs/{schema} --input test.csv",
    )


RUNS = (
    NamedRun(
        name="criteo_x1_dlrm",
        summary="FuxiCTR's DLRM in the BARS benchmark, on Criteo_x1.",
        data="Criteo_x1 of BARS: train.csv (33.0M rows), valid.csv (8.25M), test.csv "
        "(4.59M), with scaled numbers",
        command=_commands("criteo_x1_dlrm", "criteo_x1"),
        make=criteo_x1_dlrm,
        settings=(
            f"{_DLRM}/DLRM_criteo_x1/DLRM_criteo_x1_001_4d897285.log at 1ffaf73",
            "the order of layers in an MLP: github.com/reczoo/FuxiCTR v1.2.1, "
            "fuxictr/pytorch/models/DLRM.py; the 21,664,241 parameters in the log are "
            "2,086,303 rows x 10 and these MLPs",
            _TRAINER,
        ),
        published=(
            Published(
                "AUC 0.813804, log loss 0.438155 on the test rows",
                f"{_DLRM}/DLRM_criteo_x1/README.md at bc97da0",
            ),
        ),
        differences=_DIFFERENCES,
    ),
    NamedRun(
        name="criteo_x4_dlrm",
        summary="A DLRM with the recipe of the BARS benchmark, on Criteo_x4.",
        data="Criteo_x4 of BARS: train.csv (36.7M rows), valid.csv (4.58M), test.csv "
        "(4.58M); its setting 001, with numbers as categories",
        command=_commands("criteo_x4_dlrm", "criteo_x4_001"),
        make=criteo_x4_dlrm,
        settings=(
            "categories, width, min_count, optimizer, penalty, batch size, monitor: "
            f"{_BARS}, ranking/ctr/DCNv2/DCNv2_criteo_x4_001/"
            "DCNv2_criteo_x4_001_005_c2376d55.log at bc97da0",
            f"top MLP and dropout: {_BARS}, ranking/ctr/PNN/IPNN_criteo_x4_001/"
            "README.md at bc97da0",
            _TRAINER,
        ),
        published=(
            Published(
                "no DLRM; AUC 0.814212, log loss 0.437840 of the PNN whose top MLP "
                "this is",
                f"{_BARS}, ranking/ctr/PNN/IPNN_criteo_x4_001/README.md at bc97da0",
            ),
        ),
        differences=(
            "PNN's MLP reads the embeddings and their dot products, that of a DLRM "
            "without dense features the dot products only. PNN monitored AUC - log "
            "loss.",
            "The original puts 1 into a bucket with 3 and 4, and 2 into one with 5, "
            "and takes missing numbers as 0; here whole numbers up to 2 have buckets "
            "of their own, and missing numbers share a row with rare ones.",
            *_DIFFERENCES,
        ),
    ),
    NamedRun(
        name="avazu_dlrm",
        summary="FuxiCTR's DLRM in the BARS benchmark, on Avazu_x1.",
        data="Avazu_x1 of BARS: train.csv (28.3M rows), valid.csv (4.04M), test.csv "
        "(8.09M)",
        command=_commands("avazu_dlrm", "avazu_x1"),
        make=avazu_dlrm,
        settings=(
            f"{_DLRM}/DLRM_avazu_x1/README.md at 1ffaf73; the 13,402,391 parameters in "
            "its log are 1,298,599 rows x 10 and this MLP",
            _TRAINER,
        ),
        published=(
            Published(
                "AUC 0.763934, log loss 0.366904 on the test rows",
                f"{_DLRM}/DLRM_avazu_x1/README.md at 1ffaf73",
            ),
        ),
        differences=_DIFFERENCES,
    ),
    NamedRun(
        name="frappe_dlrm",
        summary="FuxiCTR's DLRM in the BARS benchmark, on Frappe_x1.",
        data="Frappe_x1 of BARS: train.csv (202,027 rows), valid.csv (57,722), "
        "test.csv (28,860)",
        command=_commands("frappe_dlrm", "frappe"),
        make=frappe_dlrm,
        settings=(
            f"{_DLRM}/DLRM_frappe_x1/README.md at 1ffaf73; the 417,891 parameters in "
            "its log are 5,389 rows x 10 and this MLP",
            _TRAINER,
        ),
        published=(
            Published(
                "AUC 0.983995, log loss 0.144441 on the test rows",
                f"{_DLRM}/DLRM_frappe_x1/README.md at 1ffaf73",
            ),
        ),
        differences=_DIFFERENCES,
    ),
    NamedRun(
        name="movielens_dlrm",
        summary="FuxiCTR's DLRM in the BARS benchmark, on MovielensLatest_x1.",
        data="MovielensLatest_x1 of BARS: train.csv (1.40M rows), valid.csv (401,372), "
        "test.csv (200,686)",
        command=_commands("movielens_dlrm", "movielens"),
        make=movielens_dlrm,
        settings=(
            f"{_DLRM}/DLRM_movielenslatest_x1/README.md at bc97da0; the 1,238,391 "
            "parameters in its log are 90,239 rows x 10 and this MLP",
            _TRAINER,
        ),
        published=(
            Published(
                "AUC 0.969071, log loss 0.214993 on the test rows",
                f"{_DLRM}/DLRM_movielenslatest_x1/README.md at bc97da0",
            ),
        ),
        differences=_DIFFERENCES,
    ),
)
