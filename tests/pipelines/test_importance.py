"""`pipelines.evaluation.importance`: against scikit-learn, lines shuffled by hand, and
planted effects."""

import csv
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.run_folders import size_of
from sklearn.inspection import permutation_importance
from sklearn.metrics import log_loss, roc_auc_score

import tf_dlrm
from pipelines.evaluation import (
    FeatureImportance,
    Importance,
    evaluate,
    importance,
    importance_chart,
)
from pipelines.evaluation.held_rows import read_rows
from pipelines.evaluation.permutation_importance import (
    of_rows,
    permutations,
    score,
)
from pipelines.formats.parser import Parser
from pipelines.formats.reading import read
from pipelines.quarantine import Quarantine
from pipelines.schema import Dense, Label, Schema, Sparse
from pipelines.synthetic import Planted, SchemaLog
from pipelines.vocabulary import Vocabulary

NUM_ROWS, BATCH = 700, 256
ONE_HOT = Schema("click", [Dense("price"), Dense("age")], ["country", "item", "shop"])
BAGS = Schema(
    Label("click", soft=True),
    Dense("price"),
    ["country", Sparse("tags", separator="|", weight_separator=":")],
    weight="weight",
)


def write(path, columns):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return str(path)


def make_columns(num_rows=NUM_ROWS, seed=0):
    rng = np.random.default_rng(seed)
    columns = {
        "click": rng.integers(0, 2, num_rows).tolist(),
        "price": rng.normal(size=num_rows).round(3).tolist(),
        "age": rng.normal(size=num_rows).round(3).tolist(),
    }
    for name, size in (("country", 4), ("item", 30), ("shop", 9)):
        columns[name] = [f"{name}{n}" for n in rng.integers(0, size, num_rows)]
    return columns


def make_bag_columns():
    rng = np.random.default_rng(1)
    columns = make_columns()
    columns["click"] = rng.random(NUM_ROWS).round(3).tolist()
    columns["weight"] = rng.uniform(0.5, 3, NUM_ROWS).round(2).tolist()
    columns["tags"] = [
        "|".join(f"t{n}:{w:.2f}" for n, w in zip(row[:size], rng.uniform(1, 2, size)))
        for row, size in zip(
            rng.integers(0, 12, (NUM_ROWS, 4)), rng.integers(0, 5, NUM_ROWS)
        )
    ]
    return columns


def make_model(parser, interaction="dot", top=(8, 1), scale=1.0):
    """A model whose tables are large enough for shuffles to matter."""
    keras.utils.set_random_seed(0)
    spec = parser.spec(4)
    model = tf_dlrm.DLRM(spec, (8, 4), top, interaction=interaction)
    rng = np.random.default_rng(2)
    for table in spec.tables:
        shape = table.vocabulary_size, table.embedding_dim
        model.embedding.set_table(table.name, scale * rng.normal(size=shape))
    model.compile("sgd", **metrics_of(parser))
    return model


def metrics_of(parser):
    kind = "metrics" if parser.vocabulary.schema.weight is None else "weighted_metrics"
    metrics = tf_dlrm.metrics.click_metrics()
    return {kind: [metric for metric in metrics if metric.name != "accuracy"]}


@pytest.fixture(scope="module")
def one_hot(tmp_path_factory):
    path = tmp_path_factory.mktemp("one_hot") / "rows.csv"
    path = write(path, make_columns())
    parser = Parser(Vocabulary.build(path, schema=ONE_HOT, min_count=1))
    return make_model(parser), parser, path


class Estimator:
    """A model as scikit-learn takes it: rows of a matrix, numbers before ids."""

    def __init__(self, model):
        @tf.function(reduce_retracing=True)
        def step(dense, ids):
            features = {"dense_features": dense, "sparse_features": ids}
            return model(features, training=False)[:, 0]

        self._step = step

    def fit(self, x, y):
        """scikit-learn asks for it."""

    def predict(self, x):
        found = [
            self._step(
                tf.constant(x[i : i + BATCH, :2], tf.float32),
                tf.constant(x[i : i + BATCH, 2:], tf.int64),
            ).numpy()
            for i in range(0, len(x), BATCH)
        ]
        return np.concatenate(found)


