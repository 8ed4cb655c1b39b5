"""Permutation importance: what a model loses if a feature's values are shuffled.

# n rows, U units: features and groups of features
"""

import difflib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipelines.evaluation import row_sources, taylor
from pipelines.evaluation.held_rows import HeldRows, read_rows
from pipelines.evaluation.importance_report import FeatureImportance, Importance
from pipelines.files import Paths
from pipelines.progress import bar
from pipelines.quarantine import Quarantine
from pipelines.runtime import UserError

NUM_ROWS = 100_000
BATCH_SIZE = 4096
_EPSILON = 1e-7  # as in the metric LogLoss
_LARGEST_SEED = 2**32 - 1


def importance(
    model,
    parser,
    paths: Paths,
    features: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    repeats: int = 5,
    seed: int = 0,
    num_rows: int = NUM_ROWS,
    batch_size: int = BATCH_SIZE,
    quarantine: Quarantine | None = None,
    split: str = "test",
) -> Importance:
    """Return how much worse a model predicts if the values of features are shuffled.

    The first `num_rows` rows are read into memory, as numbers and ids. For each feature
    and each repeat, its cells are shuffled over the rows and all rows are scored. The
    difference to the log loss and AUC of the unshuffled rows is the importance of the
    feature: it is about zero for a feature that the model does not need. Sample weights
    and soft labels count as in `evaluate`.

    Args:
        model: A `DLRM`.
        parser: The parser with the vocabulary of the model.
        paths: Labelled files, or one folder of records. Use rows that the model was not
            trained on.
        features: Names of features; default: all.
        groups: Features to shuffle together, by name of the group. If two features
            carry the same information, neither is important alone, but both are.
        repeats: Number of times that each feature is shuffled.
        seed: Seed of the permutations, which are those of scikit-learn's
            `permutation_importance` with this `random_state`; all features share them.
        num_rows: Largest number of rows to read. Default: 100,000.
        batch_size: Rows in a step.
        quarantine: Collects bad rows of files; default: `Quarantine()`.
        split: Name of the split, for records.

    Returns:
        The `Importance`, with an estimate from one backward pass for comparison.

    Raises:
        ValueError: If an argument is out of range, a feature is unknown, the labels are
            of one class, or there are fewer than two rows.
        pipelines.quarantine.BadRowsError: If too many rows are bad.

    Reference:
        Breiman 2001, Random forests, section 10. The estimate is described in
        `pipelines/evaluation/taylor.py`.
    """
    schema = parser.vocabulary.schema
    check(schema, features, groups, repeats, seed, num_rows)
    quarantine = Quarantine() if quarantine is None else quarantine
    rows = read_rows(parser, paths, num_rows, quarantine, split)
    return of_rows(model, schema, rows, features, groups, repeats, seed, batch_size)


def check(schema, features, groups, repeats: int, seed: int, num_rows: int) -> None:
    """Check the arguments of `importance` before any row is read.

    Raises:
        ValueError: If one is wrong; the message names it.
    """
    names = (*schema.dense_features, *schema.sparse_features)
    if repeats < 1:
        raise UserError(f"`repeats` must be at least 1. Received: {repeats}")
    if num_rows < 2:
        raise UserError(f"`num_rows` must be at least 2. Received: {num_rows}")
    if not 0 <= seed <= _LARGEST_SEED:
        raise UserError(f"`seed` must be in [0, 2^32). Received: {seed}")
    for name in features or ():
        _check_feature("`features` must name features of the model", name, names)
    _check_distinct("`features`", features or ())
    for group, members in (groups or {}).items():
        if not members:
            raise UserError(f"Group '{group}' in `groups` has no features.")
        if group in names:
            raise UserError(
                f"A group in `groups` has the name of a feature: {group}. Choose "
                "another name."
            )
        for name in members:
            rule = f"Group '{group}' in `groups` must contain features of the model"
            _check_feature(rule, name, names)
        _check_distinct(f"Group '{group}' in `groups`", members)


def _check_feature(rule, name, names):
    if name not in names:
        near = difflib.get_close_matches(name, names, 3)
        known = ", ".join(names[:60]) + (", ..." if len(names) > 60 else "")
        hint = f"did you mean {' or '.join(near)}?" if near else f"they are {known}."
        raise UserError(f"{rule}. Received: {name!r}; {hint}")


def _check_distinct(where, names):
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise UserError(f"{where} names a feature twice: {repeated[0]}")


