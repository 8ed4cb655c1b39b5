"""A plain PyTorch DLRM, named and computed as facebookresearch/dlrm does it.

Runs where torch is, without TensorFlow or this project: `python torch_dlrm.py
checkpoints FOLDER` or `python torch_dlrm.py train FOLDER`.
"""

import json
import pathlib
import sys

import numpy as np
import torch

NUM_DENSE, SIZES, WIDTH, NUM_ROWS = 3, (11, 7, 1, 23), 8, 29


def make_mlp(dims, last):
    layers = []
    for inputs, outputs in zip(dims, dims[1:]):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1], last)


class Projected(torch.nn.Module):
    """A table of its own width, and a matrix that brings it to the model's."""

    def __init__(self, size, width, model_width):
        super().__init__()
        self.embs = torch.nn.EmbeddingBag(size, width, mode="sum", sparse=True)
        self.proj = torch.nn.Linear(width, model_width, bias=False)

    def forward(self, ids, offsets):
        return self.proj(self.embs(ids, offsets))


class DLRM(torch.nn.Module):
    def __init__(self, num_dense, sizes, bottom, top, op="dot", itself=False, mixed=()):
        super().__init__()
        width, n = bottom[-1], len(sizes) + 1
        self.op, self.offset = op, 1 if itself else 0
        num_pairs = n * (n + (1 if itself else -1)) // 2
        inputs = width + num_pairs if op == "dot" else n * width
        self.emb_l = torch.nn.ModuleList(
            Projected(size, mixed[i], width)
            if i < len(mixed)
            else torch.nn.EmbeddingBag(size, width, mode="sum", sparse=True)
            for i, size in enumerate(sizes)
        )
        self.bot_l = make_mlp([num_dense, *bottom], torch.nn.ReLU())
        self.top_l = make_mlp([inputs, *top], torch.nn.Sigmoid())

    def forward(self, dense, offsets, ids):
        x = self.bot_l(dense)
        vectors = [x, *(e(i, o) for e, i, o in zip(self.emb_l, ids, offsets))]
        if self.op == "cat":
            return self.top_l(torch.cat(vectors, 1))
        t = torch.stack(vectors, 1)
        z = torch.bmm(t, t.transpose(1, 2))
        places = [(i, j) for i in range(t.shape[1]) for j in range(i + self.offset)]
        rows, columns = zip(*places)
        return self.top_l(torch.cat([x, z[:, rows, columns]], 1))


# Checkpoints


def make_inputs(folder):
    """Bags of 0 to 3 ids, kept for the other side; and the same as tensors."""
    rng = np.random.default_rng(1)
    dense = rng.normal(size=(NUM_ROWS, NUM_DENSE)).astype(np.float32)
    lengths = rng.integers(0, 4, (NUM_ROWS, len(SIZES)))
    ids = [rng.integers(0, n, lengths[:, i].sum()) for i, n in enumerate(SIZES)]
    bags = {f"ids_{i}": values for i, values in enumerate(ids)}
    np.savez(folder / "inputs.npz", dense=dense, lengths=lengths, **bags)
    offsets = [
        torch.from_numpy(np.cumsum([0, *lengths[:-1, i]])) for i in range(len(SIZES))
    ]
    return torch.from_numpy(dense), offsets, [torch.from_numpy(i) for i in ids]