def matrix(parser, path):
    batches = [b for b, _ in read(path, parser, BATCH)]
    dense = np.concatenate([b["dense_features"].numpy() for b in batches])
    ids = np.concatenate([b["sparse_features"].numpy() for b in batches])
    ids = ids.reshape(len(dense), -1)  # bags of one
    return np.concatenate([dense.astype(np.float64), ids], axis=1)


def test_scores_are_bit_equal_to_those_of_scikit_learn(one_hot):
    model, parser, path = one_hot
    found = importance(model, parser, path, repeats=4, seed=11, batch_size=BATCH)
    x, y = matrix(parser, path), np.array(make_columns()["click"])
    scoring = {
        "log_loss": lambda e, x, y: -score(y, e.predict(x))[0],
        "auc": lambda e, x, y: score(y, e.predict(x))[1],
    }
    expected = permutation_importance(
        Estimator(model), x, y, scoring=scoring, n_repeats=4, random_state=11
    )
    assert {f.name for f in found.features} == {
        "price",
        "age",
        *ONE_HOT.sparse_features,
    }
    names = [*ONE_HOT.dense_features, *ONE_HOT.sparse_features]
    for feature in found.features:
        place = names.index(feature.name)
        for values, name in ((feature.log_losses, "log_loss"), (feature.aucs, "auc")):
            assert list(values) == expected[name].importances[place].tolist()
        loss, auc = expected["log_loss"], expected["auc"]
        assert feature.log_loss_increase == loss.importances_mean[place]
        assert feature.log_loss_deviation == loss.importances_std[place]
        assert feature.auc_decrease == auc.importances_mean[place]
        assert feature.auc_deviation == auc.importances_std[place]
        assert abs(feature.log_loss_increase) > 1e-4  # shuffles matter
    increases = [f.log_loss_increase for f in found.features]
    assert increases == sorted(increases, reverse=True)


def test_groups_are_shuffled_together(one_hot):
    model, parser, path = one_hot
    groups = {"both": ["age", "item"]}
    found = importance(
        model, parser, path, ["item"], groups, repeats=2, seed=3, batch_size=BATCH
    )
    assert [f.name for f in found.features] == ["item"]
    (group,) = found.groups
    assert (group.name, group.kind, group.features) == (
        "both",
        "group",
        ("age", "item"),
    )
    x, y = matrix(parser, path), make_columns()["click"]
    estimator = Estimator(model)
    before = score(y, estimator.predict(x))
    for repeat, order in enumerate(permutations(NUM_ROWS, 2, 3)):
        shuffled = x.copy()
        shuffled[:, [1, 3]] = x[order][:, [1, 3]]  # age, item
        after = score(y, estimator.predict(shuffled))
        assert group.log_losses[repeat] == after[0] - before[0]
        assert group.aucs[repeat] == before[1] - after[1]


@pytest.mark.parametrize("is_weighted", [True, False], ids=["weighted", "plain"])
def test_scores_equal_those_of_scikit_learn(is_weighted):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 500)
    predictions = rng.integers(1, 40, 500) / 40  # with ties
    weights = rng.uniform(0, 3, 500) if is_weighted else None
    loss, auc = score(labels, predictions, weights)
    expected = log_loss(labels, predictions, sample_weight=weights)
    assert loss == pytest.approx(expected, rel=1e-12)
    expected = roc_auc_score(labels, predictions, sample_weight=weights)
    assert auc == pytest.approx(expected, rel=1e-12)
    assert math.isnan(score(np.ones(3), predictions[:3])[1])


def test_soft_labels_weights_and_bags_count_as_in_evaluate(tmp_path):
    """Files whose cells were shuffled by hand, evaluated as any other file."""
    columns = make_bag_columns()
    path = write(tmp_path / "rows.csv", columns)
    parser = Parser(Vocabulary.build(path, schema=BAGS, min_count=1))
    model = make_model(parser, scale=0.3)
    groups = {"both": ("country", "tags")}
    found = importance(model, parser, path, groups=groups, repeats=2)
    (group,) = found.groups
    before = evaluate(model, parser, path)
    assert found.log_loss == pytest.approx(before["log_loss"], rel=1e-6)
    # The metric's histogram counts two near predictions as a tie.
    assert found.auc == pytest.approx(before["auc"], abs=3e-4)
    for entry in (*found.features, group):
        for repeat, order in enumerate(permutations(NUM_ROWS, 2, 0)):
            shuffled = columns | {
                name: [columns[name][row] for row in order] for name in entry.features
            }
            after = evaluate(model, parser, write(tmp_path / "s.csv", shuffled))
            difference = after["log_loss"] - before["log_loss"]
            assert entry.log_losses[repeat] == pytest.approx(difference, abs=1e-6)
            difference = before["auc"] - after["auc"]
            assert entry.aucs[repeat] == pytest.approx(difference, abs=3e-4)
        assert entry.log_loss_deviation > 1e-5


