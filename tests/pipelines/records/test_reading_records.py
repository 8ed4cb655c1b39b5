"""Records: every row once, any position again, damage noticed."""

import itertools
import json

import numpy as np
import pytest
import tensorflow as tf

from pipelines import records
from pipelines.records import order, store
from pipelines.records.layout import Manifest

SCHEMA = records.Schema(
    dense=("a", "b"), sparse=("x", "y", "z"), vocabulary_sizes=(1000, 5, 70)
)
NUM_ROWS = 1000


def make_rows(bags):
    """Rows that can be told apart by their first dense number."""
    rng = np.random.default_rng(3)
    dense = np.stack([np.arange(NUM_ROWS), rng.random(NUM_ROWS)], 1).astype(np.float32)
    labels = rng.integers(0, 2, NUM_ROWS)
    lengths = rng.integers(0, 4, (NUM_ROWS, 3)) if bags else None
    num_ids = lengths.sum() if bags else NUM_ROWS * 3
    ids = rng.integers(0, 5, num_ids).astype(np.int32)
    return labels, dense, ids if bags else ids.reshape(-1, 3), lengths


def write(folder, bags=False, rows_per_shard=333):
    rows = make_rows(bags)
    labels, dense, ids, lengths = rows
    with records.Writer(folder, SCHEMA, rows_per_shard) as writer:
        for first, last in itertools.pairwise([0, 10, 600, 601, NUM_ROWS]):
            if bags:
                begin, end = lengths[:first].sum(), lengths[:last].sum()
                part = ids[begin:end], lengths[first:last]
            else:
                part = ids[first:last], None
            writer.append(labels[first:last], dense[first:last], *part)
    return rows


def numbers(dataset):
    return [int(n) for f, _ in dataset for n in f["dense_features"].numpy()[:, 0]]


def bags_of(rows):
    labels, dense, ids, lengths = rows
    if lengths is None:
        return [[[i] for i in row] for row in ids.tolist()]
    parts = np.split(ids, np.cumsum(lengths.reshape(-1)))[:-1]
    parts = [part.tolist() for part in parts]
    return [parts[3 * i : 3 * i + 3] for i in range(len(labels))]


@pytest.mark.breadth(0)
@pytest.mark.parametrize("bags", [False, True], ids=["one_hot", "bags"])
@pytest.mark.parametrize("shuffle", [False, True], ids=["in_order", "shuffled"])
def test_every_row_comes_once_with_its_own(tmp_path, bags, shuffle, monkeypatch):
    monkeypatch.setattr(order, "CHUNK_ROWS", 7)
    rows = write(tmp_path, bags)
    expected = bags_of(rows)
    dataset = records.read(tmp_path, 64, shuffle=shuffle, seed=1, window_rows=90)
    features, label = dataset.element_spec
    assert features["dense_features"].shape.as_list() == [None, 2]
    assert features["sparse_features"].shape.as_list() == [None, 3, None]
    assert features["sparse_features"].dtype == tf.int64
    assert label.dtype == tf.float32
    assert dataset.cardinality() == 16
    found, sizes = [], []
    for features, label in dataset:
        sizes.append(len(label))
        numbers = features["dense_features"].numpy()[:, 0].astype(int)
        found += numbers.tolist()
        np.testing.assert_array_equal(features["dense_features"], rows[1][numbers])
        np.testing.assert_array_equal(label, rows[0][numbers])
        assert features["sparse_features"].to_list() == [expected[n] for n in numbers]
    assert sizes == [64] * 15 + [40]
    assert sorted(found) == list(range(NUM_ROWS))
    assert (found == sorted(found)) is not shuffle


def test_windows_mix_rows_of_all_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(order, "CHUNK_ROWS", 5)
    write(tmp_path)
    dataset = records.read(tmp_path, 200, shuffle=True, seed=0, window_rows=200)
    first = np.array(numbers(dataset.take(1)))
    # 40 chunks of 5 drawn from all over, and chunks do not stay together.
    for low in range(0, NUM_ROWS, 250):
        assert 10 < ((low <= first) & (first < low + 250)).sum() < 100
    assert (np.diff(first) == 1).mean() < 0.05


def test_epochs_differ_and_the_seed_decides(tmp_path):
    write(tmp_path)
    dataset = records.read(tmp_path, 100, shuffle=True, seed=5)
    first, second = numbers(dataset), numbers(dataset)
    assert first != second and sorted(first) == sorted(second)
    again = records.read(tmp_path, 100, shuffle=True, seed=5)
    assert [numbers(again), numbers(again)] == [first, second]
    other = records.read(tmp_path, 100, shuffle=True, seed=6)
    assert numbers(other) != first