def of_rows(
    model, schema, rows: HeldRows, features, groups, repeats, seed, batch_size
) -> Importance:
    """Return the importance of features for rows in memory, as `importance` does."""
    if len(rows) < 2:
        raise UserError(
            f"Importance needs at least 2 rows to shuffle. Received: {len(rows)} row"
        )
    _check_classes(rows, schema.label.soft)
    names = (*schema.dense_features, *schema.sparse_features)
    features = names if features is None else features
    units = {name: (name,) for name in features}
    units |= {name: tuple(members) for name, members in (groups or {}).items()}
    columns = [[names.index(f) for f in members] for members in units.values()]
    predict = _make_predict(model, schema, rows, batch_size)
    losses, aucs = (np.zeros((len(units), repeats)) for _ in range(2))
    total = len(units) * repeats * len(rows)
    with bar("Scoring shuffled rows", total, note="compiling") as update:
        before = score(rows.labels, predict(lambda done: None), rows.weights)
        if math.isnan(before[0]):
            raise UserError(
                "The model predicts NaN for some rows, so that its log loss is NaN: "
                "its training diverged."
            )
        for repeat, order in enumerate(permutations(len(rows), repeats, seed)):
            for unit, places in enumerate(columns):
                first = (repeat * len(units) + unit) * len(rows)
                progress = functools.partial(_add, update, first)
                predictions = predict(progress, order, places)
                after = score(rows.labels, predictions, rows.weights)
                losses[unit, repeat] = after[0] - before[0]
                aucs[unit, repeat] = before[1] - after[1]
    slopes, estimates = taylor.estimate(model, schema, rows, columns, batch_size)
    entries = [
        FeatureImportance(
            name,
            _kind(schema, name, len(features), unit),
            members,
            tuple(losses[unit].tolist()),
            tuple(aucs[unit].tolist()),
            float(slopes[unit]),
            float(estimates[unit]),
        )
        for unit, (name, members) in enumerate(units.items())
    ]

    def ordered(entries):
        return tuple(sorted(entries, key=lambda entry: -entry.log_loss_increase))

    return Importance(
        ordered(entries[: len(features)]),
        ordered(entries[len(features) :]),
        *before,
        len(rows),
        rows.are_all,
        rows.num_bytes,
        repeats,
        seed,
    )


def _add(update, first, done):
    update(first + done)


def _kind(schema, name, num_features, unit):
    if unit >= num_features:
        return "group"
    return "dense" if name in schema.dense_features else "sparse"


def _check_classes(rows, are_soft):
    labels = rows.labels if rows.weights is None else rows.labels[rows.weights > 0]
    if not len(labels):
        raise UserError("All rows have the sample weight 0, so no row counts.")
    if labels.min() == labels.max():
        raise UserError(
            f"All {len(rows):,} rows have the label {labels[0]:g}, so there is nothing "
            "to rank. Read rows of both classes, or more of them: `num_rows`."
        )


def permutations(num_rows: int, repeats: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the permutations of rows, int64 `(n,)`, one for each repeat.

    They are those of scikit-learn's `permutation_importance` with the seed as its
    `random_state`: it shuffles one array of positions again and again, and applies it
    to a column that is already shuffled.
    """
    seed = np.random.RandomState(seed).randint(np.iinfo(np.int32).max + 1)
    random = np.random.RandomState(seed)
    shuffle = np.arange(num_rows)
    order = np.arange(num_rows)
    for _ in range(repeats):
        random.shuffle(shuffle)
        order = order[shuffle]
        yield order


def score(
    labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray | None = None
) -> tuple[float, float]:
    """Return the log loss and the AUC of predictions, both in float64.

    Args:
        labels: Labels in [0, 1], `(n,)`. For the AUC, a label above 0.5 is a click.
        predictions: Probabilities `(n,)`; the log loss clips them to
            `[1e-7, 1 - 1e-7]`.
        weights: Sample weights `(n,)`; `None`: 1 each.

    Returns:
        The mean log loss, and the share of pairs of a click and another row in which
        the click has the higher prediction, ties counting half; NaN without pairs.
    """
    labels = np.asarray(labels, np.float64)
    predictions = np.asarray(predictions, np.float64)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights)
    p = np.clip(predictions, _EPSILON, 1 - _EPSILON)
    losses = -(labels * np.log(p) + (1 - labels) * np.log1p(-p))
    loss = float(np.average(losses, weights=weights))
    order = np.argsort(predictions)
    ordered = predictions[order]
    # Rows with equal predictions are one run.
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    is_click = labels[order] > 0.5
    clicks = np.add.reduceat(np.where(is_click, weights[order], 0.0), starts)
    others = np.add.reduceat(np.where(is_click, 0.0, weights[order]), starts)
    pairs = clicks.sum() * others.sum()
    if not pairs:
        return loss, math.nan
    below = np.cumsum(others) - others
    return loss, float((clicks * (below + 0.5 * others)).sum() / pairs)


def _make_predict(model, schema, rows, batch_size):
    """Return a function that predicts all rows, with some columns in another order."""
    score_batch = row_sources.make_step(
        model, schema, rows.expand, lambda _, predictions: predictions
    )

    def predict(progress, order=None, columns=()):
        predictions = np.empty(len(rows), np.float32)
        for first in range(0, len(rows), batch_size):
            batch = rows.read(first, first + batch_size, order, columns)
            tensors = row_sources.tensors(batch, 0, batch_size)
            last = first + len(batch.labels)
            predictions[first:last] = score_batch(*tensors[:4]).numpy()
            progress(last)
        return predictions

    return predict