def loss_of(model, labels, weights, dense, pooled):
    p = model.score(dense, pooled).numpy()[:, 0].astype(np.float64)
    losses = -(labels * np.log(p) + (1 - labels) * np.log1p(-p))
    return np.average(losses, weights=weights)


def test_the_first_order_is_a_derivative(tmp_path):
    """Moves the vectors of a feature towards their mean by a small step, and back."""
    columns = make_bag_columns()
    path = write(tmp_path / "rows.csv", columns)
    parser = Parser(Vocabulary.build(path, schema=BAGS, min_count=1))
    model = make_model(parser, scale=0.3)
    found = importance(model, parser, path, repeats=1, batch_size=BATCH)
    features = next(iter(read(path, parser, NUM_ROWS)))[0]
    batch = model.standardize(features)
    pooled = model.embedding(batch.ids, weights=batch.weights).numpy()
    dense = batch.dense.numpy()
    labels, weights = (np.array(columns[name]) for name in ("click", "weight"))
    step = 2e-2  # float32 cannot resolve a smaller change of the loss
    for feature in found.features:
        losses = []
        for t in (-step, step):
            moved, numbers = pooled.copy(), dense.copy()
            if feature.kind == "dense":
                array = numbers
            else:
                place = BAGS.sparse_features.index(feature.name)
                array = moved[:, place]
            array += t * (np.average(array, axis=0, weights=weights) - array)
            losses.append(loss_of(model, labels, weights, numbers, moved))
        slope = (losses[1] - losses[0]) / (2 * step)
        assert abs(slope) > 1e-4
        assert feature.taylor_first_order == pytest.approx(-slope, rel=0.03, abs=3e-5)


def test_the_second_order_in_closed_form(one_hot):
    """Where the logit is linear in the vectors, all rows have one gradient."""
    _, parser, path = one_hot
    model = make_model(parser, "cat", (1,), scale=0.5)
    groups = {"both": ["item", "shop"]}
    found = importance(model, parser, path, groups=groups, repeats=1, batch_size=BATCH)
    x, labels = matrix(parser, path), np.array(make_columns()["click"])
    pooled = model.embedding(x[:, 2:].astype(np.int64)).numpy().astype(np.float64)
    p = model.score(x[:, :2].astype(np.float32), pooled.astype(np.float32))
    p = p.numpy()[:, 0].astype(np.float64)
    kernel = model.top_mlp.weights[0].numpy()[:, 0].astype(np.float64)
    slopes = kernel[4:].reshape(3, 4)  # after the bottom MLP's vector
    logits = (pooled * slopes).sum(2)
    units = dict(zip(ONE_HOT.sparse_features, logits.T)) | {
        "both": logits[:, 1] + logits[:, 2]
    }
    entries = {f.name: f for f in (*found.features, *found.groups)}
    for name, own in units.items():
        shift = own.mean() - own
        first = (p - labels) * shift
        second = p * (1 - p) / 2 * (shift**2 + own.var())
        entry = entries[name]
        assert entry.taylor_first_order == pytest.approx(-first.mean(), abs=1e-6)
        expected = (first + second).mean()
        assert entry.taylor_second_order == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_planted_effects_stand_above_a_useless_column(tmp_path):
    schema = Schema("click", Dense("price", "log1p"), ["country", "item", "shop"])
    log = SchemaLog(schema, num_values=40)
    paths = {}
    for name, first, num_rows in (("train", 0, 24_000), ("valid", 24_000, 12_000)):
        log.write(tmp_path / f"{name}.csv", num_rows, first)
        with open(tmp_path / f"{name}.csv", newline="") as file:
            header, *rows = csv.reader(file)
        columns = dict(zip(header, zip(*rows)))
        rng = np.random.default_rng(first)
        columns["useless"] = [f"u{n}" for n in rng.integers(0, 8, num_rows)]
        paths[name] = write(tmp_path / f"{name}.csv", columns)
    schema = Schema("click", schema.dense, [*schema.sparse_features, "useless"])
    parser = Parser(Vocabulary.build(paths["train"], schema=schema, min_count=2))
    keras.utils.set_random_seed(0)
    model = tf_dlrm.DLRM(parser.spec(4), (8, 4), (16, 1))
    model.compile(keras.optimizers.Adagrad(0.05, 1e-6), **metrics_of(parser))
    model.fit(read(paths["train"], parser, 256), epochs=2, verbose=0)
    found = importance(model, parser, paths["valid"], repeats=10)
    *planted, last = found.features
    assert last.name == "useless"
    # The unshuffled rows are one more draw of shuffled ones.
    error = last.log_loss_deviation * math.sqrt(1 + 1 / 10)
    assert abs(last.log_loss_increase) < 4 * error
    assert abs(last.auc_decrease) < 4 * last.auc_deviation * math.sqrt(1 + 1 / 10)
    assert last.log_loss_deviation < 1e-3
    for feature in planted:
        assert feature.log_loss_increase > 10 * feature.log_loss_deviation
        assert feature.log_loss_increase > 4 * error
        assert feature.taylor_second_order > last.taylor_second_order


