"""Notes for readers of a report: what is missing, what cannot be compared."""

from collections.abc import Sequence

from pipelines.reports.runs import Run
from pipelines.reports.times import Times

NO_PROFILE = (
    "No run has a profile of its steps: train with the option `profile_steps` for one."
)
_SAMPLING = "negative_sampling_rate"
_MOST_NAMES = 4


def of_runs(
    runs: Sequence[Run], measured: Sequence[Times], differing: Sequence[str]
) -> list[str]:
    """The notes on some runs, one line each.

    Args:
        runs: The runs.
        measured: Where the time of each went.
        differing: Names of the options in which they differ.
    """
    lines = [_unfinished(run) for run in runs if not run.is_finished]
    lines += [
        f"{run.label} ended early: {run.results['stopped']}."
        for run in runs
        if run.is_finished and run.results.get("stopped")
    ]
    if len(runs) > 1 and not differing:
        lines.append("The runs do not differ in any option.")
    lines += [
        f"{run.label}: validation and training loss are those of its best model, "
        f"of step {run.results['best']['step']:,}."
        for run in runs
        if run.is_finished and _saved_an_earlier_model(run.results)
    ]
    for what, without in (
        ("No steps.csv, so no curve but by epochs, and no wait for input",
         [run for run in runs if not run.steps]),
        ("No validation",
         [run for run in runs if not run.scalars("validation", "loss")]),
        ("Not evaluated (tf-dlrm evaluate --model RUN --input FILE)",
         [run for run in runs if run.evaluation is None]),
        ("Without a reliability table of the evaluation",
         [run for run in runs if run.evaluation is not None and not run.bins]),
    ):  # fmt: skip
        if without:
            lines.append(f"{what}: {_names(without, len(runs))}.")
    if any(times.num_processes > 1 for times in measured):
        again = [run for run, t in zip(runs, measured) if t.num_processes > 1]
        lines.append(
            f"Interrupted and resumed: {_names(again, len(runs))}. Its time is that of "
            "all its processes, lost steps included."
        )
    validated = [run for run in runs if run.scalars("validation", "loss")]
    if _differ(validated, _validation_rows) or _differ(
        [run for run in validated if run.is_finished],
        lambda run: run.results.get("num_valid_rows"),
    ):
        lines.append("The runs were not validated on the same rows.")
    evaluated = [run for run in runs if run.evaluation is not None]
    if _differ(evaluated, lambda run: run.evaluation["num_rows"]):
        lines.append("The runs were not evaluated on the same rows.")
    if _SAMPLING in differing:
        lines.append(
            "Training losses are of other samples of the negatives: they cannot be "
            "compared."
        )
    return lines


def incomparable(differing: Sequence[str]) -> tuple[str, ...]:
    """Names of the measures in which no run is better than another."""
    return ("training_loss",) if _SAMPLING in differing else ()


def _unfinished(run):
    name = run.label
    if run.last_step == run.first_step:
        return f"{name} is not finished, and its logs hold no step yet."
    losses = run.scalars("train", "loss")
    if losses and losses[max(losses)] != losses[max(losses)]:
        return f"{name} is not finished: its loss became not a number."
    of = f" of {run.epoch_ends[-1]:,}" if run.epoch_ends else ""
    return (
        f"{name} is not finished: its logs end at step {run.last_step:,}{of}. Its "
        "values are the last ones there."
    )


def _saved_an_earlier_model(results):
    best, last = results.get("best"), results.get("last")
    return (
        results.get("saved_model") == "best" and best and best["step"] != last["step"]
    )


def _validation_rows(run):
    if run.options["progressive"]:  # each day, before it is trained on
        return run.options["train"]
    return run.options["valid"]


def _names(runs, number):
    if len(runs) == number > 1:
        return "all runs"
    names = [run.label for run in runs[:_MOST_NAMES]]
    more = len(runs) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _differ(runs, key):
    values = [key(run) for run in runs]
    return any(value != values[0] for value in values)
