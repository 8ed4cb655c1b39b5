"""Medians, ratios to the peers, and their tables."""

import statistics
from collections.abc import Sequence

from pipelines import text_tables
from pipelines.benchmark.jobs import OPTIMIZERS, Job
from pipelines.benchmark.workloads import SCALING_ROWS
from pipelines.text_tables import shorten_count

_COLUMNS = {
    "samples_per_s": "rows/s",
    "ms_per_step_p50": "ms p50",
    "ms_per_step_p90": "ms p90",
    "peak_rss_mb": "peak MB",
}
# Arms of tf_dlrm, and the precisions of the peers to compare them with.
_COMPARISONS = (
    ("tf_dlrm", "float32"),
    ("tf_dlrm_bf16", "float32"),
    ("tf_dlrm_bf16", "bfloat16"),
)


def summarize(lines: Sequence[dict], job: Job) -> dict:
    """Return the summary of a workload: medians of the rounds by arm, and ratios.

    Args:
        lines: The result of `runner.run_rounds`.
        job: The `Job` that was measured.

    Returns:
        `arms`: for each arm the median of the rounds, or its `failed` or `absent`;
        `ratios`: for each comparison of an arm of tf_dlrm with peers of one precision,
        the ratio of its rows/s to those of the fastest peer, in each round
        (`rounds`) and as the median of rounds (`median`).
    """
    ratios = [
        ratio
        for arm, precision in _COMPARISONS
        if (ratio := _compare(lines, arm, precision))
    ]
    return {
        "kind": "summary",
        "workload": job.workload.name,
        "mode": job.mode,
        "batch_size": job.batch_size,
        "optimizer": job.optimizer if job.mode == "train" else None,
        "arms": {name: _median(own) for name, own in _by_arm(lines).items()},
        "ratios": ratios,
    }


def _by_arm(lines):
    arms = {}
    for line in lines:
        arms.setdefault(line["arm"], []).append(line)
    return arms


def _median(lines):
    good = [line for line in lines if "samples_per_s" in line]
    if not good:
        return {k: v for k, v in lines[-1].items() if k in ("failed", "absent")}
    names = (*_COLUMNS, "table_mb", "state_mb")
    medians = {n: statistics.median(line[n] for line in good) for n in names}
    failed = {k: v for k, v in lines[-1].items() if k == "failed"}
    versions = good[-1].get("versions", {})
    return medians | failed | {"num_rounds": len(good), "versions": versions}


def _compare(lines, arm, precision):
    """Return the ratios of an arm to the fastest peer of each round, or `None`."""
    rounds, peers = [], set()
    for number in sorted({line["round"] for line in lines}):
        speeds = {
            line["arm"]: line
            for line in lines
            if line["round"] == number and "samples_per_s" in line
        }
        others = {
            name: line["samples_per_s"]
            for name, line in speeds.items()
            if not name.startswith("tf_dlrm") and line["precision"] == precision
        }
        if arm not in speeds or not others:
            continue
        peers |= set(others)
        ratio = speeds[arm]["samples_per_s"] / max(others.values())
        best = max(others, key=others.get)
        rounds.append({"round": number, "best_peer": best, "ratio": round(ratio, 4)})
    if not rounds:
        return None
    return {
        "arm": arm,
        "peer_precision": precision,
        "peers": sorted(peers),
        "rounds": rounds,
        "median": round(statistics.median(r["ratio"] for r in rounds), 4),
    }


def summarize_scaling(lines: Sequence[dict], job: Job) -> dict:
    """Return the cost of a step as tables grow: ms by optimizer and rows, and ratios.

    Args:
        lines: The result of `runner.run_rounds` for arms that `scaling_jobs` named.
        job: Any of their jobs.

    Returns:
        `arms` as in `summarize`; `optimizers`: for each optimizer, `ms` and `extra_mb`
        (peak memory without tables and state) by rows (`"10k"`), and `ratios` such as
        `"10M/10k"`, the median over rounds of the ratio of ms.
    """
    arms = _by_arm(lines)
    sizes = [shorten_count(rows) for rows in SCALING_ROWS]
    optimizers = {}
    for optimizer in OPTIMIZERS:
        figures = {"ms": {}, "extra_mb": {}, "ratios": {}}
        by_round = {}
        for size in sizes:
            own = arms.get(f"tf_dlrm {optimizer} {size}", [])
            good = [line for line in own if "samples_per_s" in line]
            if not good:
                continue
            by_round[size] = {line["round"]: line["ms_per_step_p50"] for line in good}
            figures["ms"][size] = statistics.median(by_round[size].values())
            figures["extra_mb"][size] = round(
                statistics.median(
                    line["peak_rss_mb"] - line["table_mb"] - line["state_mb"]
                    for line in good
                ),
                1,
            )
        for small, large in zip(sizes, sizes[1:]):
            a, b = by_round.get(small, {}), by_round.get(large, {})
            ratios = [b[number] / a[number] for number in a if number in b]
            if ratios:
                name = f"{large}/{small}"
                figures["ratios"][name] = round(statistics.median(ratios), 4)
        if figures["ms"]:
            optimizers[optimizer] = figures
    return {
        "kind": "summary",
        "workload": "scaling",
        "mode": job.mode,
        "batch_size": job.batch_size,
        "arms": {name: _median(own) for name, own in arms.items()},
        "optimizers": optimizers,
    }


