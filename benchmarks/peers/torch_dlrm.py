"""Plain PyTorch DLRM, as facebookresearch/dlrm computes it.

One sparse `EmbeddingBag` a table, `bmm` interaction, torch's optimizers; under
`torch.autocast` where the precision is bfloat16.
"""

import os
import time

import torch
from common import LEARNING_RATE, make_pool, read_job, report, time_calls


def make_mlp(dims, relu_at_end):
    """Linear layers of these dims with ReLU between."""
    layers = []
    for i, (width, next_width) in enumerate(zip(dims, dims[1:])):
        layers.append(torch.nn.Linear(width, next_width))
        if relu_at_end or i < len(dims) - 2:
            layers.append(torch.nn.ReLU())
    return torch.nn.Sequential(*layers)


class DLRM(torch.nn.Module):
    """Bottom MLP, tables, dot products of all pairs, top MLP."""

    def __init__(self, workload):
        super().__init__()
        width = workload["embedding_dim"]
        self.tables = torch.nn.ModuleList(
            torch.nn.EmbeddingBag(rows, width, mode="sum", sparse=True)
            for rows in workload["table_sizes"]
        )
        num_vectors = len(self.tables) + 1
        pairs = num_vectors * (num_vectors - 1) // 2
        self.bottom = make_mlp(
            [workload["num_dense"], *workload["bottom_mlp_dims"]], relu_at_end=True
        )
        self.top = make_mlp(
            [width + pairs, *workload["top_mlp_dims"]], relu_at_end=False
        )
        self.rows, self.columns = torch.tril_indices(
            num_vectors, num_vectors, offset=-1
        )

    def forward(self, dense, ids, offsets):
        x = self.bottom(dense)
        pooled = [t(i, o) for t, i, o in zip(self.tables, ids, offsets)]
        z = torch.stack([x, *pooled], 1)
        products = torch.bmm(z, z.transpose(1, 2))
        return self.top(torch.cat([x, products[:, self.rows, self.columns]], 1))


def to_tensors(batch):
    """NumPy batch -> dense, label, ids and offsets by table."""
    dense, label, bags = batch
    lengths = [torch.from_numpy(lengths).long() for _, lengths in bags]
    offsets = [n.cumsum(0) - n for n in lengths]
    ids = [torch.from_numpy(ids).long() for ids, _ in bags]
    return torch.from_numpy(dense), torch.from_numpy(label), ids, offsets


def make_optimizers(model, name):
    """The optimizers of a name: Adam needs `SparseAdam` for the tables."""
    tables = list(model.tables.parameters())
    mlps = [*model.bottom.parameters(), *model.top.parameters()]
    if name == "adam":
        return [
            torch.optim.SparseAdam(tables, lr=LEARNING_RATE),
            torch.optim.Adam(mlps, lr=LEARNING_RATE),
        ]
    kind = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}[name]
    return [kind([*tables, *mlps], lr=LEARNING_RATE)]


def main():
    """Measures the job that the argument holds."""
    job = read_job()
    torch.manual_seed(job["seed"])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    autocast = torch.autocast(
        "cpu", dtype=torch.bfloat16, enabled=job["precision"] == "bfloat16"
    )
    start = time.perf_counter()
    model = DLRM(job["workload"])
    seconds_to_build = time.perf_counter() - start
    pool = make_pool(job["workload"], job["batch_size"], job["seed"])
    pool = [to_tensors(batch) for batch in pool]
    if job["mode"] == "train":
        optimizers = make_optimizers(model, job["optimizer"])
        loss_of = torch.nn.BCEWithLogitsLoss()

        def call(batch):
            dense, label, ids, offsets = batch
            with autocast:
                logit = model(dense, ids, offsets)
            loss = loss_of(logit.float(), label)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            return loss.item()

    else:
        model.eval()

        def call(batch):
            dense, _, ids, offsets = batch
            with torch.inference_mode(), autocast:
                return torch.sigmoid(model(dense, ids, offsets).float()).numpy()

    seconds = time_calls(call, pool, job)
    report(job, seconds, seconds_to_build, {"torch": torch.__version__})


if __name__ == "__main__":
    main()
