"""Growing tables on days whose ids come and go, compared with fixed tables.

    python benchmarks/growing_days.py --days 30 --out results/growing_days.json

Each model is evaluated on a day before it is trained on it (`tf-dlrm train
--progressive`). All tables have the same number of rows, so the same memory:

- growing: ids claim rows, and the one that was seen least recently gives its row up;
- hashed: values are hashed into the rows, so values share rows;
- first day: a vocabulary of the first day; all later values share row 0.

The best possible AUC of each day is known, because the clicks are generated.
"""

import argparse
import json
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from pipelines.runs import RunConfig, train
from pipelines.synthetic import Drifting

GREEN, BLUE, ORANGE, GREY = "#2a7f4f", "#3b6fb6", "#d1792b", "#777777"


def measure(source, num_days, num_rows, rows, folder):
    """Return the AUC of each day but the first, by kind of table."""
    days = folder / "days"
    best = [report.best_auc for report in source.write_days(days, num_days, num_rows)]
    paths = sorted(str(path) for path in days.glob("day_*.csv"))
    schemas = {
        "growing": source.schema({"rows": rows}),
        "hashed": source.schema(None, hash_buckets=rows),
        "first day": source.schema(None, min_count=1),
    }
    config = RunConfig(
        embedding_dim=8,
        bottom_mlp_dims=(8,),
        top_mlp_dims=(1,),
        interaction="cat",
        batch_size=256,
        learning_rate=0.01,
        embedding_learning_rate=0.1,
        initial_embedding_limit=0.001,
        jit_compile="off",
    )
    results = {"best": best[1:]}
    for name, schema in schemas.items():
        _, found = train(
            config, paths, None, folder / name, schema=schema, progressive=True
        )
        results[name] = [day["auc"] for day in found["days"]]
        if "growing" in found:
            results["tables"] = found["growing"]
        print(name, [round(auc, 4) for auc in results[name]], flush=True)
    return results


def draw(results, path):
    """Draw the AUC of each day."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    days = range(2, len(results["best"]) + 2)
    for name, label, color in (
        ("best", "best possible", GREY),
        ("growing", "growing ids", GREEN),
        ("hashed", "hashed, same memory", BLUE),
        ("first day", "first day's vocabulary", ORANGE),
    ):
        style = "--" if name == "best" else "-"
        axes.plot(days, results[name], style, color=color, label=label, lw=1.8)
    axes.set_xlabel("day")
    axes.set_ylabel("AUC before training on the day")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    look = {"frameon": False, "ncols": 4, "columnspacing": 1.2, "fontsize": 9}
    figure.legend(loc="outside upper left", **look)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--ids", type=int, default=1000)
    parser.add_argument("--drift", type=float, default=0.01)
    parser.add_argument("--table-rows", type=int, default=1300)
    parser.add_argument("--out")
    parser.add_argument("--picture")
    options = parser.parse_args()
    source = Drifting(num_ids=options.ids, drift=options.drift)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(
            source,
            options.days,
            options.rows,
            options.table_rows,
            pathlib.Path(folder),
        )
    facts = {k: v for k, v in vars(options).items() if k not in ("out", "picture")}
    text = json.dumps({"options": facts, **results}, indent=1)
    if options.out:
        pathlib.Path(options.out).write_text(text + "\n")
    if options.picture:
        draw(results, options.picture)


if __name__ == "__main__":
    main()