def test_the_first_rows_are_read(one_hot, tmp_path):
    model, parser, path = one_hot
    few = write(tmp_path / "few.csv", {k: v[:50] for k, v in make_columns().items()})
    first = importance(model, parser, path, ["item"], repeats=1, num_rows=50)
    alone = importance(model, parser, few, ["item"], repeats=1)
    assert first.features == alone.features and first.log_loss == alone.log_loss
    assert (first.are_all_rows, alone.are_all_rows) == (False, True)
    assert first.num_rows == alone.num_rows == 50
    assert next(first.table()).startswith(
        "Each feature shuffled once over the first 50"
    )
    assert "over all 50 rows" in next(alone.table())


MISTAKES = {
    "repeats": ({"repeats": 0}, "`repeats` must be at least 1. Received: 0"),
    "seed": ({"seed": -1}, "`seed` must be in"),
    "rows": ({"num_rows": 1}, "`num_rows` must be at least 2. Received: 1"),
    "feature": (
        {"features": ["price", "contry"]},
        "`features` must name features of the model. Received: 'contry'; did you mean "
        "country",
    ),
    "far feature": (
        {"features": ["zzz"]},
        "they are price, age, country, item, shop",
    ),
    "feature twice": ({"features": ["item", "item"]}, "names a feature twice: item"),
    "group": (
        {"groups": {"a": ["item", "shopp"]}},
        "Group 'a' in `groups` must contain features of the model. Received: 'shopp'",
    ),
    "empty group": ({"groups": {"a": []}}, "Group 'a' in `groups` has no features"),
    "group named as a feature": (
        {"groups": {"item": ["shop"]}},
        "has the name of a feature: item",
    ),
    "member twice": (
        {"groups": {"a": ["shop", "shop"]}},
        "names a feature twice: shop",
    ),
}


@pytest.mark.parametrize("options, message", MISTAKES.values(), ids=MISTAKES)
def test_wrong_arguments_are_refused(one_hot, options, message):
    with pytest.raises(ValueError) as raised:
        importance(*one_hot, **options)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_rows_that_cannot_be_ranked_are_refused(one_hot, tmp_path):
    model, parser, _ = one_hot
    columns = make_columns(20)
    one = write(tmp_path / "one.csv", {k: v[:1] for k, v in columns.items()})
    with pytest.raises(ValueError, match="at least 2 rows to shuffle. Received: 1 row"):
        importance(model, parser, one)
    same = write(tmp_path / "same.csv", columns | {"click": [1] * 20})
    with pytest.raises(ValueError, match="All 20 rows have the label 1.*`num_rows`"):
        importance(model, parser, same)
    none = write(tmp_path / "none.csv", {k: [] for k in columns})
    with pytest.raises(ValueError, match="none.csv"):
        importance(model, parser, none)


def test_a_model_of_nan_and_weights_of_zero_are_refused(tmp_path):
    columns = make_bag_columns()
    path = write(tmp_path / "rows.csv", columns)
    parser = Parser(Vocabulary.build(path, schema=BAGS, min_count=1))
    model = make_model(parser)
    rows = read_rows(parser, path, 100, Quarantine())
    rows.weights[:] = 0
    with pytest.raises(ValueError, match="have the sample weight 0"):
        of_rows(model, BAGS, rows, None, None, 1, 0, BATCH)
    weights = model.top_mlp.weights[-1]
    weights.assign(np.full(weights.shape, np.nan))
    with pytest.raises(ValueError, match="predicts NaN"):
        importance(model, parser, path)


