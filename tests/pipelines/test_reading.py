import gzip

import numpy as np
import pytest
import tensorflow as tf
from helpers import criteo_oracle

from pipelines import criteo
from pipelines.formats import reading
from pipelines.quarantine import BadRowsError, Quarantine
from pipelines.vocabulary import HashVocabulary, Vocabulary

PARSER = criteo.Parser(HashVocabulary(1000))


def numbered_line(number, label=1):
    return b"%d\t%d\t%s" % (label, number, b"\t".join([b"1"] * 12 + [b"ab"] * 26))


def write_lines(path, lines, end=b"\n"):
    opener = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "wb") as file:
        file.write(b"\n".join(lines) + end)
    return str(path)


def numbers(dataset):
    """The numbers of `numbered_line`s, in the order of the data set."""
    return [n for n, _ in numbers_and_sizes(dataset)]


def numbers_and_sizes(dataset):
    found = []
    for batch in dataset:
        features = batch[0] if isinstance(batch, tuple) else batch
        column = np.expm1(features["dense_features"].numpy()[:, 0].astype(np.float64))
        assert len(column) == features["sparse_features"].nrows().numpy()
        found += [(int(n), len(column)) for n in np.rint(column)]
    return found


@pytest.fixture
def three_files(tmp_path):
    for day in range(3):
        lines = [numbered_line(100 * day + i) for i in range(100)]
        name = f"day_{day}" + (".gz" if day == 1 else "")
        write_lines(tmp_path / name, lines, b"" if day == 2 else b"\n")
    return str(tmp_path / "day_*")


def test_files_are_read_in_order_in_full_batches(three_files):
    dataset = criteo.read(three_files, PARSER, batch_size=64)
    features, label = dataset.element_spec
    assert features["dense_features"].shape.as_list() == [None, 13]
    assert features["sparse_features"].shape.as_list() == [None, 26, None]
    assert label.shape.as_list() == [None]
    found = numbers_and_sizes(dataset)
    assert [number for number, _ in found] == list(range(300))
    assert [size for _, size in found] == [64] * 256 + [44] * 44
    assert (
        len(numbers(criteo.read(three_files, PARSER, 64, drop_remainder=True))) == 256
    )


@pytest.mark.integration
def test_shuffle_keeps_every_row_once_and_follows_the_seed(three_files):
    def epochs(seed):
        dataset = criteo.read(three_files, PARSER, 64, shuffle=True, seed=seed)
        return [numbers(dataset), numbers(dataset)]

    first, again, other = epochs(3), epochs(3), epochs(4)
    assert first == again
    assert first != other
    assert first[0] != first[1]
    for epoch in first + other:
        assert epoch != list(range(300))
        assert sorted(epoch) == list(range(300))


