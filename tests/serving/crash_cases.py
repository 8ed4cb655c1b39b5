"""Runs in a process of its own: `python crash_cases.py NUM_KILLS FOLDER`.

Children export a model again and again and are killed at random moments, while another
thread looks at the versions all the time, as a server does. A version must be whole
whenever it is seen.
"""

import os
import pathlib
import random
import signal
import sys
import threading
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import tf_dlrm  # before the forks; no operation is run in this process

MOST_SECONDS = 2.0  # from the start of a child to its end, at most


def export_for_ever(base):
    tables = [tf_dlrm.EmbeddingTable("C0", 100, 4)]
    model = tf_dlrm.DLRM(tf_dlrm.FeatureSpec(("I0",), tables), (4,), (1,))
    while True:
        tf_dlrm.export_saved_model(model, base)


def files(version):
    return {
        str(path.relative_to(version)): path.stat().st_size
        for path in version.rglob("*")
        if path.is_file()
    }


def versions(base):
    return [path for path in base.iterdir() if path.name.isdecimal()]


def watch(base, seen, stop):
    """Notes what each version looked like when it was first seen."""
    while not stop.is_set():
        for version in versions(base):
            if version.name not in seen:
                seen[version.name] = files(version)
        time.sleep(0.0005)


def main():
    num_kills, base = int(sys.argv[1]), pathlib.Path(sys.argv[2])
    base.mkdir(parents=True, exist_ok=True)
    rng, seen, stop = random.Random(0), {}, threading.Event()
    pids = []
    for _ in range(num_kills):
        pid = os.fork()
        if pid == 0:
            try:
                export_for_ever(base)
            finally:
                os._exit(1)
        pids.append(pid)
        if len(pids) == 1:  # after the first fork: a thread would not survive it
            watcher = threading.Thread(target=watch, args=(base, seen, stop))
            watcher.start()
        before = len(versions(base))
        end = time.monotonic() + 60
        while len(versions(base)) == before and time.monotonic() < end:
            time.sleep(0.001)  # until it is at work
        time.sleep(rng.uniform(0, MOST_SECONDS))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "a child ended by itself"
    stop.set()
    watcher.join()
    names = {frozenset(found) for found in seen.values()}
    assert len(names) == 1, names
    expected = {"saved_model.pb", "variables/variables.index"}
    assert expected < set(next(iter(names)))
    for name, found in seen.items():
        assert found == files(base / name), name
        assert min(found.values()) > 0 or "fingerprint.pb" in found
    leftovers = [path.name for path in base.iterdir() if not path.name.isdecimal()]
    assert all(name.startswith(".next.") for name in leftovers)
    assert len(leftovers) <= 1  # each export removes those before
    print(f"passed: {num_kills} kills, {len(seen)} versions, {len(leftovers)} cut")


if __name__ == "__main__":
    main()
