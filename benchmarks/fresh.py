"""Fresh models: sizes and times of deltas, from a click to a served weight, and drift.

    python benchmarks/fresh.py [sizes] [steps] [clicks] [drift] [chart]

Without words, all parts. They write `benchmarks/results/fresh.json`; `chart` draws
`docs/images/fresh.png` from it.
"""

import json
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import sklearn.metrics

RESULTS = pathlib.Path(__file__).with_name("results") / "fresh.json"
PICTURE = pathlib.Path(__file__).parents[1] / "docs" / "images" / "fresh.png"
NUM_TABLES, NUM_ROWS, WIDTH = 26, 20_000_000, 16
SHARE, BATCH = 0.01, 2048


def make_model(num_rows, width=WIDTH):
    """Return the paper's model for Criteo Kaggle, with tables of equal size."""
    import tf_dlrm

    spec = tf_dlrm.FeatureSpec.criteo([num_rows // NUM_TABLES] * NUM_TABLES, width)
    model = tf_dlrm.DLRM(spec, (512, 256, 64, width), (512, 256, 1))
    model.compile("adagrad")
    return model


def make_batch(num_rows, seed, size=BATCH):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, num_rows // NUM_TABLES, (size, NUM_TABLES))
    features = {
        "dense_features": rng.random((size, 13), dtype=np.float32),
        "sparse_features": ids,
    }
    return features, (rng.random(size) < 0.25).astype(np.float32)


def measure_sizes() -> dict:
    """Bytes and seconds of a delta with 1 % of the rows, against the whole."""
    import tf_dlrm

    results = {"rows": NUM_ROWS, "width": WIDTH, "share": SHARE}
    model, count = make_model(NUM_ROWS), int(SHARE * NUM_ROWS / NUM_TABLES)
    rng = np.random.default_rng(0)
    size = NUM_ROWS // NUM_TABLES
    changed = {
        table.name: np.sort(rng.choice(size, count, replace=False))
        for table in model.spec.tables
    }
    whole = None
    for dtype in ("float32", "int8"):
        folder = tempfile.mkdtemp()
        publisher = tf_dlrm.serving.Publisher(folder, dtype)
        base = publisher.publish(model, None)
        whole = whole or base.num_bytes
        replica = tf_dlrm.serving.Replica(folder)
        replica.in_place()
        published, applied = [], []
        for _ in range(5):
            done = publisher.publish(model, changed)
            published.append(done.seconds)
            start = time.perf_counter()
            replica.in_place()
            applied.append(time.perf_counter() - start)
        changing = time_change(f"{folder}/1", NUM_ROWS, done.num_rows)
        start = time.perf_counter()
        replica.materialize(tempfile.mkdtemp(dir=folder))
        materialized = time.perf_counter() - start
        results[dtype] = {
            "base_bytes": base.num_bytes,
            "base_seconds": base.seconds,
            "delta_rows": done.num_rows,
            "delta_bytes": done.num_bytes,
            "float32_base_over_delta": whole / done.num_bytes,
            "own_base_over_delta": base.num_bytes / done.num_bytes,
            "publish_seconds": min(published),
            "read_verify_apply_seconds": min(applied),
            "apply_seconds": changing,
            "materialize_seconds": materialized,
            # A model of 100 GB, float32, that is updated every ten minutes.
            "gbit_per_s_for_100_gb": 800 * done.num_bytes / whole / 600,
        }
        shutil.rmtree(folder)
    results["gbit_per_s_whole"] = 800 / 600
    return results


def time_change(folder, num_rows, count) -> float:
    """Seconds in which predictions wait: the call of the signature alone."""
    import tensorflow as tf

    change = tf.saved_model.load(folder).signatures["apply_delta"]
    inputs = {
        name: tf.zeros(
            [count if size is None else size for size in spec.shape], spec.dtype
        )
        for name, spec in change.structured_input_signature[1].items()
    }
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(num_rows, count, replace=False))
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        change(**inputs | {"rows_0": tf.constant(rows)})
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure_steps() -> dict:
    """Seconds of a step with and without the tracking of rows, in turns."""
    import tensorflow as tf

    import tf_dlrm

    model = make_model(1_000_000)
    features, label = make_batch(1_000_000, 0, 64 * BATCH)
    data = tf.data.Dataset.from_tensor_slices((features, label)).batch(BATCH).cache()
    tracked = tf_dlrm.callbacks.PublishDeltas(
        tempfile.mkdtemp(), every_seconds=1e9, verbose=0
    )
    tracked.on_train_end = lambda logs=None: None  # the tracking alone
    seconds = {"plain": [], "tracked": []}
    for _ in range(12):
        for name, callbacks in (("plain", []), ("tracked", [tracked])):
            clock = Clock()
            model.fit(data, verbose=0, callbacks=[*callbacks, clock])
            seconds[name] += clock.seconds[8:]
    medians = {name: float(np.median(own)) for name, own in seconds.items()}
    quarter = {name: float(np.quantile(own, 0.25)) for name, own in seconds.items()}
    return {
        "batch": BATCH,
        "median_seconds": medians,
        "quartile_seconds": quarter,
        "overhead": quarter["tracked"] / quarter["plain"] - 1.0,
    }


def Clock():
    import keras

    class Seconds(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.seconds = []

        def on_train_batch_begin(self, batch, logs=None):
            self.start = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            self.seconds.append(time.perf_counter() - self.start)

    return Seconds()


def measure_clicks(num_files=12) -> dict:
    """Seconds from a finished file of clicks to a replica with weights from them.

    The training is a process of its own, `tf-dlrm train --follow`; the replica looks at
    HEAD.json every 50 ms.
    """
    import tf_dlrm
    from pipelines.synthetic import Planted

    folder = pathlib.Path(tempfile.mkdtemp())
    (folder / "log").mkdir()

    def put(number):
        Planted().write(folder / "log" / f".{number:03d}", 2_000, 2_000 * number)
        path = folder / "log" / f"{number:03d}"
        (folder / "log" / f".{number:03d}").rename(path)
        return time.time()

    put(0)
    words = (
        f"train --follow {folder / 'log'} --out {folder / 'run'} --hash-buckets 100000 "
        "--embedding-dim 16 --batch-size 512 --follow-settle-seconds 0 "
        f"--publish {folder / 'published'} --publish-every-seconds 0.5"
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from pipelines.cli import entry; entry()",
            *words.split(),
        ]
    )
    replica = tf_dlrm.serving.Replica(folder / "published")
    try:
        while not (folder / "published" / "HEAD.json").exists():
            time.sleep(0.1)
        replica.in_place()
        seconds = []
        for number in range(1, num_files):
            finished = put(number)
            step = None
            while step is None or served_step(replica) < step:
                step = step_of(folder / "run" / "files.csv", f"{number:03d}")
                with_head(replica)
                time.sleep(0.05)
            seconds.append(time.time() - finished)
            time.sleep(1.0)
    finally:
        process.terminate()
        process.wait()
    shutil.rmtree(folder)
    own = seconds[2:]  # the first files compile
    return {"seconds": own, "median": float(np.median(own)), "largest": max(own)}


def with_head(replica):
    """Follow HEAD; a base whose rename is under way is tried again."""
    try:
        replica.in_place()
    except (OSError, ValueError):
        pass


def served_step(replica) -> int:
    """The training step of the state that a replica serves."""
    position = replica.position
    base = replica.channel.read_base(position.base)
    steps = {
        m.sequence: m.facts["steps"]["to"] for m in replica.channel.manifests(base)
    }
    return steps.get(position.sequence, base.facts["step"])


def step_of(path, name) -> int | None:
    """The step after a file, from `files.csv`."""
    for line in path.read_text().splitlines() if path.exists() else []:
        cells = line.split(",")
        if cells[0] == name:
            return int(cells[9])
    return None


# Drift


class Drifting:
    """Clicks on items whose appeal wanders, and which are replaced over time.

    One user feature and one item feature; the log-odds of a click are the appeal of the
    item now, plus a constant taste of the user. In each minute some items are replaced:
    the id stays, its appeal is drawn again, as a shop that reuses places does.
    """

    def __init__(self, num_items=2_000, num_users=500, wander=0.05, replaced=4):
        self.rng = np.random.default_rng(7)
        self.appeal = self.rng.normal(0, 1.2, num_items)
        self.taste = self.rng.normal(0, 0.6, num_users)
        self.wander, self.replaced = wander, replaced

    def minute(self, num_rows=2_000):
        """Return the rows of the next minute and their click probabilities."""
        rng, items = self.rng, len(self.appeal)
        self.appeal += rng.normal(0, self.wander, items) - 0.0008 * self.appeal
        places = rng.integers(0, items, self.replaced)
        self.appeal[places] = rng.normal(0, 1.2, self.replaced)
        # A few items get most of the traffic.
        item = (items * rng.random(num_rows) ** 2).astype(np.int64)
        user = rng.integers(0, len(self.taste), num_rows)
        logit = self.appeal[item] + self.taste[user] - 1.0
        probability = 1.0 / (1.0 + np.exp(-logit))
        label = (rng.random(num_rows) < probability).astype(np.float32)
        return {"sparse_features": np.stack([user, item], 1)}, label, probability


def measure_drift(hours=8) -> dict:
    """AUC by minute of a stale model, an hourly one and one that gets every delta."""
    import keras

    import tf_dlrm

    keras.utils.set_random_seed(0)
    tables = [
        tf_dlrm.EmbeddingTable("user", 500, 8),
        tf_dlrm.EmbeddingTable("item", 2_000, 8),
    ]
    spec = tf_dlrm.FeatureSpec((), tables)
    model = tf_dlrm.DLRM(spec, None, (16, 1), interaction="cat")
    model.compile(
        keras.optimizers.Adam(0.002),
        embedding_optimizer=tf_dlrm.optimizers.SparseAdam(0.01),
    )
    folder, stream = tempfile.mkdtemp(), Drifting()
    publish = tf_dlrm.callbacks.PublishDeltas(folder, every_steps=10**9, verbose=0)
    for _ in range(240):  # what the model learns before
        features, label, _ = stream.minute()
        fit(model, features, label, [publish])
    replicas = {name: tf_dlrm.serving.Replica(folder) for name in ("stale", "hourly")}
    replicas["fresh"] = tf_dlrm.serving.Replica(folder)
    for replica in replicas.values():
        replica.in_place()
    answers = {name: [] for name in (*replicas, "best", "label")}
    for minute in range(60 * hours):
        features, label, probability = stream.minute()
        request = {
            "dense_features": np.zeros((len(label), 0), np.float32),
            "sparse_features": features["sparse_features"][:, :, None],
        }
        for name, replica in replicas.items():
            answers[name].append(replica.predict(request).probabilities[:, 0])
        answers["best"].append(probability)
        answers["label"].append(label)
        fit(model, features, label, [publish])
        replicas["fresh"].in_place()
        if minute % 60 == 59:
            replicas["hourly"].in_place()
    window = 10  # minutes of an AUC
    curves = {
        name: [
            float(
                sklearn.metrics.roc_auc_score(
                    np.concatenate(answers["label"][i : i + window]),
                    np.concatenate(answers[name][i : i + window]),
                )
            )
            for i in range(0, 60 * hours, window)
        ]
        for name in (*replicas, "best")
    }
    last = {
        name: float(
            sklearn.metrics.roc_auc_score(
                np.concatenate(answers["label"]), np.concatenate(answers[name])
            )
        )
        for name in curves
    }
    sizes = [done.num_bytes for done in publish.publications[241:]]
    return {
        "minutes": window,
        "curves": curves,
        "auc": last,
        "delta_bytes": float(np.median(sizes)),
        "base_bytes": publish.publications[0].num_bytes,
    }


def fit(model, features, label, callbacks):
    model.fit(
        features, label, batch_size=500, shuffle=False, verbose=0, callbacks=callbacks
    )


def draw() -> None:
    """Draw the AUC by hour from the stored results."""
    from pipelines import pictures
    from pipelines.pictures import GRID, INK, MUTED

    drift = json.loads(RESULTS.read_text())["drift"]
    lines = {
        "best": (MUTED, "best possible"),
        "fresh": ("#d9480f", "every delta, a minute old"),
        "hourly": ("#627d98", "every hour"),
        "stale": (INK, "never"),
    }
    figure = pictures.start(8.4, 3.8)
    axes = figure.add_subplot()
    hours = np.arange(len(drift["curves"]["best"])) * drift["minutes"] / 60
    for name, (color, text) in lines.items():
        values = drift["curves"][name]
        style = "--" if name == "best" else "-"
        axes.plot(hours, values, style, color=color, linewidth=1.6)
        place = hours[-1], np.mean(values[-6:])
        axes.annotate(f"  {text}", place, color=color, va="center", fontsize=9)
    axes.set_xlabel("hours since the model was first served")
    axes.set_ylabel("AUC of ten minutes")
    axes.set_xlim(0, hours[-1] * 1.3)
    axes.set_xticks(range(int(hours[-1]) + 2))
    axes.grid(axis="y", color=GRID)
    pictures.finish(axes, "The same training, served at three ages")
    pictures.save(figure, PICTURE)


PARTS = {
    "sizes": measure_sizes,
    "steps": measure_steps,
    "clicks": measure_clicks,
    "drift": measure_drift,
}


def main(words) -> None:
    """Measure the parts, and store and draw the results."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in [w for w in words if w != "chart"] or ([] if words else PARTS):
        results[name] = PARTS[name]()
        results[name]["date"] = time.strftime("%Y-%m-%d")
        results["machine"] = {"cpu": platform.processor() or platform.machine()}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(
            name, json.dumps({k: v for k, v in results[name].items() if k != "curves"})
        )
    if not words or "chart" in words or "drift" in words:
        draw()


if __name__ == "__main__":
    main(sys.argv[1:])
