"""`prepare` of a log with learned numbers, buckets, shared tables and event times."""

import hashlib
import pathlib

import numpy as np
import pytest

from pipelines import Dense, Schema, Sparse, prepare, records
from pipelines.formats import scanning

SCHEMA = Schema(
    "click",
    [Dense("x", "standardize")],
    [
        "user",
        "item",
        Sparse("history", separator="|", table="item", combiner="mean", max_values=2),
        Sparse("x", name="bucket", buckets="quantile", num_buckets=8),
    ],
    weight="w",
    time="t",
)
NUM_ROWS = 3000


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A file whose event times rise but for some rows; and its times."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("log") / "log.csv"
    days = np.sort(rng.integers(1, 28, NUM_ROWS))
    rng.shuffle(days[1000:2000])
    with open(path, "w") as file:
        file.write("w,click,x,user,item,history,t\n")
        for day in days.tolist():
            items = "|".join(f"i{k}" for k in rng.integers(0, 500, rng.integers(0, 4)))
            x = "" if rng.random() < 0.1 else f"{rng.normal(3, 2):.4f}"
            user, item = f"u{rng.integers(900):012d}", f"i{rng.integers(500)}"
            weight, click = rng.integers(1, 5), rng.integers(2)
            row = [weight, click, x, user, item, items, f"2026-01-{day:02d}"]
            file.write(",".join(map(str, row)) + "\n")
    return str(path), days


def digests(folder):
    """Digests of all files in a folder."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(pathlib.Path(folder).rglob("*"))
        if path.is_file()
    }


def test_little_memory_and_small_blocks_change_nothing(log, tmp_path, monkeypatch):
    path, _ = log
    found = []
    for memory_bytes, block_bytes in ((512 << 20, 8 << 20), (1 << 14, 8 << 20)):
        monkeypatch.setattr(scanning, "BLOCK_BYTES", block_bytes)
        out = tmp_path / str(memory_bytes)
        options = prepare.Options(
            min_count=2, valid_share=0.2, memory_bytes=memory_bytes
        )
        prepare.prepare(path, out, options, schema=SCHEMA)
        found.append(digests(out))
    assert found[0] == found[1] and len(found[0]) > 8


def test_rows_are_split_by_time_and_standardized(log, tmp_path):
    path, days = log
    options = prepare.Options(min_count=1, valid_share=0.2)
    manifest = prepare.prepare(path, tmp_path / "out", options, schema=SCHEMA)
    # The latest whole days that are at most a fifth of the rows.
    counts = np.bincount(days)
    later = np.cumsum(counts[::-1])[::-1]
    num_valid = int(later[later <= round(NUM_ROWS * 0.2)].max())
    assert manifest.num_rows("valid") == num_valid
    features, label, weight = next(iter(records.read(tmp_path / "out", NUM_ROWS)))
    dense = features["dense_features"].numpy()[:, 0].astype(np.float64)
    assert len(dense) == NUM_ROWS - num_valid == len(label)
    # Missing numbers count as the mean, which is 0.
    present = dense[dense != 0]
    assert abs(present.mean()) < 1e-5 and abs(present.std() - 1) < 1e-5
    assert set(weight.numpy().tolist()) == {1.0, 2.0, 3.0, 4.0}
    buckets = features["sparse_features"][:, 3].flat_values.numpy()
    shares = np.bincount(buckets)[1:] / (buckets > 0).sum()
    assert len(shares) == 8 and abs(shares - 1 / 8).max() < 0.01