def test_shuffle_mixes_files_even_in_a_small_buffer(three_files):
    dataset = criteo.read(three_files, PARSER, 30, True, shuffle_buffer=150, seed=1)
    assert len({number // 100 for number in numbers(dataset.take(1))}) > 1


@pytest.mark.breadth(1)
@pytest.mark.parametrize("shuffle", [False, True])
def test_repeat_fills_batches_across_epochs(three_files, shuffle):
    dataset = criteo.read(three_files, PARSER, 64, shuffle, repeat=True, seed=1)
    found = numbers_and_sizes(dataset.take(10))
    assert {size for _, size in found} == {64}
    assert sorted(number for number, _ in found[:300]) == list(range(300))


@pytest.mark.breadth(0)
@pytest.mark.parametrize("block_bytes", [1000, 1, 1 << 20])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_hostile_file_in_blocks_of_any_size(tmp_path, monkeypatch, block_bytes, suffix):
    rng = np.random.default_rng(11)
    lines = [line.replace(b"\n", b"") for line in criteo_oracle.hostile_lines(rng, 200)]
    path = write_lines(tmp_path / f"rows{suffix}", lines, b"")
    monkeypatch.setattr(reading, "BLOCK_BYTES", block_bytes)
    vocabulary = Vocabulary([[b"a", b"b", b"\x00", b"\xff"]] * 26)
    ids = criteo_oracle.table_ids(vocabulary)
    expected = [criteo_oracle.parse(line, ids) for line in lines]
    quarantine = Quarantine(tmp_path / "bad.tsv", max_bad_share=1)
    dataset = criteo.read(path, criteo.Parser(vocabulary), 32, quarantine=quarantine)
    bags, labels = [], []
    for _ in range(2):
        for features, label in dataset:
            bags += features["sparse_features"].to_list()
            labels += label.numpy().tolist()
    good = [row for row in expected if row is not None]
    assert bags == [row[2] for row in good] * 2
    assert labels == [row[0] for row in good] * 2
    assert quarantine.num_rows == len(lines)
    assert quarantine.num_bad == len(lines) - len(good)
    written = (tmp_path / "bad.tsv").read_text().splitlines()[1:]
    bad = [i for i, row in enumerate(expected, start=1) if row is None]
    assert [int(text.split("\t")[1]) for text in written] == bad
    rows = [
        text.split("\t")[4].encode().decode("unicode_escape").encode("latin-1")
        for text in written
    ]
    assert rows == [lines[number - 1][:1024] for number in bad]


@pytest.mark.breadth(0)
@pytest.mark.parametrize("name", ["kaggle", "unlabelled"])
def test_real_file_equals_plain_python(name):
    path = criteo_oracle.real_path(name)
    labelled = criteo_oracle.REAL_FILES[name][2]
    vocabulary = Vocabulary.build(criteo_oracle.real_path("kaggle"), min_count=5)
    ids = criteo_oracle.table_ids(vocabulary)
    rows = [
        criteo_oracle.parse(line, ids, labelled)
        for line in criteo_oracle.real_lines(name)
    ]
    parser = criteo.Parser(vocabulary)
    dense, values = [], []
    for batch in criteo.read(path, parser, labelled=labelled):
        features = batch[0] if labelled else batch
        dense.append(features["dense_features"].numpy())
        values.append(features["sparse_features"].flat_values.numpy())
    np.testing.assert_array_equal(np.concatenate(dense), [row[1] for row in rows])
    expected = [i for row in rows for bag in row[2] for i in bag]
    np.testing.assert_array_equal(np.concatenate(values), expected)


def test_carriage_returns_are_kept_for_the_parser_to_judge(tmp_path):
    lines = [numbered_line(1) + b"\r", numbered_line(2) + b"\r\r", numbered_line(3)]
    lines.append(lines[2].replace(b"ab", b"a\rb", 1))
    quarantine = Quarantine(max_bad_share=1)
    path = write_lines(tmp_path / "rows", lines)
    dataset = criteo.read(path, PARSER, quarantine=quarantine)
    assert numbers(dataset) == [1, 3]
    assert quarantine.reasons == {"carriage return inside the line": 2}


def test_bad_rows_leave_batches_full_and_the_default_is_strict(tmp_path):
    lines = [numbered_line(i) if i % 10 else b"oops" for i in range(1, 101)]
    path = write_lines(tmp_path / "rows", lines)
    quarantine = Quarantine(max_bad_share=0.1)
    found = numbers_and_sizes(criteo.read(path, PARSER, 16, quarantine=quarantine))
    assert [size for _, size in found] == [16] * 80 + [10] * 10
    assert quarantine.num_bad == 10
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        numbers(criteo.read(path, PARSER))
    text = str(error.value)
    assert BadRowsError.__name__ in text
    assert "10 of 100 rows read are bad (10.000%); at most 0.010% are allowed" in text
    assert f"{path}:10: expected 40 tab-separated columns, found 1" in text
    assert "max_bad_share=0.2" in text


def test_too_many_bad_rows_stop_long_before_the_end(tmp_path):
    lines = [numbered_line(i) for i in range(60_000)]
    lines[:5] = [b"oops"] * 5
    path = write_lines(tmp_path / "rows", lines)
    iterator = iter(criteo.read(path, PARSER, 1000))
    num_batches = 0
    with pytest.raises(tf.errors.InvalidArgumentError, match="5 of .* rows read"):
        for _ in iterator:
            num_batches += 1
    assert num_batches < 40


@pytest.mark.parametrize("where", ["middle", "checksum"])
def test_gzip_cut_short_raises(tmp_path, where):
    path = write_lines(tmp_path / "rows.gz", [numbered_line(i) for i in range(5000)])
    with open(path, "rb") as file:
        content = file.read()
    cut = len(content) // 2 if where == "middle" else len(content) - 4
    with open(path, "wb") as file:
        file.write(content[:cut])
    with pytest.raises(tf.errors.InvalidArgumentError, match="rows.gz: .*truncated"):
        numbers(criteo.read(path, PARSER))
    # TensorFlow's own reader takes it for a shorter file.
    assert 0 < sum(1 for _ in tf.data.TextLineDataset(path, "GZIP")) <= 5000


def test_unlabelled_rows_give_features_only(tmp_path):
    lines = [numbered_line(1), numbered_line(2)[2:], b"7" + numbered_line(3)[1:]]
    path = write_lines(tmp_path / "rows", lines)
    quarantine = Quarantine(max_bad_share=1)
    dataset = criteo.read(path, PARSER, labelled=False, quarantine=quarantine)
    assert set(dataset.element_spec) == {"dense_features", "sparse_features"}
    assert numbers(dataset) == [1, 2]
    assert quarantine.reasons == {"the label must be 0 or 1": 1}


@pytest.mark.integration
def test_iterator_checkpoint_goes_on_where_it_was(three_files, tmp_path):
    def read_shuffled():
        return criteo.read(three_files, PARSER, 20, True, shuffle_buffer=99, seed=5)

    iterator = iter(read_shuffled())
    for _ in range(4):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).save(str(tmp_path / "position"))
    rest = numbers(iterator)
    resumed = iter(read_shuffled())
    tf.train.Checkpoint(iterator=resumed).restore(path)
    assert numbers(resumed) == rest
    assert len(rest) == 220


def test_iterators_of_one_data_set_do_not_disturb_each_other(three_files):
    dataset = criteo.read(three_files, PARSER, 50)
    pairs = [(numbers([a]), numbers([b])) for a, b in zip(dataset, dataset)]
    assert [number for a, _ in pairs for number in a] == list(range(300))
    assert all(a == b for a, b in pairs)


@pytest.mark.parametrize("name", ["batch_size", "shuffle_buffer"])
def test_sizes_must_be_positive(three_files, name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1.*{name}=0"):
        criteo.read(three_files, PARSER, **{name: 0})


def test_paths_are_checked_at_the_call(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        criteo.read(tmp_path / "nowhere", PARSER)


def test_workers_share_the_files(three_files):
    parts = [
        numbers(criteo.read(three_files, PARSER, 64, worker=i, num_workers=2))
        for i in range(2)
    ]
    assert parts == [[*range(100), *range(200, 300)], list(range(100, 200))]
    with pytest.raises(ValueError, match="4 workers need at least 4 files"):
        criteo.read(three_files, PARSER, num_workers=4)
    with pytest.raises(ValueError, match="`worker` must be from 0 to"):
        criteo.read(three_files, PARSER, worker=2, num_workers=2)
