"""Which negatives are kept depends on position, label and seed, on nothing else."""

import numpy as np
import pytest
from helpers.criteo_oracle import make_line

from pipelines import criteo, records
from pipelines.formats import reading
from pipelines.quarantine import Quarantine
from pipelines.records import order
from pipelines.sampling import NegativeSampling
from pipelines.vocabulary import HashVocabulary

PARSER = criteo.Parser(HashVocabulary(1000))
NUM_ROWS = 2000
SCHEMA = records.Schema(dense=("a",), sparse=("x", "y"), vocabulary_sizes=(9, 9))


def labels_of(num_rows=NUM_ROWS):
    return (np.random.default_rng(3).random(num_rows) < 0.2).astype(np.uint8)


def kept_of(sampling, file, labels):
    return np.flatnonzero(sampling.keep(file, np.arange(len(labels)), labels))


def test_clicks_are_kept_and_a_share_of_the_others():
    labels = np.arange(200_000) % 5 == 0
    for rate in (0.01, 0.3, 1.0):
        kept = NegativeSampling(rate, 4).keep(0, np.arange(200_000), labels)
        assert kept[labels].all()
        error = 5 * np.sqrt(rate * (1 - rate) / 160_000)
        assert abs(kept[~labels].mean() - rate) <= error


def test_a_row_is_kept_wherever_blocks_end_and_the_seed_and_file_decide():
    labels, numbers = labels_of(), np.arange(NUM_ROWS)
    whole = NegativeSampling(0.3, 1).keep(2, numbers, labels)
    for size in (1, 7, 999):
        parts = [
            NegativeSampling(0.3, 1).keep(
                2, numbers[i : i + size], labels[i : i + size]
            )
            for i in range(0, NUM_ROWS, size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    for file, seed in ((3, 1), (2, 2)):
        other = NegativeSampling(0.3, seed).keep(file, numbers, labels)
        both = (whole & other)[labels == 0].mean()
        assert 0.05 < both < 0.13  # 0.09 of independent choices


@pytest.mark.parametrize("rate", [0, -0.1, 1.5, float("nan")])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(ValueError, match="`negative_sampling_rate` must be above 0"):
        NegativeSampling(rate)


def write_lines(folder, num_files=3, num_lines=400):
    """Files of rows numbered through in I1, a bad line in each."""
    rng, paths, labels = np.random.default_rng(0), [], labels_of()
    for file in range(num_files):
        lines = []
        for i in range(num_lines):
            number = file * num_lines + i
            fields = make_line(rng, b"%d" % labels[number]).split(b"\t")
            fields[1] = b"%d" % number
            lines.append(b"\t".join(fields))
        lines[11] = b"no row"
        paths.append(str(folder / f"day_{file}"))
        (folder / f"day_{file}").write_bytes(b"\n".join(lines) + b"\n")
    return paths


def numbers_in(dataset):
    numbers = [np.exp(f["dense_features"].numpy()[:, 0]) - 1 for f, _ in dataset]
    return np.round(np.concatenate(numbers)).astype(int).tolist()


@pytest.mark.breadth(0)
@pytest.mark.parametrize("shuffle", [False, True], ids=["in_order", "shuffled"])
def test_lines_are_left_out_by_their_number(tmp_path, monkeypatch, shuffle):
    monkeypatch.setattr(reading, "BLOCK_BYTES", 9000)
    paths, labels = write_lines(tmp_path), labels_of()
    expected = []
    for file in range(3):
        kept = kept_of(NegativeSampling(0.25, 5), file, labels[400 * file :][:400])
        expected += [400 * file + i for i in kept.tolist() if i != 11]
    assert 300 < len(expected) < 600

    def read(sampling, **options):
        quarantine = Quarantine(max_bad_share=0.1)
        return criteo.read(
            paths, PARSER, 64, shuffle, seed=1, quarantine=quarantine,
            negative_sampling=sampling, **options,
        )  # fmt: skip

    sampling = NegativeSampling(0.25, 5)
    dataset = read(sampling)
    sizes = [len(label) for _, label in dataset]
    assert set(sizes[:-1]) == {64}
    for _ in range(2):  # the same rows in each epoch
        found = numbers_in(dataset)
        assert sorted(found) == expected
        assert (found == expected) is not shuffle
        assert sampling.num_left_out == 1197 - len(expected)
    shared = [
        numbers_in(read(NegativeSampling(0.25, 5), worker=i, num_workers=2))
        for i in range(2)
    ]
    assert sorted(sum(shared, [])) == expected


def test_blocks_without_a_row_that_is_kept(tmp_path):
    rng = np.random.default_rng(0)
    lines = [make_line(rng, b"0") for _ in range(50)]
    (tmp_path / "a").write_bytes(b"\n".join(lines))
    sampling = NegativeSampling(1e-9)
    dataset = criteo.read(tmp_path / "a", PARSER, negative_sampling=sampling)
    assert list(dataset) == [] and sampling.num_left_out == 50
    with pytest.raises(ValueError, match="`negative_sampling` needs labels"):
        criteo.read(tmp_path / "a", PARSER, labelled=False, negative_sampling=sampling)


@pytest.fixture(params=[False, True], ids=["one_hot", "bags"])
def folder(request, tmp_path):
    rng, labels = np.random.default_rng(0), labels_of(10_000)
    lengths = rng.integers(0, 3, (10_000, 2)) if request.param else None
    shape = lengths.sum() if request.param else (10_000, 2)
    with records.Writer(tmp_path, SCHEMA, rows_per_shard=3001) as writer:
        ids = rng.integers(0, 9, shape).astype(np.int32)
        writer.append(labels, np.arange(10_000.0)[:, None], ids, lengths)
    return tmp_path


def rows_in(dataset):
    return {
        int(number): (float(y), bags)
        for f, label in dataset
        for number, y, bags in zip(
            f["dense_features"].numpy()[:, 0],
            label.numpy(),
            f["sparse_features"].to_tensor(-1, (None, 2, 2)).numpy().tolist(),
        )
    }


@pytest.mark.breadth(0)
@pytest.mark.parametrize("shuffle", [False, True], ids=["in_order", "shuffled"])
def test_records_are_left_out_by_their_number(folder, monkeypatch, shuffle):
    monkeypatch.setattr(order, "CHUNK_ROWS", 50)
    everything = rows_in(records.read(folder, 512))
    kept = kept_of(NegativeSampling(0.1, 6), 0, labels_of(10_000))
    sampling = NegativeSampling(0.1, 6)
    dataset = records.read(
        folder, 100, shuffle, seed=1, window_rows=700, negative_sampling=sampling
    )
    assert dataset.cardinality() == -(-len(kept) // 100)
    assert sampling.num_left_out == 10_000 - len(kept)
    for _ in range(2):
        found = rows_in(dataset)
        assert (list(found) == kept.tolist()) is not shuffle
        assert found == {number: everything[number] for number in kept.tolist()}
    # Any place of the epoch, and any number of workers.
    rest = records.read(folder, 100, first_batch=7, negative_sampling=sampling)
    assert list(rows_in(rest)) == kept[700:].tolist()
    options = {"seed": 1, "num_workers": 3, "negative_sampling": sampling}
    shared = [
        list(rows_in(records.read(folder, 100, shuffle, worker=i, **options)))
        for i in range(3)
    ]
    assert len(set(sum(shared, []))) == len(kept) - len(kept) % 3
    assert set(sum(shared, [])) <= set(kept.tolist())


def test_a_split_of_which_nothing_is_kept(tmp_path):
    with records.Writer(tmp_path, SCHEMA) as writer:
        writer.append(np.zeros(9), np.zeros((9, 1)), np.ones((9, 2), int))
    dataset = records.read(tmp_path, negative_sampling=NegativeSampling(1e-9))
    assert dataset.cardinality() == 0 and list(dataset) == []
