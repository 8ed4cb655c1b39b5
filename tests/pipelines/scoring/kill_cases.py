"""Runs in a process of its own: `python kill_cases.py NUM_KILLS FOLDER`.

Children score the files of the folder and are killed at random moments, each started
again with the same call, until the output is there: it must have the bytes of an output
that was never cut, and so must the list of bad rows.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np

from pipelines import scoring
from pipelines.scoring import batches, unfinished

BATCH_SIZE = 50
SECONDS_A_BATCH = 0.01


def score_lines(lines):
    """Scores that depend on all lines of the batch, as the last bits of a model do."""
    import tensorflow as tf

    if bool(tf.reduce_any(tf.equal(lines, "no row"))):
        raise tf.errors.InvalidArgumentError(None, None, "no row")
    time.sleep(SECONDS_A_BATCH)
    numbers = tf.strings.to_hash_bucket_fast(lines, 1 << 20).numpy() / (1 << 20)
    return (0.5 * numbers + 0.5 * numbers.mean()).astype(np.float32)


def score(folder, output):
    unfinished._SECONDS_BETWEEN_NOTES = 0.02
    batches._BLOCK_BYTES = 20_000
    sys.stdout = open(os.devnull, "w")
    source = scoring.Source.of(folder, ["model"])
    scoring.score_files(
        scoring.Model(score_lines, source),
        f"{folder}/*.log*",
        output,
        max_bad_share=1,
        batch_size=BATCH_SIZE,
    )


def start(folder, output):
    """Scores in a child; returns its number."""
    pid = os.fork()
    if pid == 0:
        try:
            score(folder, output)
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    return pid


def main():
    num_kills, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
    rng, killed, finished = random.Random(0), 0, 0
    whole = {}
    for suffix in ("", ".gz"):
        before = time.monotonic()
        output = folder / f"whole.csv{suffix}"
        assert os.waitpid(start(folder, output), 0)[1] == 0
        whole[suffix] = output.read_bytes()
        seconds = time.monotonic() - before
    bad_rows = (folder / "whole.csv.bad_rows.tsv").read_bytes()
    while killed < num_kills:
        suffix = ("", ".gz")[finished % 2]
        output = folder / f"cut-{finished}.csv{suffix}"
        while not output.exists():
            pid = start(folder, output)
            time.sleep(rng.uniform(0.1, 0.9) * seconds)
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            assert os.WIFSIGNALED(status) or status == 0
            killed += os.WIFSIGNALED(status)
        # Killed after it took its name, there may be notes to clean up.
        if pathlib.Path(f"{output}.unfinished.json").exists():
            assert os.waitpid(start(folder, output), 0)[1] == 0
        assert output.read_bytes() == whole[suffix]
        assert pathlib.Path(f"{output}.bad_rows.tsv").read_bytes() == bad_rows
        assert not list(folder.glob("*.unfinished*"))
        finished += 1
    print(json.dumps({"kills": killed, "equal outputs": finished}))


if __name__ == "__main__":
    main()
