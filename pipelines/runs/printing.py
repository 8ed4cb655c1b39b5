"""Results of a run, for people."""


def print_metrics(metrics: dict, truth: dict | None = None) -> None:
    """Print metrics as a table, beside the best possible ones where known."""
    best = {}
    if truth:
        best = {"auc": truth["best_auc"], "log_loss": truth["best_log_loss"]}
    print(f"{'metric':<24}{'value':>12}" + (f"{'best possible':>16}" if best else ""))
    for name, value in metrics.items():
        if name.removeprefix("val_") == "loss":
            continue  # log_loss says the same
        text = f"{value:,}" if isinstance(value, int) else f"{value:.5f}"
        known = f"{best[name]:>16.5f}" if best.get(name) is not None else ""
        print(f"{name:<24}{text:>12}{known}")


def print_training(metrics: dict) -> None:
    """Print the metrics of a training's last epoch beside those of its validation."""
    names = [n for n in metrics if n != "loss" and not n.startswith("val_")]
    validated = any(f"val_{name}" in metrics for name in names)
    title = f"{'metric':<20}{'training':>12}"
    print(title + (f"{'validation':>12}" if validated else ""))
    for name in names:
        columns = [metrics[name], metrics.get(f"val_{name}")]
        print(f"{name:<20}" + "".join(f"{v:>12.5f}" for v in columns if v is not None))


def describe_stalls(seconds: list[float]) -> str:
    """For how long checkpoints held a training up, in words."""
    if not seconds:
        return "no checkpoint was written"
    return (
        f"{len(seconds)} checkpoints held it up for {sum(seconds):.1f} s "
        f"(the longest {max(seconds):.2f} s)"
    )
