"""A bar chart of what each feature is worth, with error bars."""

import math

from pipelines import pictures
from pipelines.evaluation.importance_report import Importance
from pipelines.pictures import GRID, INK, MUTED

COLORS = {"dense": "#1098ad", "sparse": "#1864ab", "group": "#d9480f"}
_KINDS = {"dense": "dense feature", "sparse": "sparse feature", "group": "group"}
_MOST_BARS = 40
_BAR, _MARGINS, _WIDTH = 0.26, 1.9, 9.0  # inches
_LONGEST_NAME = 28


def draw(importance: Importance, path) -> None:
    """Draw the increase of the log loss and the decrease of the AUC.

    The chart has the 40 most important features, and all groups on top.

    Args:
        importance: The importance.
        path: PNG file to write.
    """
    groups = importance.groups[:_MOST_BARS]
    features = importance.features[:_MOST_BARS]
    entries = [*groups, *features]
    has_auc = not math.isnan(importance.auc)
    figure = pictures.start(_WIDTH, _MARGINS + _BAR * len(entries))
    panels = figure.subplots(1, 1 + has_auc, sharey=True, squeeze=False)[0]
    _draw_bars(panels[0], entries, "log_loss_increase", "log_loss_deviation")
    pictures.finish(panels[0], "Increase of the log loss")
    panels[0].set_yticks(range(len(entries)), [_name(e.name) for e in entries])
    panels[0].set_ylim(len(entries) - 0.4, -0.6)
    if has_auc:
        _draw_bars(panels[1], entries, "auc_decrease", "auc_deviation")
        pictures.finish(panels[1], "Decrease of the AUC")
    for axes in panels:
        axes.tick_params(axis="x", labelsize=9, colors=MUTED)
        axes.tick_params(axis="y", labelsize=9, colors=INK)
        axes.locator_params(axis="x", nbins=5)
    _put_legend(figure, entries)
    caption = _caption(importance, len(features))
    pictures.put_caption(figure, caption)
    pictures.save(figure, path)


def _draw_bars(axes, entries, value, deviation):
    values = [getattr(entry, value) for entry in entries]
    axes.barh(
        range(len(entries)),
        values,
        xerr=[getattr(entry, deviation) for entry in entries],
        height=0.66,
        color=[COLORS[entry.kind] for entry in entries],
        error_kw={"ecolor": INK, "elinewidth": 1.1, "capsize": 2},
    )
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.grid(axis="x", color=GRID)


def _put_legend(figure, entries):
    from matplotlib.patches import Patch

    kinds = [kind for kind in COLORS if any(entry.kind == kind for entry in entries)]
    if len(kinds) > 1:
        handles = [Patch(color=COLORS[kind], label=_KINDS[kind]) for kind in kinds]
        pictures.put_legend(figure, len(kinds), handles, "outside upper right")


def _caption(importance, num_shown):
    times = "once" if importance.repeats == 1 else f"{importance.repeats} times"
    parts = [f"{importance.num_rows:,} rows, each feature shuffled {times}"]
    if importance.repeats > 1:
        parts.append("lines: a standard deviation to each side")
    left_out = len(importance.features) - num_shown
    if left_out:
        parts.append(f"{left_out:,} less important features left out")
    return "; ".join(parts)


def _name(text):
    short = text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 3]}..."
    return pictures.plain(short)
