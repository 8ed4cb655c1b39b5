"""Random rows: any shape, by number, with the ids and bags that were asked for."""

import tracemalloc

import numpy as np
import pytest
from helpers import criteo_rows
from helpers.planted_rows import collect
from scipy import stats

from pipelines.synthetic import Random, category_text
from pipelines.synthetic.blocks import rows_per_block

BAGS = {"vocabulary_sizes": (10, 3, 1000), "num_dense": 2, "hotness": (4, 1, 7)}


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "varying"])
@pytest.mark.parametrize("hotness", [(4, 1, 7), (400, 1, 7)], ids=["small", "large"])
def test_rows_do_not_depend_on_the_range_they_are_generated_in(fixed, hotness):
    source = Random(**{**BAGS, "hotness": hotness}, fixed_hotness=fixed)
    block_rows = rows_per_block(sum(hotness))
    whole = collect(source, 2 * block_rows + 10)
    parts = [
        collect(source, block_rows),
        collect(source, 1, first_row=block_rows),
        collect(source, block_rows + 9, first_row=block_rows + 1),
    ]
    for name in whole._fields:
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name), err_msg=name)


def test_equal_arguments_give_equal_rows_and_another_seed_others():
    one, same, other = (collect(Random(seed=seed), 500) for seed in (3, 3, 4))
    for name in ("labels", "dense", "ids"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
        assert not np.array_equal(getattr(one, name), getattr(other, name)), name


def test_block_shapes_and_dtypes():
    block = collect(Random(**BAGS), 20_000)
    described = {name: (a.shape, a.dtype.name) for name, a in block._asdict().items()}
    assert described == {
        "labels": ((20_000,), "uint8"),
        "dense": ((20_000, 2), "float32"),
        "ids": ((12 * 20_000,), "int32"),
        "lengths": ((20_000, 3), "int32"),
    }


def test_defaults_are_criteos_columns():
    block = next(Random().blocks(10))
    assert block.dense.shape == (10, 13) and (block.lengths == 1).all()
    assert block.lengths.shape == (10, 26)
    assert Random().is_one_hot and not Random(hotness=2).is_one_hot


def test_dense_values_and_labels():
    block = collect(Random(click_rate=0.2, num_dense=3), 50_000)
    assert block.dense.min() >= 0.0 and block.dense.max() < 1.0
    for column in block.dense.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    # Five standard errors
    assert block.labels.mean() == pytest.approx(0.2, abs=5 * np.sqrt(0.16 / 50_000))
    assert set(block.labels.tolist()) == {0, 1}


def test_there_may_be_no_dense_features():
    assert next(Random(num_dense=0).blocks(7)).dense.shape == (7, 0)


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "varying"])
def test_uniform_ids_fill_their_tables(fixed):
    block = collect(Random(**BAGS, fixed_hotness=fixed), 40_000)
    features = np.repeat(np.tile(np.arange(3), 40_000), block.lengths.reshape(-1))
    for feature, size in enumerate(BAGS["vocabulary_sizes"]):
        counts = np.bincount(block.ids[features == feature])
        assert len(counts) == size
        assert stats.chisquare(counts).pvalue > 1e-4


def test_ids_of_the_largest_tables_stay_inside():
    source = Random(vocabulary_sizes=(2**31 - 1, 1), num_dense=0)
    ids = collect(source, 50_000).ids.reshape(-1, 2)
    assert ids[:, 0].min() >= 0 and ids[:, 0].max() > 2**31 - 10**6
    assert (ids[:, 1] == 0).all()


@pytest.mark.parametrize("size", [1, 2, 9, 100_000])
def test_normal_ids_are_centred_and_clipped(size):
    source = Random(vocabulary_sizes=(size,), distribution="normal", num_dense=0)
    ids = collect(source, 50_000).ids
    centre, deviation = (size - 1) / 2, size / 6
    # Of a normal variable, rounded and clipped to [0, size - 1]
    edges = (
        np.arange(size - 1) + 0.5 if size < 10 else np.quantile(ids, [0.1, 0.5, 0.9])
    )
    for edge in edges:
        expected = stats.norm.cdf((np.floor(edge) + 0.5 - centre) / deviation)
        assert (ids <= edge).mean() == pytest.approx(expected, abs=0.012)
    assert ids.min() >= 0 and ids.max() <= size - 1
    if size == 100_000:
        share = 2 * stats.norm.cdf(-3.0)
        clipped = np.isin(ids, [0, size - 1]).mean()
        assert clipped == pytest.approx(share, rel=0.4)


def test_bags_of_fixed_size():
    assert (collect(Random(**BAGS), 1000).lengths == (4, 1, 7)).all()


def test_bags_of_varying_size_are_uniform():
    lengths = collect(Random(**BAGS, fixed_hotness=False), 40_000).lengths
    for feature, hotness in enumerate(BAGS["hotness"]):
        counts = np.bincount(lengths[:, feature])
        assert counts[0] == 0 and len(counts) == hotness + 1
        if hotness > 1:
            assert stats.chisquare(counts[1:]).pvalue > 1e-4