@pytest.mark.parametrize("shuffle", [False, True], ids=["in_order", "shuffled"])
def test_position_is_restored_in_mid_epoch(tmp_path, shuffle):
    write(tmp_path / "data")

    def make():
        return records.read(tmp_path / "data", 30, shuffle=shuffle, seed=2)

    iterator = iter(make())
    for _ in range(11):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).save(tmp_path / "position")
    rest = numbers(iterator)
    restored = iter(make())
    tf.train.Checkpoint(iterator=restored).restore(path).assert_consumed()
    assert numbers(restored) == rest and len(rest) == NUM_ROWS - 330


def test_first_batch_counts_through_the_epochs(tmp_path):
    write(tmp_path)

    def take(first, count):
        dataset = records.read(
            tmp_path, 300, shuffle=True, seed=2, repeat=True, first_batch=first
        )
        assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
        return [
            f["dense_features"].numpy()[:, 0].tolist() for f, _ in dataset.take(count)
        ]

    whole = take(0, 12)  # three epochs of four batches
    assert [len(batch) for batch in whole] == [300, 300, 300, 100] * 3
    for first in (1, 4, 7):
        assert take(first, 12 - first) == whole[first:]
    epochs = [sum(whole[i : i + 4], []) for i in (0, 4, 8)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all(sorted(epoch) == list(range(NUM_ROWS)) for epoch in epochs)
    rest = records.read(tmp_path, 300, first_batch=2)
    assert rest.cardinality() == 2 and numbers(rest) == list(range(600, 1000))


@pytest.mark.parametrize("shuffle", [False, True], ids=["in_order", "shuffled"])
def test_workers_share_an_epoch(tmp_path, shuffle):
    write(tmp_path)
    parts = [
        numbers(
            records.read(tmp_path, 64, shuffle=shuffle, seed=1, worker=i, num_workers=3)
        )
        for i in range(3)
    ]
    assert [len(part) for part in parts] == [333] * 3
    assert len(set(sum(parts, []))) == 999


def test_missing_ids_are_empty_bags(tmp_path):
    with records.Writer(tmp_path, SCHEMA) as writer:
        ids = [[1, -1, 3], [-1, -1, -1]]
        writer.append([0, 1], [[0, 1], [2, 3]], ids)
    features, _ = next(iter(records.read(tmp_path)))
    assert features["sparse_features"].to_list() == [[[1], [], [3]], [[], [], []]]


def test_drop_remainder(tmp_path):
    write(tmp_path)
    dataset = records.read(tmp_path, 300, drop_remainder=True)
    assert dataset.cardinality() == 3 and len(numbers(dataset)) == 900


def test_empty_split(tmp_path):
    with records.Writer(tmp_path, SCHEMA):
        pass
    dataset = records.read(tmp_path)
    assert dataset.cardinality() == 0 and numbers(dataset) == []
    with pytest.raises(ValueError, match="at least one row"):
        records.read(tmp_path, repeat=True)


@pytest.mark.integration
def test_a_model_trains_on_records(tmp_path):
    import tf_dlrm

    write(tmp_path)
    manifest = Manifest.load(tmp_path)
    model = tf_dlrm.DLRM(manifest.schema.feature_spec(4), (8, 4), (8, 1))
    model.compile("adagrad")
    history = model.fit(records.read(tmp_path, 100, shuffle=True), epochs=2, verbose=0)
    assert len(history.history["loss"]) == 2


@pytest.mark.parametrize("damage", ["cut", "missing", "manifest", "flipped"])
def test_damage_is_noticed(tmp_path, damage):
    write(tmp_path)
    path = tmp_path / "train" / "part-00001_sparse.npy"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
        match = "part-00001_sparse.npy has .* in the manifest"
    elif damage == "missing":
        path.unlink()
        match = "part-00001_sparse.npy: missing"
    elif damage == "manifest":
        manifest = tmp_path / "manifest.json"
        content = json.loads(manifest.read_text())
        content["shards"][0]["num_rows"] += 1
        manifest.write_text(json.dumps(content))
        match = "manifest.json is damaged: its checksum is wrong"
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match="part-00001_sparse.npy is damaged"):
            Manifest.load(tmp_path).verify(tmp_path)
        return
    with pytest.raises(ValueError, match=match):
        records.read(tmp_path)