def make_table(summary: dict) -> tuple[list[str], list[list[str]]]:
    """Return the headings and rows of a summary as text."""
    if "optimizers" in summary:
        return _scaling_table(summary)
    precisions = [
        p
        for p in ("float32", "bfloat16")
        if any(ratio["peer_precision"] == p for ratio in summary["ratios"])
    ]
    headings = ["arm", *_COLUMNS.values(), *(f"x best {p} peer" for p in precisions)]
    rows = []
    for name, values in summary["arms"].items():
        if "samples_per_s" not in values:
            reason = values.get("absent") or f"failed: {values.get('failed')}"
            rows.append([name, reason] + [""] * (len(headings) - 2))
            continue
        digits = {"ms_per_step_p50": 3, "ms_per_step_p90": 3}
        cells = [f"{values[c]:,.{digits.get(c, 0)}f}" for c in _COLUMNS]
        ratios = {
            r["peer_precision"]: r["median"]
            for r in summary["ratios"]
            if r["arm"] == name
        }
        cells += [f"{ratios[p]:.2f}" if p in ratios else "" for p in precisions]
        late = f" (failed: {values['failed']})" if "failed" in values else ""
        rows.append([name + late, *cells])
    return headings, rows


def _scaling_table(summary):
    sizes = [shorten_count(rows) for rows in SCALING_ROWS]
    pairs = [f"{large}/{small}" for small, large in zip(sizes, sizes[1:])]
    headings = ["optimizer", *(f"ms {s}" for s in sizes), *pairs]
    headings += [f"extra MB {s}" for s in sizes]
    rows = []
    for name, figures in summary["optimizers"].items():
        cells = [_cell(figures["ms"].get(s), 3) for s in sizes]
        cells += [_cell(figures["ratios"].get(p), 2) for p in pairs]
        cells += [_cell(figures["extra_mb"].get(s), 0) for s in sizes]
        rows.append([name, *cells])
    for name, values in summary["arms"].items():
        if "failed" in values:
            failed = f"failed: {values['failed']}"
            rows.append([name, failed] + [""] * (len(headings) - 2))
    return headings, rows


def _cell(value, digits):
    return "" if value is None else f"{value:,.{digits}f}"


def describe_run(summary: dict) -> str:
    """Return a line on workload and machine."""
    machine = summary["machine"]
    optimizer = f" with {summary['optimizer']}" if summary.get("optimizer") else ""
    return (
        f"{summary['workload']}, {summary['mode']}{optimizer}, batch "
        f"{summary['batch_size']:,}; {machine['cores']} cores, "
        f"{machine['instruction_set']}, {machine['memory_gb']} GB, {machine['date']}"
    )


def to_markdown(table, summary: dict) -> str:
    """Return a table as Markdown, with a line on workload and machine above it."""
    return f"{describe_run(summary)}\n\n{text_tables.to_markdown(*table)}\n"


def print_table(summary: dict) -> None:
    """Print a summary's table on the terminal."""
    import rich.box
    import rich.console
    import rich.table
    import rich.text

    headings, rows = make_table(summary)
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left")
    for row in rows:
        style = "bold" if row[0].startswith("tf_dlrm_") or row[0] == "tf_dlrm" else ""
        table.add_row(*(rich.text.Text(cell, style=style) for cell in row))
    console = rich.console.Console()
    console.print(describe_run(summary), highlight=False, markup=False, soft_wrap=True)
    console.print(table)
