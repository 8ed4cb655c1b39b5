"""Charts of plans and of predicted step times, drawn with matplotlib."""

from collections import defaultdict

from pipelines import pictures
from pipelines.pictures import GRID, INK, MUTED
from pipelines.text_tables import shorten_count
from tf_dlrm.runtime import format_bytes

COLORS = {
    "data_parallel": "#ced4da",
    "row_wise": "#d9480f",
    "column_wise": "#2b8a3e",
    "table_wise": "#1864ab",
    "auto": "#862e9c",
}
STACK = ("row_wise", "column_wise", "table_wise", "data_parallel")  # from the bottom
MAX_LABELLED_DEVICES = 16
LABELLED, SHOWN = 0.035, 0.012  # minimum shares of the highest bar to label, to draw


def draw_plan(plan, path=None):
    """Draw a `Plan`: bytes stored and bytes read by each device, stacked by table.

    Args:
        plan: The `Plan`.
        path: File to write, or `None`.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    width = min(max(10.5, 1.2 * plan.num_devices), 20.0)
    figure, (memory, lookups) = _start(width, 5.2, ncols=2)

    def held(load, shard):
        return load.memory_bytes(shard.num_rows, shard.num_columns)

    def read(load, shard):
        each = load.lookup_bytes(shard.num_rows, shard.num_columns)
        return each * plan.examples_of(shard)

    _draw_bars(memory, plan, held)
    _finish(memory, "Memory", f"max / mean {plan.imbalance:.3f}", "rows and state")
    _draw_bars(lookups, plan, read)
    imbalance = f"max / mean {plan.lookup_imbalance:.3f}"
    what = f"read for a batch of {plan.batch_size:,}"
    _finish(lookups, "Lookups", imbalance, what)
    _add_legend(figure, plan)
    if path is not None:
        pictures.save(figure, path)
    return figure


def draw_scaling(rows, path=None):
    """Draw the result of `costs.scaling`: rows/s by devices, a panel for each link.

    Args:
        rows: The list of dicts that `costs.scaling` returned.
        path: File to write, or `None`.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    links = list(dict.fromkeys(row["link"] for row in rows))
    figure, panels = _start(3.3 * len(links) + 0.6, 4.2, ncols=len(links), sharey=True)
    for axes, link in zip(panels, links):
        lines = defaultdict(list)
        for row in rows:
            if row["link"] == link:
                point = row["num_devices"], row["samples_per_second"]
                lines[row["placement"]].append(point)
        for name, points in lines.items():
            style = {"linewidth": 2.6, "zorder": 3} if name == "auto" else {}
            color = MUTED if name == "data_parallel" else COLORS[name]
            axes.plot(*zip(*points), "o-", color=color, label=name, ms=4, **style)
        devices = sorted({row["num_devices"] for row in rows})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(devices, [str(number) for number in devices])
        axes.minorticks_off()
        axes.set_xlabel("devices", color=MUTED)
        axes.grid(color=GRID)
        axes.yaxis.set_major_formatter(lambda value, _: shorten_count(value))
        pictures.finish(axes, link)
    panels[0].set_ylabel("predicted rows/s", color=MUTED)
    pictures.put_legend(figure, 5, panels[0].get_legend_handles_labels()[0])
    if path is not None:
        pictures.save(figure, path)
    return figure


def _draw_bars(axes, plan, measure):
    from matplotlib.ticker import MaxNLocator

    parts = [_parts(plan, device, measure) for device in range(plan.num_devices)]
    sums = [sum(value for *_, value in own) for own in parts]
    highest = max(max(sums), 1)
    for device, own in enumerate(parts):
        bottom = 0.0
        for kind, name, value in _merge_small(own, SHOWN * highest):
            axes.bar(
                device,
                value,
                bottom=bottom,
                width=0.8,
                color=COLORS[kind],
                edgecolor="white",
                linewidth=0.8 if plan.num_devices <= MAX_LABELLED_DEVICES else 0,
            )
            named = value >= LABELLED * highest and kind != "data_parallel"
            if named and plan.num_devices <= MAX_LABELLED_DEVICES:
                axes.text(
                    device,
                    bottom + value / 2,
                    name if len(name) <= 9 else f"{name[:8]}…",
                    ha="center",
                    va="center",
                    fontsize=7.5 if plan.num_devices <= 8 else 6,
                    color="white",
                )
            bottom += value
    mean = sum(sums) / len(sums)
    axes.axhline(mean, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
    axes.annotate(
        "mean",
        (1, mean),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=INK,
    )
    axes.set_ylim(0, highest * 1.05)
    axes.yaxis.set_major_locator(MaxNLocator(steps=(1, 2, 5, 10)))
    axes.set_xlim(-0.6, plan.num_devices - 0.4)
    step = -(-plan.num_devices // MAX_LABELLED_DEVICES)
    axes.set_xticks(range(0, plan.num_devices, step))
    axes.set_xlabel("device", color=MUTED)


def _parts(plan, device, measure):
    """Return `(kind, table, value)` of a device's shards, largest first by kind."""
    parts = [
        (shard.kind, shard.table, measure(plan.load(shard.table), shard))
        for shard in plan.shards_on(device)
    ]
    return sorted(parts, key=lambda part: (STACK.index(part[0]), -part[2]))


def _merge_small(parts, least):
    """Merge parts that are too thin to see, and all data-parallel tables, by kind."""
    for kind in STACK:
        own = [part for part in parts if part[0] == kind]
        shown = [part for part in own if part[2] >= least and kind != "data_parallel"]
        yield from shown
        rest = [part for part in own if part not in shown]
        if rest:
            name = rest[0][1] if len(rest) == 1 else f"{len(rest)} tables"
            yield kind, name, sum(value for *_, value in rest)


def _start(width, height, **panels):
    figure = pictures.start(width, height)
    return figure, figure.subplots(squeeze=False, **panels)[0]


def _finish(axes, title, note, what):
    text = lambda value, _: format_bytes(value).replace(".0 ", " ")  # noqa: E731
    axes.yaxis.set_major_formatter(text)
    axes.grid(axis="y", color=GRID)
    axes.set_title(note, loc="right", color=MUTED, fontsize=9, pad=10)
    axes.set_ylabel(what, color=MUTED)
    pictures.finish(axes, title)


def _add_legend(figure, plan):
    from matplotlib.patches import Patch

    counts = defaultdict(int)
    for load in plan.tables:
        counts[plan.placement(load.name)] += 1
    handles = [
        Patch(
            color=COLORS[kind],
            label=f"{kind} ({counts[kind]} table{'s' * (counts[kind] > 1)})",
        )
        for kind in STACK
        if counts[kind]
    ]
    pictures.put_legend(figure, 5, handles)
