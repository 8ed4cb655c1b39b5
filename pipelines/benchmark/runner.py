"""Run rounds of all arms in turn, and write the results."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Sequence

from pipelines.benchmark import charts, machine, results
from pipelines.benchmark.arms import Arm, run_arm
from pipelines.benchmark.jobs import MEGABYTE, OPTIMIZERS, Job
from pipelines.benchmark.workloads import (
    SCALING_ROWS,
    scaling_workload,
)
from pipelines.runtime import locks
from pipelines.text_tables import shorten_count
from pipelines.whole_files import write_text

SPARE_BYTES = 2**30  # memory of a process in addition to tables and their state
BUSY_CORES = 0.2  # a round with more cores used by others is marked as disturbed


def run_rounds(
    arms: Sequence[Arm],
    num_rounds: int,
    keep: Callable[[dict], None] = lambda line: None,
    show: Callable[[str], None] = print,
) -> list[dict]:
    """Run all arms in each round, so that disturbances of the machine affect all.

    Args:
        arms: The arms. An arm that failed is not run again.
        num_rounds: Number of rounds.
        keep: Function that is called with each line of the results at once.
        show: Function that is called with a line to print after each arm.

    Returns:
        A line for each arm and round: `arm`, `round` and the result of the arm, or
        `failed`; an absent arm has one line with `absent`.
    """
    lines, failed = [], set()

    def add(line):
        lines.append(line)
        keep(line)

    for arm in arms:
        if arm.absent:
            add({"kind": "round", "arm": arm.name, "round": 0, "absent": arm.absent})
            show(f"{arm.name}: {arm.absent}")
    present = [arm for arm in arms if not arm.absent]
    start, done = time.perf_counter(), 0
    for number in range(1, num_rounds + 1):
        for arm in present:
            if arm.name in failed:
                continue
            line = {"kind": "round", "arm": arm.name, "round": number}
            line |= _run_watched(arm)
            add(line)
            done += 1
            if "failed" in line:
                failed.add(arm.name)
            going = len(present) - len(failed)
            behind = [a for a in present[present.index(arm) + 1 :]]
            left = sum(a.name not in failed for a in behind)
            left += (num_rounds - number) * going
            seconds = (time.perf_counter() - start) / done * left
            show(
                f"round {number}/{num_rounds}  {arm.name:<12} {describe(line)}"
                + (f"  ({seconds:,.0f} s left)" if left else "")
            )
    return lines


def _run_watched(arm):
    """Run an arm, and add `other_cores`, the cores that other processes used.

    On a shared core, OpenMP's barriers make a peer many times slower, so the ratios of
    such a round are meaningless.
    """
    busy, children = machine.busy_seconds(), machine.children_seconds()
    start = time.perf_counter()
    result = run_arm(arm)
    other = machine.busy_seconds() - busy - (machine.children_seconds() - children)
    other = max(other / (time.perf_counter() - start), 0.0)
    return result | {"other_cores": round(other, 2)}


def describe(line: dict) -> str:
    """Return the result of an arm in a few words."""
    if "failed" in line:
        return f"failed: {line['failed']}"
    speed = f"{line['samples_per_s']:>11,.0f} rows/s"
    text = f"{speed}  {line['ms_per_step_p50']:>9,.3f} ms"
    if "total_seconds" in line:
        text += f"  {line['total_seconds']:,.1f} s in total"
    if line.get("other_cores", 0.0) > BUSY_CORES:
        text += f"  BUSY: other processes used {line['other_cores']:.1f} cores"
    return text


def run_benchmark(
    arms: Sequence[Arm],
    num_rounds: int,
    out,
    profiled: Sequence[Arm] = (),
    show: Callable[[str], None] = print,
) -> dict:
    """Measure, and write results.jsonl, table.md, chart.png and optional breakdowns.

    Args:
        arms: The arms.
        num_rounds: Number of rounds.
        out: Folder to write to; files of an earlier benchmark are replaced.
        profiled: Arms to run once more, with jobs that ask for a profile.
        show: Function that is called with each line to print.

    Returns:
        The summary, as in results.jsonl.
    """
    out = pathlib.Path(out)
    with locks.locked(out):
        return _run(arms, num_rounds, out, profiled, show)


def _run(arms, num_rounds, out, profiled, show):
    job = arms[0].job
    with open(out / "results.jsonl", "w") as file:

        def keep(line):
            file.write(json.dumps(line) + "\n")
            file.flush()

        lines = run_rounds(arms, num_rounds, keep, show)
        make = results.summarize
        if job.workload.name == "scaling":
            make = results.summarize_scaling
        summary = make(lines, job) | {"machine": machine.describe()}
        keep(summary)
    table = results.make_table(summary)
    write_text(out / "table.md", results.to_markdown(table, summary), "the table")
    if any("samples_per_s" in line for line in lines):
        charts.draw_summary(summary, out / "chart.png")
    if profiled:
        _write_breakdown(profiled, out, show)
    return summary


def _write_breakdown(profiled, out, show):
    found = {}
    for arm in profiled:
        result = run_arm(arm)
        show(f"profile  {arm.name:<12} {describe(result)}")
        if "breakdown" in result:
            found[arm.name] = result["breakdown"]
    text = json.dumps(found, indent=2) + "\n"
    write_text(out / "breakdown.json", text, "the breakdown")
    if found:
        charts.draw_breakdown(found, profiled[0].job, out / "breakdown.png")


def scaling_jobs(base: Job, free_bytes: int) -> tuple[list[tuple[str, Job]], list[str]]:
    """Return the jobs of the scaling workload, and a line for each skipped one.

    Args:
        base: Job with all options except workload and optimizer.
        free_bytes: Bytes of memory that a process can use.

    Returns:
        `(arm name, job)` for each optimizer and number of rows that fits in memory, and
        a line for each that does not.
    """
    jobs, skipped = [], []
    for optimizer in OPTIMIZERS:
        for rows in SCALING_ROWS:
            workload = scaling_workload(rows)
            needed = workload.table_bytes + workload.state_bytes(optimizer)
            needed += SPARE_BYTES
            name = f"tf_dlrm {optimizer} {shorten_count(rows)}"
            if rows == SCALING_ROWS[-1] and needed > free_bytes:
                skipped.append(
                    f"{name}: skipped, as it needs {needed / MEGABYTE:,.0f} MB but "
                    f"only {free_bytes / MEGABYTE:,.0f} MB are free"
                )
                continue
            changes = {"workload": workload, "optimizer": optimizer}
            jobs.append((name, dataclasses.replace(base, **changes)))
    return jobs, skipped
