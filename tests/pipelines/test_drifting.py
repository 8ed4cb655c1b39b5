"""`Drifting`: days of a log whose ids come and go, with known click probabilities."""

import json
import pathlib

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import pipelines
from pipelines import cli
from pipelines.synthetic import Drifting


def test_ids_come_and_go():
    source = Drifting(num_ids=5000, drift=0.1)
    days = [source.ids_of_day(day) for day in range(4)]
    for (before, old), (now, new) in zip(days, days[1:]):
        replaced = now != before
        assert abs(replaced.mean() - 0.1) < 0.01
        np.testing.assert_array_equal(now[replaced], before[replaced] + 1)
        np.testing.assert_array_equal(old == new, ~replaced)
    assert abs(days[3][1].std() - source.effect) < 0.02
    still = Drifting(num_ids=50, drift=0.0)
    assert (still.ids_of_day(9)[0] == 0).all()


def test_clicks_follow_the_probabilities():
    source = Drifting(num_ids=100, click_rate=0.2)
    rows, probabilities = source.day(3, 50_000)
    clicks = rows["click"].to_numpy()
    assert abs(clicks.mean() - probabilities.mean()) < 0.005
    bins = np.digitize(probabilities, np.quantile(probabilities, np.linspace(0, 1, 11)))
    for number in np.unique(bins):
        own = bins == number
        expected = probabilities[own].mean()
        assert abs(clicks[own].mean() - expected) < 5 * (0.25 / own.sum()) ** 0.5
    # A user's share of the logit, from two rows that differ only in it, is its effect.
    generation, effects = source.ids_of_day(3)
    names = {f"u{r}_{g}": e for r, (g, e) in enumerate(zip(generation[0], effects[0]))}
    logits = (
        np.log(probabilities / (1 - probabilities)) - 0.5 * rows["price"].to_numpy()
    )
    for place, column in ((1, "item"), (2, "page")):
        numbers = {
            f"{column[0]}{r}_{g}": e
            for r, (g, e) in enumerate(zip(generation[place], effects[place]))
        }
        logits -= [numbers[v] for v in rows[column].to_pylist()]
    logits -= [names[v] for v in rows["user"].to_pylist()]
    assert np.ptp(logits) < 1e-9  # what is left is the bias


def test_days_on_disk(tmp_path, capsys):
    folder = tmp_path / "days"
    command = ["generate", "--output", str(folder), "--days", "3", "--rows", "400"]
    assert cli.main([*command, "--drift", "0.5", "--seed", "7"]) in (0, None)
    assert "3 days of 400 rows" in capsys.readouterr().out
    reports = json.loads((folder / "report.json").read_text())
    schema = pipelines.Schema.load(folder / "schema.json")
    assert schema.has_growing and schema.time == "time"
    source = Drifting(seed=7, drift=0.5)
    for day, report in enumerate(reports):
        rows, probabilities = source.day(day, 400)
        lines = pathlib.Path(folder, f"day_{day:02d}.csv").read_text().splitlines()
        assert lines[0] == "click,time,price,user,item,page" and len(lines) == 401
        assert lines[1].split(",")[3] == rows["user"][0].as_py()
        auc = roc_auc_score(rows["click"].to_numpy(), probabilities)
        assert report["best_auc"] == pytest.approx(auc, abs=1e-3)  # of bins


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--drift", "0.1"], "needs --days"),
        (["--days", "2", "--drift", "2"], "--drift must be from 0"),
        (["--days", "0"], "--days must be"),
        (["--days", "2", "--source", "random"], "--source has no effect with --days"),
    ],
)
def test_what_is_refused(arguments, message, tmp_path, capsys):
    output = ["generate", "--output", str(tmp_path / "out"), "--rows", "10"]
    assert cli.main([*output, *arguments]) not in (0, None)
    assert message in capsys.readouterr().err.replace("\n", " ")