def test_memory_does_not_grow_with_the_number_of_rows():
    def peak(num_blocks):
        source = Random(vocabulary_sizes=(50,), hotness=256, num_dense=1)
        tracemalloc.start()
        for _ in source.blocks(num_blocks * rows_per_block(256)):
            pass
        value = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return value

    assert peak(6) < 1.2 * peak(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "`seed` must be an integer of at least 0.*seed=-1"),
        ({"num_dense": 1.5}, "`num_dense` must be an integer .*num_dense=1.5"),
        ({"click_rate": 1.0}, "`click_rate` must be .* Received: click_rate=1.0"),
        ({"vocabulary_sizes": ()}, "must have at least one entry. Received: none"),
        ({"vocabulary_sizes": (5, 0)}, r"`vocabulary_sizes\[1\]` .*=0"),
        ({"vocabulary_sizes": (2**31,)}, "at most 2,147,483,647. .*2,147,483,648"),
        ({"distribution": "zipf"}, "`distribution` must be .*distribution='zipf'"),
        ({"hotness": 0}, "`hotness` must be an integer of at least 1.*hotness=0"),
        ({"hotness": (1, 2)}, "one for each of the 26 features. Received: 2 numbers"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Random(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_rows": 0}, "`num_rows` must be an integer of at least 1.*num_rows=0"),
        ({"num_rows": 1, "first_row": -1}, "`first_row` must .* first_row=-1"),
    ],
)
def test_bad_ranges(arguments, message):
    with pytest.raises(ValueError, match=message):
        Random().blocks(**arguments)


# Files


@pytest.mark.breadth(1)
@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "varying"])
@pytest.mark.parametrize("hotness", [1, (3, 1, 5, *[2] * 23)], ids=["one", "bags"])
def test_text_holds_the_generated_values(tmp_path, hotness, fixed):
    sizes = tuple(range(4, 30))
    source = Random(vocabulary_sizes=sizes, hotness=hotness, fixed_hotness=fixed)
    report = source.write(tmp_path / "log.tsv", 300, first_row=16_300)
    lines = (tmp_path / "log.tsv").read_text().splitlines()
    block = collect(source, 300, first_row=16_300)
    assert len(lines) == report.num_rows == 300
    ids = iter(block.ids.tolist())
    for row, line in enumerate(lines):
        label, *fields = line.split("\t")
        assert label == str(block.labels[row])
        expected = [str(int(1000 * float(value))) for value in block.dense[row]]
        assert fields[:13] == expected
        for feature in range(26):
            bag = [next(ids) for _ in range(block.lengths[row, feature])]
            texts = [str(category_text(feature + 1, i)) for i in bag]
            assert fields[13 + feature] == ",".join(texts)
    assert report.click_rate == block.labels.mean()


def test_text_is_read_back(tmp_path):
    source = Random(vocabulary_sizes=(50,) * 26, hotness=3, fixed_hotness=False)
    source.write(tmp_path / "log.tsv", 2000)
    rows = criteo_rows.read_block((tmp_path / "log.tsv").read_bytes())
    block = collect(source, 2000)
    assert rows.bad == []
    np.testing.assert_array_equal(rows.labels, block.labels)
    for feature, values in enumerate(rows.values):
        np.testing.assert_array_equal(values.lengths, block.lengths[:, feature])
    np.testing.assert_array_equal(
        np.stack(rows.numbers, axis=1), np.floor(block.dense * np.float32(1000))
    )


def test_empty_bags_are_empty_fields():
    from pipelines.synthetic.tsv import encode_bags

    text = encode_bags(
        np.asarray([1, 0]),
        np.asarray([[5], [12]]),
        np.asarray([7, 8, 9]),
        np.asarray([[0, 2, 0], [1, 0, 0]]),
    )
    second = f"{category_text(2, 7)},{category_text(2, 8)}"
    expected = f"1\t5\t\t{second}\t\n0\t12\t{category_text(1, 9)}\t\t\n"
    assert text == expected.encode()


def test_the_best_score_of_random_labels_is_known(tmp_path):
    report = Random(click_rate=0.3).write(tmp_path / "log.tsv", 1000)
    labels = np.array([int(s[0]) for s in (tmp_path / "log.tsv").open()])
    assert report.best_auc == 0.5
    expected = -np.log(np.where(labels == 1, 0.3, 0.7)).mean()
    assert report.best_log_loss == pytest.approx(expected, abs=1e-12)
    entropy = -0.3 * np.log(0.3) - 0.7 * np.log(0.7)
    assert report.expected_log_loss == pytest.approx(entropy, abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_dense": 4}, "13 dense and 26 .* Received: num_dense=4 and 26 voc"),
        ({"vocabulary_sizes": (9,)}, "Received: num_dense=13 and 1 vocabulary sizes"),
        ({"vocabulary_sizes": (2**27 + 1,) * 26}, r"below 2\*\*27.* 134,217,729"),
    ],
)
def test_what_does_not_fit_criteos_text(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        Random(**arguments).write(tmp_path / "log.tsv", 10)
    assert not list(tmp_path.iterdir())
