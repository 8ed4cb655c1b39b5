"""The time of a run by use: steps, input, validation, checkpoints, the rest."""

import dataclasses

from pipelines.reports.logs import LogFile
from pipelines.reports.runs import Run

STEPS, WAITING, VALIDATION = "steps", "waiting for input", "validation"
CHECKPOINTS, REST = "checkpoints", "rest"


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of a run; `None` is not known.

    Attributes:
        total: From the first step to the last line of the log, or to the saved model.
            Of a resumed run the sum over its processes, lost steps included.
        trained: In training, with the wait for input and checkpoints amid an epoch.
        waited: In steps that stood without a batch.
        validated: In validation.
        saved: In checkpoints.
        saved_amid: In those of them that are amid an epoch.
        num_saved: Number of checkpoints.
        samples_per_second: Of the training.
        num_processes: How often it was begun and resumed; 0 if there is no log.
    """

    total: float | None
    trained: float | None
    waited: float | None
    validated: float | None
    saved: float | None
    saved_amid: float
    num_saved: int
    samples_per_second: float | None
    num_processes: int

    @property
    def input_wait_share(self) -> float | None:
        """Share of the training in which steps stood without a batch."""
        if self.waited is None or not self.trained:
            return None
        return self.waited / self.trained

    def parts(self) -> dict[str, float]:
        """The total in its parts; empty where it is not known.

        The validations of a run that is not finished are in the rest.
        """
        if self.total is None or self.trained is None:
            return {}
        found = {
            STEPS: max(self.trained - (self.waited or 0.0) - self.saved_amid, 0.0),
            WAITING: self.waited or 0.0,
            VALIDATION: self.validated or 0.0,
            CHECKPOINTS: self.saved or 0.0,
        }
        return found | {REST: max(self.total - sum(found.values()), 0.0)}


def measure(run: Run) -> Times:
    """Find out where the time of a run went.

    The last process of a finished run is in `metrics.json`; others, and the wait for
    input, are known by their logs alone.

    Args:
        run: The run.
    """
    processes = _find_processes(run)
    results = run.results or {}
    if not processes and not results:
        return Times(None, None, None, None, None, 0.0, 0, None, 0)
    total = sum(each.seconds for each in processes)
    trained = sum(each.trained for each in processes)
    rate = None
    if trained:
        rate = run.batch_size * sum(each.num_steps for each in processes) / trained
    waits = [each.waited for each in processes if each.waited is not None]
    waited = sum(waits) if waits else None
    saves = [seconds for each in processes for seconds in each.saves.values()]
    amid = [
        seconds
        for each in processes
        for step, seconds in each.saves.items()
        if step not in _ends(run)
    ]
    if results:
        last = processes[-1] if processes else _Process()
        known = results.get("training_seconds", last.trained)
        total += results["seconds"] - last.seconds
        trained += known - last.trained
        if last.waited is not None and last.trained:
            waited += last.waited * (known / last.trained - 1.0)
        if len(processes) < 2:
            saves = results.get("checkpoint_seconds", saves)
            rate = results.get("samples_per_second", rate)
    return Times(
        total,
        trained,
        waited,
        results.get("validation_seconds"),
        sum(saves),
        sum(amid),
        len(saves),
        rate,
        len(processes),
    )


def _ends(run):
    """Steps between epochs; a finished run may have ended before the last of them."""
    ends = {run.first_step, *run.epoch_ends}
    return ends | {run.last_step} if run.is_finished else ends


@dataclasses.dataclass
class _Process:
    """Return the seconds and steps of one process of a run, from its logs."""

    seconds: float = 0.0
    num_steps: int = 0
    trained: float = 0.0
    waited: float | None = None
    saves: dict[int, float] = dataclasses.field(default_factory=dict)


def _find_processes(run):
    starts = [file.start for file in run.root or run.train]
    found, saved = [], [run.first_step]
    for start, end in zip(starts, [*starts[1:], float("inf")]):
        files = [
            file
            for file in (*run.root, *run.train, *run.validation)
            if start <= file.start < end
        ]
        process = _Process(max(file.end for file in files) - start)
        for file in run.train:
            if start <= file.start < end:
                _add(process, file, max(saved), run)
        found.append(process)
        saved += process.saves
    return found


def _add(process: _Process, file: LogFile, begin: int, run: Run) -> None:
    """Add a file of a training that began at a step.

    An entry is of the steps since the one before; the last of an epoch is of all of
    the epoch.
    """
    process.saves |= {e.step: e.value for e in file.get("speed/checkpoint_seconds")}
    rates = file.get("speed/samples_per_second")
    shares = [entry.value for entry in file.get("speed/input_wait_share")]
    if not shares:  # several steps at once: the wait is not known
        shares = [None] * len(rates)
    rates = rates[: len(shares)]  # the file may end between the two
    ends = _ends(run)
    spans = []  # (last step, steps, seconds, share of them)
    for i, (rate, share) in enumerate(zip(rates, shares)):
        before = spans[-1][0] if spans else begin
        is_last = i + 1 == len(rates) or rates[i + 1].step > rate.step
        if is_last and rate.step in ends:
            before = max(begin, *(end for end in ends if end < rate.step))
            spans = [span for span in spans if span[0] <= before]
        steps = max(rate.step - before, 0)
        seconds = steps * run.batch_size / max(rate.value, 1e-9)
        spans.append((rate.step, steps, seconds, share))
    process.num_steps += sum(steps for _, steps, _, _ in spans)
    process.trained += sum(seconds for _, _, seconds, _ in spans)
    if spans and spans[0][3] is not None:
        waited = sum(seconds * share for _, _, seconds, share in spans)
        process.waited = (process.waited or 0.0) + waited
