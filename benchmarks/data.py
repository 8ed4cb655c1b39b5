"""How fast click logs become batches: prepare, text to batches, records to batches.

    python benchmarks/data.py --rows 1000000 --out benchmarks/results/data.json

Rows are generated (planted) in Criteo's format, and every file is in the page cache.
Each measurement is a process of its own, so that its peak memory is its own. The
rate of facebookresearch/dlrm's preprocessing, 6.9 thousand rows/s on two cores like
these, is the one to compare `prepare` with.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

WAYS = (
    "prepare",
    "prepare_hash",
    "text_hash",
    "text_hash_shuffled",
    "text_vocabulary",
    "records",
    "records_shuffled",
)
BATCH_SIZE = 2048
FACEBOOK_ROWS_PER_SECOND = 6900


def measure(way: str, folder: str, rounds: int) -> dict:
    """Rows a second, the best of some rounds, and the peak memory in MB."""
    folder = pathlib.Path(folder)
    log, prepared = folder / "log.tsv", folder / "records"
    run = _prepare if way.startswith("prepare") else _read
    rates, num_rows = [], 0
    for _ in range(rounds):
        num_rows, seconds = run(way, log, prepared)
        rates.append(num_rows / seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "way": way,
        "num_rows": num_rows,
        "rows_per_second": round(max(rates)),
        "rounds": [round(rate) for rate in rates],
        "peak_mb": round(peak),
    }


def _prepare(way, log, prepared):
    from pipelines import prepare

    buckets = 1_000_000 if way == "prepare_hash" else None
    out = prepared.with_name("again")
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    options = prepare.Options(hash_buckets=buckets)
    manifest = prepare.prepare(log, out, options)
    return manifest.num_rows("train"), time.perf_counter() - start


def _read(way, log, prepared):
    import tensorflow as tf

    from pipelines import criteo, records
    from pipelines import vocabulary as vocabularies

    shuffle = way.endswith("shuffled")
    if way.startswith("records"):
        dataset = records.read(prepared, BATCH_SIZE, shuffle, seed=0)
    else:
        vocabulary = vocabularies.HashVocabulary(1_000_000)
        if way == "text_vocabulary":
            vocabulary = vocabularies.load(prepared / "vocabulary.tsv")
        parser = criteo.Parser(vocabulary)
        dataset = criteo.read(log, parser, BATCH_SIZE, shuffle, seed=0)
    start = time.perf_counter()
    # In a graph, as `fit` takes batches.
    count = dataset.reduce(0, lambda num_rows, batch: num_rows + tf.size(batch[1]))
    return int(count), time.perf_counter() - start


def main():
    """Measures all ways in turn and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help="measure one, in this process")
    parser.add_argument("--folder", help="where --way finds its data")
    parser.add_argument("--out", help="JSON file for the results")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if arguments.way:
        result = measure(arguments.way, arguments.folder, arguments.rounds)
        print(json.dumps(result))
        return
    from pipelines import prepare
    from pipelines.synthetic import Planted

    results = []
    with tempfile.TemporaryDirectory() as folder:
        log = os.path.join(folder, "log.tsv")
        Planted(seed=0).write(log, arguments.rows)
        prepare.prepare(log, os.path.join(folder, "records"))
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--folder", folder]
            command += ["--rounds", str(arguments.rounds)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            result = json.loads(done.stdout.splitlines()[-1])
            if way == "prepare":
                ratio = result["rows_per_second"] / FACEBOOK_ROWS_PER_SECOND
                result["times_facebookresearch_dlrm"] = round(ratio, 1)
            results.append(result)
            print(
                f"{way:<20} {result['rows_per_second']:>12,} rows/s "
                f"{result['peak_mb']:>8,} MB"
            )
    if arguments.out:
        text = json.dumps(results, indent=1) + "\n"
        pathlib.Path(arguments.out).write_text(text)


if __name__ == "__main__":
    main()