def make_model(**options):
    torch.manual_seed(4)
    model = DLRM(NUM_DENSE, SIZES, (6, WIDTH), (9, 5, 1), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def checkpoint(model, optimizer):
    """All that `--save-model` writes; losses are NumPy scalars there."""
    loss = np.float32(0.5)
    return {
        "epoch": 1, "nepochs": 2, "nbatches": 3, "nbatches_test": 4, "iter": 5,
        "state_dict": model.state_dict(), "train_acc": 0.7, "train_loss": loss,
        "test_acc": np.float64(0.7), "test_loss": loss, "total_loss": loss * 3,
        "total_accu": np.int64(12), "opt_state_dict": optimizer.state_dict(),
    }  # fmt: skip


def strided(state):
    """The same values as a transposed view, and as a window of a larger storage."""
    result = {}
    for i, (name, tensor) in enumerate(state.items()):
        if tensor.dim() == 2 and i % 2:
            result[name] = tensor.t().contiguous().t()
        else:
            window = torch.full(
                (tensor.shape[0] + 3, *(n + 2 for n in tensor.shape[1:])), 9.0
            )
            slices = (
                slice(2, 2 + tensor.shape[0]),
                *(slice(1, 1 + n) for n in tensor.shape[1:]),
            )
            window[slices] = tensor
            result[name] = window[slices]
        assert torch.equal(result[name], tensor)
    return result


def save_checkpoints(folder):
    inputs = make_inputs(folder)
    predictions = {}

    def save(name, model, saved=None):
        saved = model.state_dict() if saved is None else saved
        torch.save(saved, folder / f"{name}.pt")
        predictions[name] = model(*inputs).detach().numpy()

    model = make_model()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.02)
    label = torch.arange(NUM_ROWS).remainder(2.0)[:, None]
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.BCELoss()(model(*inputs), label).backward()
        optimizer.step()
    save("whole", model, checkpoint(model, optimizer))
    save("state_dict", model, model.state_dict())
    save("strided", model, {"state_dict": strided(model.state_dict())})
    save("parameters", model, dict(model.named_parameters()))
    wrapped = {f"module.{k}": v for k, v in model.state_dict().items()}
    save("data_parallel", model, {"state_dict": wrapped})
    wrapped = {
        k.replace("_l.", "_l.module.", 1) if k[:3] != "emb" else k: v
        for k, v in model.state_dict().items()
    }
    save("distributed", model, {"state_dict": wrapped})
    save("itself", make_model(itself=True))
    save("cat", make_model(op="cat"))
    save("mixed", make_model(mixed=(3, 5)))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        rounded = {k: v.to(dtype) for k, v in model.state_dict().items()}
        other = make_model()
        other.load_state_dict(rounded)
        save(str(dtype).removeprefix("torch."), other, rounded)
    torch.save(
        model.state_dict(), folder / "legacy.old", _use_new_zipfile_serialization=False
    )
    np.savez(folder / "predictions.npz", **predictions)
    return {"names": sorted(predictions), "torch": torch.__version__}


# Training


def make_optimizers(model, options):
    """SGD or sparse Adagrad for all; or dense Adam for the tables and SGD."""
    tables = list(model.emb_l.parameters())
    mlps = [*model.bot_l.parameters(), *model.top_l.parameters()]
    if options["name"] == "adam":
        for bag in model.emb_l:
            bag.sparse = False
        adam = torch.optim.Adam(tables, **options["tables"])
        return [adam, torch.optim.SGD(mlps, **options["mlps"])]
    kind = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}[options["name"]]
    return [kind(tables, **options["tables"]), kind(mlps, **options["mlps"])]


def train(folder):
    """Trains from given weights on given batches; returns the loss of each step."""
    job = json.loads((folder / "job.json").read_text())
    with np.load(folder / "weights.npz") as weights:
        state = {name: torch.from_numpy(weights[name]) for name in weights}
    with np.load(folder / "rows.npz") as rows:
        dense, ids, label = (
            torch.from_numpy(rows[name]) for name in ("dense", "ids", "label")
        )
    losses = {}
    for name, options in job["optimizers"].items():
        model = DLRM(dense.shape[1], job["sizes"], job["bottom"], job["top"])
        model.load_state_dict(state)
        optimizers = make_optimizers(model, options)
        losses[name] = []
        num_rows = options.get("num_steps", len(label)) * job["batch_size"]
        for first in range(0, min(num_rows, len(label)), job["batch_size"]):
            rows = slice(first, first + job["batch_size"])
            batch = ids[rows].t().contiguous()
            offsets = [torch.arange(batch.shape[1])] * len(batch)
            for optimizer in optimizers:
                optimizer.zero_grad()
            probabilities = model(dense[rows], offsets, list(batch))
            loss = torch.nn.BCELoss()(probabilities, label[rows, None])
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            losses[name].append(loss.item())
        found = {k: v.detach().numpy() for k, v in model.state_dict().items()}
        np.savez(folder / f"trained_{name}.npz", **found)
    return losses


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    commands = {"checkpoints": save_checkpoints, "train": train}
    print(json.dumps(commands[command](folder)))
