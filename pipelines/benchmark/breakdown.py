"""The time of a training step by operation, from TensorFlow's trace."""

import collections
import heapq
import pathlib
import re
from collections.abc import Iterable

from pipelines.benchmark.trace_format import make_trace

IDLE = "input and Python"
OTHER = "other"
# The first pattern that matches the name of an operation decides. Scopes of compiled
# kernels come first, as their names also contain that of the layer around them.
PATTERNS = (
    (r"embedding_lookup", "embedding lookup"),
    (r"embedding_update", "embedding update"),
    (r"dense_optimizer", "dense optimizer"),
    (r"gradient_tape/.*embedding", "embedding update"),
    (r"interaction|BatchMatMul", "interaction"),
    (r"bottom_mlp", "bottom MLP"),
    (r"top_mlp", "top MLP"),
    (r"ResourceScatter|ResourceSparseApply|UnsortedSegment", "embedding update"),
    (r"embedding(_\d+)?/", "embedding lookup"),
    (r"(sgd|adagrad|adam|ftrl)(_\d+)?/|ResourceApply", "dense optimizer"),
    (
        r"binary_crossentropy|compile_loss|logistic_loss|log_loss|click_auc|auc"
        r"|calibration|normalized_entropy|accuracy|metrics?/|Sigmoid|/mean",
        "loss and metrics",
    ),
    (r"Iterator|Dataset", IDLE),
)
CATEGORIES = (
    "embedding lookup",
    "embedding update",
    "bottom MLP",
    "top MLP",
    "interaction",
    "loss and metrics",
    "dense optimizer",
    IDLE,
    OTHER,
)
_OPERATION = re.compile(r"^[\w.][\w./>-]*:_?[A-Z]\w*$")
_STEP = re.compile(r"^EagerLocalExecute: __inference_\w*on_iterator")
_CALL = "ExecutorState::ProcessAsync::Start"
_KERNEL = "CpuExecutable::ExecuteAsyncOnStream"
_WRAPPERS = re.compile(r":(StatefulPartitionedCall|PartitionedCall|While|If)$")


def categorize(operation: str) -> str:
    """Return the category of an operation, such as `"top MLP"`, by `PATTERNS`."""
    for pattern, category in PATTERNS:
        if re.search(pattern, operation):
            return category
    return OTHER


def split_time(
    events: Iterable[tuple[float, float, int, str]], start: float, end: float
) -> dict[str, float]:
    """Divide an interval of wall time among the operations that ran in it.

    At each moment the innermost operation of each thread runs; threads that run at the
    same time share the moment equally. A moment without operations is `IDLE`.

    Args:
        events: `(start, end, thread, category)`, all in the same unit of time.
        start: Start of the interval.
        end: End of the interval.

    Returns:
        Time by category, in the same unit; the sum is `end - start`.

    Example:

    >>> from pipelines.benchmark.breakdown import split_time
    >>> events = [(0.0, 4.0, 1, "top MLP"), (2.0, 6.0, 2, "interaction")]
    >>> split_time(events, 0.0, 10.0)
    {'top MLP': 3.0, 'interaction': 3.0, 'input and Python': 4.0}
    """
    marks = []
    for number, (begin, finish, thread, category) in enumerate(events):
        begin, finish = max(begin, start), min(finish, end)
        if begin < finish:
            marks.append((begin, 1, number, thread, category))
            marks.append((finish, 0, number, thread, category))
    marks.sort()
    open_events = collections.defaultdict(dict)  # thread -> {number: category}
    totals = collections.defaultdict(float)
    now = start
    for at, opens, number, thread, category in [*marks, (end, 0, -1, None, "")]:
        if at > now:
            running = [
                next(reversed(stack.values()))
                for stack in open_events.values()
                if stack
            ]
            for each in running or [IDLE]:
                totals[each] += (at - now) / max(len(running), 1)
            now = at
        if opens:
            open_events[thread][number] = category
        elif thread is not None:
            open_events[thread].pop(number)
    return dict(totals)


