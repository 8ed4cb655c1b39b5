"""A picture of a search: the best value so far, and the value by each option."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

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
    for trial in filter(_is_complete, trials):
        best = trial.value if best is None else choose(best, trial.value)
        steps.append((trial.number + 1, best))
    steps.append((trials[-1].number + 1, best))
    axes.step(*zip(*steps), where="post", color=LINES[0], label="best so far")
    pictures.finish(axes, "trial")
    for axes, name in zip(others, names):
        values = [trial.user_attrs["config"][name] for trial in trials]
        if name.endswith("learning_rate"):
            axes.set_xscale("log")
            ticks = np.geomspace(min(values), max(values), 3)
            axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
            axes.minorticks_off()
        else:
            choices = sorted(set(map(_plain, values)))
            values = [choices.index(_plain(value)) for value in values]
            axes.set_xticks(range(len(choices)), [_to_text(c) for c in choices])
            axes.set_xlim(-0.5, len(choices) - 0.5)
        _scatter(axes, trials, values)
        pictures.finish(axes, name)
    for axes in figure.axes:
        axes.tick_params(axis="x", labelsize=8)
    for row in panels:
        row[0].set_ylabel(f"validation {monitor}", color=MUTED)
    pictures.put_legend(figure, 3, panels.flat[0].get_legend_handles_labels()[0])
    pictures.save(figure, path)


def _scatter(axes, trials, places):
    for label, color, is_complete in (
        ("complete", LINES[1], True),
        ("pruned", MUTED, False),
    ):
        points = [
            (place, trial.intermediate_values[trial.last_step])
            for trial, place in zip(trials, places)
            if _is_complete(trial) == is_complete
        ]
        if points:
            style = {"s": 26, "color": color, "label": label, "alpha": 0.8}
            axes.scatter(*zip(*points), **style)
    axes.grid(axis="y", color=GRID)


def _is_complete(trial):
    return trial.state.name == "COMPLETE"


def _plain(value):
    return tuple(value) if isinstance(value, list) else value


def _to_text(value) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
