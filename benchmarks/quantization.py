"""What tables in fewer bytes cost of the ranking: AUC and log loss of exports.

    python benchmarks/quantization.py criteo_kaggle_sample.tsv.gz

Trains the named run `criteo_sample` on rows 1 .. 8,000 of the file with three seeds,
exports it with each dtype of tables, and scores the rows after them through
`serving_tsv`. Prints a table and writes `benchmarks/results/quantization.json`. The
file is Criteo's, not part of this project.
"""

import argparse
import json
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import criteo_sample
import numpy as np
import tensorflow as tf
from sklearn.metrics import log_loss, roc_auc_score

from pipelines import runs
from tf_dlrm.serving import TABLE_DTYPES

RESULTS = pathlib.Path(__file__).parent / "results" / "quantization.json"


def measure(path, folder, seeds=(0, 1, 2), dtypes=TABLE_DTYPES) -> dict:
    """AUC, log loss and bytes of tables by dtype, a list with one for each seed.

    Args:
        path: The sample, gzip.
        folder: A folder for files and runs.
        seeds: Seeds of the runs.
        dtypes: Dtypes of tables.
    """
    folder = pathlib.Path(folder)
    files = criteo_sample.split(path, folder)
    scored = [
        line
        for name in ("test", "later")
        for line in files[name].read_bytes().splitlines()
    ]
    labels = np.array([int(line[:1]) for line in scored])
    found = {dtype: {"auc": [], "log_loss": [], "bytes": []} for dtype in dtypes}
    for seed in seeds:
        run = criteo_sample.train(files["train"], folder, seed)
        for dtype, scores in found.items():
            base = folder / f"{seed}-{dtype}"
            version = pathlib.Path(runs.export(run, base, table_dtype=dtype))
            serve = tf.saved_model.load(str(version)).signatures["serving_tsv"]
            got = serve(lines=tf.constant(scored))
            probabilities = got["probabilities"].numpy()[:, 0].astype(np.float64)
            scores["auc"].append(roc_auc_score(labels, probabilities))
            scores["log_loss"].append(log_loss(labels, probabilities))
            description = version / "assets.extra" / "tf_dlrm.json"
            scores["bytes"].append(json.loads(description.read_text())["table_bytes"])
    return found


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("sample")
    path = arguments.parse_args().sample
    with tempfile.TemporaryDirectory() as folder:
        found = measure(path, folder)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print("| tables | bytes | AUC | largest change | log loss | largest change |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    whole = {k: np.array(v) for k, v in found["float32"].items()}
    for dtype, scores in found.items():
        cells = [f"{np.mean(scores['bytes'] / whole['bytes']):.3f}"]
        for name in ("auc", "log_loss"):
            change = np.abs(scores[name] - whole[name]).max()
            cells += [f"{np.mean(scores[name]):.4f}", f"{change:.6f}"]
        print(f"| {dtype} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
