"""A process of its own that holds the lock of a folder."""

import contextlib
import pathlib
import subprocess
import sys

HOLD = """
import sys, time
from pipelines.runtime import locks
with locks.locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holding(folder):
    """The process, which ends with the block if not before. No TensorFlow in it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), "an option"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
