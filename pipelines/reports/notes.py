"""Notes of a report, on missing data and on values that cannot be compared."""

from collections.abc import Sequence

from pipelines.reports.runs import Run
from pipelines.reports.times import Times

NO_PROFILE = (
    "No run has a profile of its steps: train with the option `profile_steps` to get "
    "one."
)
_SAMPLING = "negative_sampling_rate"
_MOST_NAMES = 4


def of_runs(
    runs: Sequence[Run], measured: Sequence[Times], differing: Sequence[str]
) -> list[str]:
    """Return the notes on some runs, one line each.

    Args:
        runs: The runs.
        measured: The `Times` of each run.
        differing: Names of the options that differ between runs.
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
        f"{run.label}: validation and training losses are those of its best model, "
        f"at step {run.results['best']['step']:,}."
        for run in runs
        if run.is_finished and _saved_an_earlier_model(run.results)
    ]
    for problem, without in (
        ("No steps.csv, so only one point per epoch and no wait for input",
         [run for run in runs if not run.steps]),
        ("No validation",
         [run for run in runs if not run.scalars("validation", "loss")]),
        ("Not evaluated (tf-dlrm evaluate --model RUN --input FILE)",
         [run for run in runs if run.evaluation is None]),
        ("No reliability table of the evaluation",
         [run for run in runs if run.evaluation is not None and not run.bins]),
    ):  # fmt: skip
        if without:
            lines.append(f"{problem}: {_names(without, len(runs))}.")
    if any(times.num_processes > 1 for times in measured):
        again = [run for run, t in zip(runs, measured) if t.num_processes > 1]
        lines.append(
            f"Interrupted and resumed: {_names(again, len(runs))}. The time is that of "
            "all processes of the run, including lost steps."
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
            "Training losses cannot be compared: the runs sampled negatives at "
            "different rates."
        )
    return lines


def incomparable(differing: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the measures that cannot be compared."""
    return ("training_loss",) if _SAMPLING in differing else ()


def _unfinished(run):
    name = run.label
    if run.last_step == run.first_step:
        return f"{name} is not finished, and its logs contain no steps yet."
    losses = run.scalars("train", "loss")
    if losses and losses[max(losses)] != losses[max(losses)]:
        return f"{name} is not finished: its loss became NaN."
    of = f" of {run.epoch_ends[-1]:,}" if run.epoch_ends else ""
    return (
        f"{name} is not finished: its logs end at step {run.last_step:,}{of}. The "
        "table shows the last values in the logs."
    )


def _saved_an_earlier_model(results):
    best, last = results.get("best"), results.get("last")
    return (
        results.get("saved_model") == "best" and best and best["step"] != last["step"]
    )


def _validation_rows(run):
    if run.options["progressive"]:  # each day is validated on before training on it
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
