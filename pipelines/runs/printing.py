"""Print the results of a run."""

from pipelines.text_tables import align


def print_metrics(metrics: dict, truth: dict | None = None) -> None:
    """Print metrics as a table, with the best possible values if they are known."""
    best = {}
    if truth:
        best = {"auc": truth["best_auc"], "log_loss": truth["best_log_loss"]}
    rows = [["metric", "value", "best possible" if best else ""]]
    for name, value in metrics.items():
        if name.removeprefix("val_") == "loss":
            continue  # same as log_loss
        text = f"{value:,}" if isinstance(value, int) else f"{value:.5f}"
        known = f"{best[name]:.5f}" if best.get(name) is not None else ""
        rows.append([name, text, known])
    print(*align(rows), sep="\n")


def print_training(metrics: dict) -> None:
    """Print the training and validation metrics of the last epoch side by side."""
    names = [n for n in metrics if n != "loss" and not n.startswith("val_")]
    validated = any(f"val_{name}" in metrics for name in names)
    rows = [["metric", "training", "validation" if validated else ""]]
    for name in names:
        values = (metrics.get(key) for key in (name, f"val_{name}"))
        rows.append([name, *("" if v is None else f"{v:.5f}" for v in values)])
    print(*align(rows), sep="\n")


def describe_stalls(seconds: list[float]) -> str:
    """Return a phrase on how long checkpoints interrupted the training."""
    if not seconds:
        return "no checkpoint was written"
    return (
        f"{len(seconds)} checkpoints took {sum(seconds):.1f} s "
        f"(longest: {max(seconds):.2f} s)"
    )
