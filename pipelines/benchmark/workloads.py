"""Workloads: shapes of models, and random batches for them, without TensorFlow."""

import dataclasses

import numpy as np

from pipelines.runtime import UserError

KAGGLE_TABLE_SIZES = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
SCALING_ROWS = (10_000, 10_000_000, 100_000_000)
_POOL_SAMPLES = {True: 65_536, False: 16_384}  # one-hot, bags


@dataclasses.dataclass(frozen=True)
class Workload:
    """The shape of a model and of its batches.

    Args:
        name: Name of the workload.
        num_dense: Number of dense features.
        table_sizes: Number of rows of each table; each table has one feature.
        embedding_dim: Width of a row.
        bottom_mlp_dims: Widths of the bottom MLP's layers; the last is
            `embedding_dim`.
        top_mlp_dims: Widths of the top MLP's layers; the last is 1.
        max_hotness: Maximum number of ids in a bag; lengths are uniform from 1 to this
            number.
        description: One-line description.

    Raises:
        ValueError: If a number is not positive or widths do not match.
    """

    name: str
    num_dense: int
    table_sizes: tuple[int, ...]
    embedding_dim: int
    bottom_mlp_dims: tuple[int, ...]
    top_mlp_dims: tuple[int, ...]
    max_hotness: int = 1
    description: str = ""

    def __post_init__(self):
        for name in ("table_sizes", "bottom_mlp_dims", "top_mlp_dims"):
            values = tuple(int(value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
            if not values or min(values) < 1:
                raise UserError(
                    f"`{name}` must be positive integers. Received: {name}={values}"
                )
        for name in ("num_dense", "embedding_dim", "max_hotness"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"`{name}` must be positive. Received: {getattr(self, name)}"
                )
        if self.bottom_mlp_dims[-1] != self.embedding_dim:
            raise UserError(
                "`bottom_mlp_dims` must end in `embedding_dim`. Received: "
                f"bottom_mlp_dims={self.bottom_mlp_dims}, "
                f"embedding_dim={self.embedding_dim}"
            )

    @property
    def is_one_hot(self) -> bool:
        """True if each feature has one id in each row."""
        return self.max_hotness == 1

    @property
    def table_bytes(self) -> int:
        """Bytes of all tables in float32."""
        return 4 * self.embedding_dim * sum(self.table_sizes)

    def state_bytes(self, optimizer: str) -> int:
        """Return the bytes of optimizer state that the tables need."""
        return 4 * state_width(optimizer, self.embedding_dim) * sum(self.table_sizes)


def state_width(optimizer: str, embedding_dim: int) -> int:
    """Return the number of floats of optimizer state for each row."""
    widths = {
        "sgd": 0,
        "adagrad": embedding_dim,
        "rowwise_adagrad": 1,
        "adam": 2 * embedding_dim,
        "ftrl": 2 * embedding_dim,
    }
    return widths[optimizer]


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "kaggle",
            num_dense=13,
            table_sizes=KAGGLE_TABLE_SIZES,
            embedding_dim=16,
            bottom_mlp_dims=(512, 256, 64, 16),
            top_mlp_dims=(512, 256, 1),
            description="Criteo Kaggle: 26 tables, 33.8M rows in total x 16, one-hot",
        ),
        Workload(
            "paper_single_socket",
            num_dense=512,
            table_sizes=(1_000_000,) * 8,
            embedding_dim=64,
            bottom_mlp_dims=(512, 64),
            top_mlp_dims=(1024, 1024, 1024, 1),
            max_hotness=100,
            description="the paper's single-socket run: 8 x 1M x 64, bags of 1 to 100",
        ),
    )
}


def scaling_workload(num_rows: int) -> Workload:
    """Return a workload of one table and tiny MLPs, mostly lookup and update."""
    return Workload(
        "scaling",
        num_dense=1,
        table_sizes=(num_rows,),
        embedding_dim=16,
        bottom_mlp_dims=(16,),
        top_mlp_dims=(1,),
        description="one table, to measure the cost of a step as its rows grow",
    )


def make_pool(workload: Workload, batch_size: int, seed: int = 0) -> list[tuple]:
    """Return a pool of random batches, to be used repeatedly.

    `benchmarks/peers/common.py` has the same function, for environments without this
    package. Both must return the same numbers; a test compares them.

    Args:
        workload: The workload of the batches.
        batch_size: Rows in a batch.
        seed: Seed of all batches.

    Returns:
        Batches `(dense, label, bags)`: float32 `(B, num_dense)` in [0, 1), float32
        `(B, 1)` of 0 and 1, and for each table `(ids, lengths)`: int32 flat ids and
        int32 `(B,)` lengths of the bags.
    """
    generator = np.random.default_rng(seed)
    samples = _POOL_SAMPLES[workload.is_one_hot]
    pool = []
    for _ in range(max(8, min(512, samples // batch_size))):
        dense = generator.random((batch_size, workload.num_dense), dtype=np.float32)
        label = generator.integers(0, 2, (batch_size, 1)).astype(np.float32)
        bags = []
        for rows in workload.table_sizes:
            lengths = np.ones(batch_size, np.int32)
            if not workload.is_one_hot:
                lengths = generator.integers(1, workload.max_hotness + 1, batch_size)
                lengths = lengths.astype(np.int32)
            ids = generator.integers(0, rows, int(lengths.sum())).astype(np.int32)
            bags.append((ids, lengths))
        pool.append((dense, label, bags))
    return pool
