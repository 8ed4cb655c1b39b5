"""A picture of a search: the best value so far, and the value by each option."""

import math
from collections.abc import Sequence
from typing import Any

from pipelines import pictures
from pipelines.pictures import GRID, LINES, MUTED

_PANELS_PER_ROW, _WIDTH, _HEIGHT = 3, 10.0, 2.6  # inches, the height of a row


def draw(trials: Sequence[Any], names: Sequence[str], monitor: str, path) -> None:
    """Draw the values of trials by their number and by each option.

    Args:
        trials: The complete and the pruned trials, in order.
        names: The options that vary.
        monitor: Name of the value: `"auc"`, of which the largest is best, or a loss.
        path: PNG file to write.
    """
    num_rows = math.ceil((1 + len(names)) / _PANELS_PER_ROW)
    figure = pictures.start(_WIDTH, _HEIGHT * num_rows)
    panels = figure.subplots(num_rows, _PANELS_PER_ROW, sharey=True, squeeze=False)
    for axes in panels.flat[1 + len(names) :]:
        axes.remove()
    axes, *others = panels.flat[: 1 + len(names)]
    _scatter(axes, trials, [trial.number + 1 for trial in trials])
    choose, best, steps = max if monitor == "auc" else min, None, []
    for trial in trials:
        if trial.value is not None:
            best = trial.value if best is None else choose(best, trial.value)
            steps.append((trial.number + 1, best))
    axes.step(*zip(*steps), where="post", color=LINES[0], label="best so far")
    pictures.finish(axes, "trial")
    for axes, name in zip(others, names):
        values = [trial.user_attrs["config"][name] for trial in trials]
        if all(isinstance(value, float) and value > 0 for value in values):
            axes.set_xscale("log")
        else:
            texts = [_to_text(value) for value in values]
            order = sorted(set(zip(values, texts)))
            places = {text: place for place, (_, text) in enumerate(order)}
            values = [places[text] for text in texts]
            axes.set_xticks(range(len(places)), places)
        _scatter(axes, trials, values)
        pictures.finish(axes, name)
    for row in panels:
        row[0].set_ylabel(f"validation {monitor}", color=MUTED)
    pictures.put_legend_below(figure, 3, panels.flat[0].get_legend_handles_labels()[0])
    pictures.save(figure, path)


def _scatter(axes, trials, places):
    for label, color, is_complete in (
        ("complete", LINES[1], True),
        ("pruned", MUTED, False),
    ):
        points = [
            (place, trial.intermediate_values[trial.last_step])
            for trial, place in zip(trials, places)
            if (trial.value is not None) == is_complete and trial.last_step
        ]
        if points:
            style = {"s": 26, "color": color, "label": label, "alpha": 0.8}
            axes.scatter(*zip(*points), **style)
    axes.grid(axis="y", color=GRID)
    axes.tick_params(axis="x", labelsize=8)


def _to_text(value) -> str:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