def test_unfinished_records_are_none(tmp_path):
    with pytest.raises(RuntimeError, match="oops"):
        with records.Writer(tmp_path, SCHEMA, 2) as writer:
            writer.append([0] * 5, np.zeros((5, 2)), np.zeros((5, 3), int))
            raise RuntimeError("oops")
    with pytest.raises(FileNotFoundError, match="no finished records"):
        records.read(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (([0], np.zeros((1, 3)), np.zeros((1, 3))), "`dense` must have the shape"),
        (([0], np.zeros((1, 2)), np.zeros((1, 2))), "`sparse` must have the shape"),
        (([2], np.zeros((1, 2)), np.zeros((1, 3))), "must be 0 or 1"),
        (([0], np.zeros((1, 2)), np.zeros(2), np.ones((1, 3))), "`sparse` must"),
        (([0], np.zeros((1, 2)), [[1, 9, 1]]), "'y' must be in its table .* 9$"),
        (([0], np.zeros((1, 2)), [[1, -2, 1]]), "'y' must be in its table .* -2"),
        (([0], [[1, np.nan]], [[1, 1, 1]]), "nan for 'b' in row 0"),
    ],
)
def test_writer_refuses(tmp_path, wrong, match):
    with pytest.raises(ValueError, match=match):
        with records.Writer(tmp_path, SCHEMA) as writer:
            writer.append(*wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"window_rows": 0},
        {"first_batch": -1},
        {"num_workers": 0},
        {"worker": 2, "num_workers": 2},
        {"split": "valid"},
        {"num_workers": 2, "shuffle": True},
    ],
    ids=str,
)
def test_arguments_are_checked(tmp_path, wrong):
    write(tmp_path)
    with pytest.raises(ValueError, match="must|no split|same `seed`"):
        records.read(tmp_path, **wrong)


def test_torchrec_layout(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 10**6, (50, 26)).astype(np.int32)
    for day in range(2):
        rows = slice(25 * day, 25 * day + 25)
        dense = np.full((25, 13), np.arange(25)[:, None] + 25 * day, np.float32)
        np.save(tmp_path / f"day_{day}_dense.npy", dense)
        np.save(tmp_path / f"day_{day}_sparse.npy", ids[rows])
        np.save(tmp_path / f"day_{day}_labels.npy", np.ones((25, 1), np.int32))
    path = tmp_path / "day_*_dense.npy"
    dataset = records.read_npy(path, 20, vocabulary_sizes=[1000] * 26)
    assert numbers(dataset) == list(range(50))
    found = [f["sparse_features"].to_tensor().numpy()[..., 0] for f, _ in dataset]
    np.testing.assert_array_equal(np.concatenate(found), ids % 1000)
    shuffled = records.read_npy(path, 20, shuffle=True, seed=1)
    assert sorted(numbers(shuffled)) == list(range(50))
    (tmp_path / "day_1_labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match="day_1_labels.npy"):
        records.read_npy(path)


@pytest.mark.breadth(3)
@pytest.mark.parametrize(
    "labels, received",
    [
        (np.array([[0], [1], [2], [1]], np.int32), "2 in row 2"),
        (np.array([0.0, -1.0, 1.0, 1.0], np.float32), "-1.0 in row 1"),
        (np.array([0.0, 1.0, 1.0, np.nan], np.float32), "nan in row 3"),
        (np.array([0, 1, 255, 1], np.uint8), "255 in row 2"),
    ],
    ids=["two", "minus one", "NaN", "byte"],
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_labels_that_are_no_probabilities_are_refused(
    tmp_path, labels, received, shuffle
):
    np.save(tmp_path / "day_dense.npy", np.zeros((4, 13), np.float32))
    np.save(tmp_path / "day_sparse.npy", np.zeros((4, 26), np.int32))
    np.save(tmp_path / "day_labels.npy", labels)
    dataset = records.read_npy(tmp_path / "day_dense.npy", 2, shuffle=shuffle)
    match = rf"day_labels.npy: labels must be in \[0, 1\].* {received}"
    with pytest.raises(tf.errors.OpError, match=match):
        list(dataset)


def test_soft_labels_are_read(tmp_path):
    np.save(tmp_path / "day_dense.npy", np.zeros((3, 13), np.float32))
    np.save(tmp_path / "day_sparse.npy", np.zeros((3, 26), np.int32))
    np.save(tmp_path / "day_labels.npy", np.array([0.0, 0.25, 1.0], np.float32))
    (batch,) = records.read_npy(tmp_path / "day_dense.npy", 3)
    assert batch[1].numpy().tolist() == [0.0, 0.25, 1.0]


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """A window is loaded, not the rows that came before."""
    write(tmp_path)
    manifest = Manifest.load(tmp_path)
    parts = [
        store.Part(
            shard.num_rows,
            *(shard.path(tmp_path, p) for p in ("labels", "dense", "sparse")),
            None,
        )
        for shard in manifest.shards
    ]
    rows = order.Order(store.Store(parts), True, 0, window_rows=64)
    for epoch in range(3):
        for first in range(0, NUM_ROWS - 10, 10):
            rows.read(epoch, first, first + 10)
            assert len(rows._windows) <= order._WINDOWS_KEPT
