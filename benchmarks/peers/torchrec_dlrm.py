"""torchrec's DLRM with FBGEMM's fused tables: rows are updated in the backward."""

import dataclasses
import importlib.metadata
import os
import time

import torch
from common import LEARNING_RATE, make_pool, read_job, report, time_calls
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

TABLE_OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rowwise_adagrad": RowWiseAdagrad,
}
DENSE_OPTIMIZERS = {"sgd": torch.optim.SGD}  # Adagrad for the others


@dataclasses.dataclass
class Batch:
    """The batch that `DLRMTrain` takes."""

    dense_features: torch.Tensor
    sparse_features: KeyedJaggedTensor
    labels: torch.Tensor


def make_model(workload, optimizer, keys):
    """torchrec's own DLRM of a workload."""
    device = torch.device("cpu")
    tables = [
        EmbeddingBagConfig(
            name=f"table_{key}",
            embedding_dim=workload["embedding_dim"],
            num_embeddings=rows,
            feature_names=[key],
        )
        for key, rows in zip(keys, workload["table_sizes"])
    ]
    collection = FusedEmbeddingBagCollection(
        tables=tables,
        optimizer_type=TABLE_OPTIMIZERS[optimizer],
        optimizer_kwargs={"lr": LEARNING_RATE},
        device=device,
    )
    return DLRM(
        collection,
        dense_in_features=workload["num_dense"],
        dense_arch_layer_sizes=workload["bottom_mlp_dims"],
        over_arch_layer_sizes=workload["top_mlp_dims"],
        dense_device=device,
    )


def to_tensors(batch):
    """NumPy batch -> dense, label, flat ids, flat lengths."""
    dense, label, bags = batch
    ids = torch.cat([torch.from_numpy(ids) for ids, _ in bags]).long()
    lengths = torch.cat([torch.from_numpy(lengths) for _, lengths in bags])
    return torch.from_numpy(dense), torch.from_numpy(label[:, 0]), ids, lengths


def main():
    """Measures the job that the argument holds."""
    job = read_job()
    torch.manual_seed(job["seed"])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    keys = [f"c{i}" for i in range(len(job["workload"]["table_sizes"]))]
    optimizer_name = job["optimizer"] if job["mode"] == "train" else "sgd"
    start = time.perf_counter()
    model = make_model(job["workload"], optimizer_name, keys)
    seconds_to_build = time.perf_counter() - start
    pool = make_pool(job["workload"], job["batch_size"], job["seed"])
    pool = [to_tensors(batch) for batch in pool]

    def jagged(ids, lengths):
        # New each time: the object keeps its offsets after the first use.
        return KeyedJaggedTensor(keys, ids, lengths=lengths)

    if job["mode"] == "train":
        train = DLRMTrain(model)
        kind = DENSE_OPTIMIZERS.get(optimizer_name, torch.optim.Adagrad)
        mlps = [p for n, p in train.named_parameters() if "embedding" not in n]
        optimizer = kind(mlps, lr=LEARNING_RATE)

        def call(batch):
            dense, label, ids, lengths = batch
            loss, _ = train(Batch(dense, jagged(ids, lengths), label))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

    else:
        model.eval()

        def call(batch):
            dense, _, ids, lengths = batch
            with torch.no_grad():
                return torch.sigmoid(model(dense, jagged(ids, lengths))).numpy()

    seconds = time_calls(call, pool, job)
    versions = {
        "torch": torch.__version__,
        "torchrec": importlib.metadata.version("torchrec"),
    }
    report(job, seconds, seconds_to_build, versions)


if __name__ == "__main__":
    main()
