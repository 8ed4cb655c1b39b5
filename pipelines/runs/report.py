"""Results of a run, for people."""


def print_metrics(metrics: dict, truth: dict | None = None) -> None:
    """Prints metrics as a table, beside the best possible ones where known."""
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