def test_soft_labels_of_one_class_have_no_auc(tmp_path):
    columns = make_bag_columns()
    columns["click"] = [value / 4 for value in columns["click"]]
    path = write(tmp_path / "rows.csv", columns)
    parser = Parser(Vocabulary.build(path, schema=BAGS, min_count=1))
    found = importance(make_model(parser), parser, path, repeats=2)
    facts = json.loads(json.dumps(found.describe(), allow_nan=False))
    assert facts["auc"] is None and facts["features"][0]["auc_decrease"] is None
    assert facts["features"][0]["aucs"] == [None, None]
    assert all(line.split()[3] == "-" for line in list(found.table())[2:])
    importance_chart.draw(found, tmp_path / "one_panel.png")
    assert size_of(tmp_path / "one_panel.png")[0] > 1000


def make_entry(name, kind="sparse", value=0.01):
    values = (value, value + 0.001)
    return FeatureImportance(name, kind, (name,), values, values, value, value)


def test_a_chart_grows_with_the_features_up_to_forty(tmp_path):
    heights = []
    for count in (5, 40, 300):
        features = tuple(make_entry(f"${n}_") for n in range(count))
        groups = (make_entry("group", "group"),)
        found = Importance(features, groups, 0.4, 0.7, 9, True, 9, 2, 0)
        importance_chart.draw(found, tmp_path / "chart.png")
        heights.append(size_of(tmp_path / "chart.png")[1])
        assert len(list(found.table())) <= 2 + 60 + 1 + 3
    assert heights[0] < heights[1] == heights[2]
    assert "and 240 features of less importance" in list(found.table())


@pytest.mark.integration
def test_features_rank_as_the_true_probabilities_have_it(tmp_path):
    """What shuffling costs the model of the truth, and a trained one."""
    planted = Planted(seed=1, vocabulary_sizes=(30,) * 26)
    planted.write(tmp_path / "train.tsv", 80_000)
    planted.write(tmp_path / "valid.tsv", 20_000, first_row=80_000)
    paths = tmp_path / "train.tsv", tmp_path / "valid.tsv"
    parser = Parser(Vocabulary.build(paths[0], min_count=2))
    keras.utils.set_random_seed(0)
    model = tf_dlrm.DLRM(parser.spec(8), (16, 8), (32, 1))
    model.compile(keras.optimizers.Adagrad(0.05, 1e-6), **metrics_of(parser))
    model.fit(read(paths[0], parser, 512), epochs=2, verbose=0)
    found = importance(model, parser, paths[1], repeats=3)
    blocks = list(planted.blocks(20_000, 80_000))
    labels, integers, categories = (
        np.concatenate([getattr(block, name) for block in blocks])
        for name in ("labels", "integers", "categories")
    )
    before, _ = score(labels, planted.probabilities(integers, categories))
    truth = {}
    measured = {f.name: f.log_loss_increase for f in found.features}
    for name in measured:
        columns = integers.copy(), categories.copy()
        own, place = columns[name[0] == "C"], int(name[1:]) - 1
        (order,) = permutations(len(labels), 1, 0)
        own[:, place] = own[order, place]
        truth[name] = score(labels, planted.probabilities(*columns))[0] - before
    useless = [name for name in truth if truth[name] == 0]
    needed = [name for name in truth if truth[name] > 1e-3]
    assert len(useless) > 5 and len(needed) > 15
    assert max(measured[n] for n in useless) < min(measured[n] for n in needed)
    # A model of so few rows knows the interactions in part; they are on top even so.
    interacting = {name for pair in planted.pairs for name in pair}
    assert interacting <= {feature.name for feature in found.features[:8]}
    pairs = np.array([[truth[name], measured[name]] for name in needed]).T
    assert np.corrcoef(pairs)[0, 1] > 0.8
    for entry in found.features:  # the estimate from one backward pass
        if entry.name in needed:
            estimate = entry.taylor_second_order
            assert estimate == pytest.approx(entry.log_loss_increase, rel=0.4)