def read_trace(folder, steps_per_execution: int = 1) -> dict:
    """Return milliseconds and shares of a step by category.

    Args:
        folder: Folder to which `tf.profiler.experimental.start` wrote.
        steps_per_execution: Number of steps in each call in the trace.

    Returns:
        `{"ms_per_step": {...}, "share": {...}, "num_steps": int,
        "ms_lookup_beside_bottom_mlp": float, "other": [...]}`, where `other` has the
        names of the longest operations that no pattern matches.

    Raises:
        ValueError: If there is no trace, or it contains too few steps.
    """
    events, starts = _read_events(folder)
    if len(starts) < 3:
        raise ValueError(
            f"The trace must contain at least three steps. Received: {len(starts)}"
        )
    # The first execution contains the start of `fit`; others extend to the next one.
    first, last = starts[1], starts[-1]
    num_steps = (len(starts) - 2) * steps_per_execution
    threads = [(s, e, line, categorize(name)) for s, e, line, name in events]
    totals = split_time(threads, first, last)
    unknown = collections.Counter()
    for begin, finish, _, name in events:
        if categorize(name) == OTHER:
            unknown[name] += (finish - begin) / num_steps
    whole = last - first
    return {
        "ms_per_step": {
            name: round(totals.get(name, 0.0) / num_steps, 4) for name in CATEGORIES
        },
        "share": {name: round(totals.get(name, 0.0) / whole, 4) for name in CATEGORIES},
        "num_steps": num_steps,
        "ms_lookup_beside_bottom_mlp": round(
            time_beside(threads, first, last, "embedding lookup", "bottom MLP")
            / num_steps,
            4,
        ),
        "other": heapq.nlargest(5, unknown, key=unknown.get),
    }


def time_beside(
    events: Iterable[tuple[float, float, int, str]],
    start: float,
    end: float,
    one: str,
    other: str,
) -> float:
    """Return the time in which operations of two categories run at the same time.

    Args:
        events: `(start, end, thread, category)`, all in the same unit of time.
        start: Start of the interval.
        end: End of the interval.
        one: A category.
        other: Another category.

    Returns:
        Time in which at least one operation of each category runs, on different
        threads.

    Example:

    >>> from pipelines.benchmark.breakdown import time_beside
    >>> events = [(0.0, 4.0, 1, "top MLP"), (2.0, 6.0, 2, "interaction")]
    >>> time_beside(events, 0.0, 10.0, "top MLP", "interaction")
    2.0
    """
    marks = []
    for begin, finish, _, category in events:
        begin, finish = max(begin, start), min(finish, end)
        if category in (one, other) and begin < finish:
            marks += [(begin, 1, category), (finish, -1, category)]
    running, total, now = collections.Counter(), 0.0, start
    for at, change, category in sorted(marks):
        if running[one] and running[other]:
            total += at - now
        now = at
        running[category] += change
    return total


def _read_events(folder):
    """Return operations as `(start, end, thread, name)` in ms, and starts of steps."""
    paths = sorted(pathlib.Path(folder).rglob("*.xplane.pb"))
    if not paths:
        raise ValueError(f"TensorFlow's profiler wrote no trace to {folder}.")
    space = make_trace()
    space.ParseFromString(paths[-1].read_bytes())
    events, starts = [], []
    for plane in space.planes:
        if "CPU" not in plane.name:
            continue
        for thread, line in enumerate(plane.lines):
            own = _read_line(plane, line)
            starts += [begin for begin, _, name in own if _STEP.match(name)]
            events += [
                (begin, finish, thread, name)
                for begin, finish, name in own
                if _OPERATION.match(name) and not _WRAPPERS.search(name)
            ]
    # Outer operations before inner ones that start at the same time.
    events.sort(key=lambda event: (event[0], -event[1]))
    return events, sorted(starts)


def _read_line(plane, line):
    """Return the events of a thread as `(start, end, name)`.

    XLA kernels have the name of the operation that calls them, which in the trace is an
    event around them.
    """
    names, stats = plane.event_metadata, plane.stat_metadata
    found, calls = [], []  # calls: operations that are running at this point
    for event in sorted(line.events, key=lambda e: (e.offset_ps, -e.duration_ps)):
        name = names[event.metadata_id].name.split("#")[0]
        begin = line.timestamp_ns / 1e6 + event.offset_ps / 1e9
        finish = begin + event.duration_ps / 1e9
        while calls and calls[-1][1] <= begin:
            calls.pop()
        if name == _CALL:
            operation = next(
                (s.str_value or stats[s.ref_value].name)
                for s in event.stats
                if stats[s.metadata_id].name == "name"
            )
            calls.append((begin, finish, f"{operation}:XlaLaunch"))
        elif name == _KERNEL and calls:
            found.append(calls[-1])
        else:
            found.append((begin, finish, name))
    return found
