"""One measurement of tf_dlrm: `python -m pipelines.benchmark.measurement JOB`.

JOB is a `Job` as JSON; the result is one JSON line on standard output.
"""

import contextlib
import json
import os
import sys
import tempfile
import time

import numpy as np

from pipelines.benchmark.jobs import MEGABYTE, Job, peak_rss_mb, step_statistics
from pipelines.benchmark.workloads import make_pool
from pipelines.records.batch import interleave, row_splits

LEARNING_RATE = 0.01
_STEPS_OF_AN_EPOCH = 10  # Keras stops only between epochs
_PROFILED_STEPS = 20
_MAX_WARM_UP = 8  # times the measured seconds
_SETTINGS = (
    *("mode", "batch_size", "precision", "jit_compile", "steps_per_execution"),
    *("metrics", "num_devices"),
)


def measure(job: Job) -> dict:
    """Build the model of a job, run it and return the result.

    Args:
        job: The `Job` to measure.

    Returns:
        Speed, memory, versions and, with `job.profile`, the breakdown of a step.
    """
    import keras
    import tensorflow as tf

    from pipelines.runs.devices import make_strategy

    keras.utils.set_random_seed(job.seed)
    strategy = make_strategy(job.num_devices)
    start = time.perf_counter()
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = build_model(job)
        if job.mode == "train":
            compile_model(model, job)
    seconds_to_build = time.perf_counter() - start
    dataset = make_dataset(job)
    run = _time_fit if job.mode == "train" else _time_inference
    seconds = run(model, dataset, job)
    peak = peak_rss_mb()
    result = {
        "workload": job.workload.name,
        **{name: getattr(job, name) for name in _SETTINGS},
        "optimizer": job.optimizer if job.mode == "train" else None,
        "xla": model.xla_choice if job.mode == "train" else None,
        **_describe_plan(model, job),
        **step_statistics(seconds, job.batch_size),
        **_total(seconds, job),
        "seconds_to_build": round(seconds_to_build, 3),
        "peak_rss_mb": round(peak, 1),
        "table_mb": round(job.workload.table_bytes / MEGABYTE, 1),
        "state_mb": 0.0,
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
    }
    if job.mode == "train":
        state = job.workload.state_bytes(job.optimizer) / MEGABYTE
        result["state_mb"] = round(state, 1)
    if job.profile:
        result["breakdown"] = _profile(model, dataset, job)
    return result


def _total(seconds, job):
    if job.steps is None:
        return {}
    total = float(np.sum(seconds)) * job.steps_per_execution
    return {"total_seconds": round(total, 2)}


def _describe_plan(model, job):
    if job.num_devices == 1:
        return {}
    plan = model.embedding.plan
    return {
        "placement": job.placement,
        "memory_imbalance": round(plan.imbalance, 4),
        "exchange_mb": {
            kind: round(each / MEGABYTE, 3)
            for kind, each in plan.exchange_bytes(job.batch_size).items()
        },
    }


def build_model(job: Job):
    """Return the `tf_dlrm.DLRM` of a job, built with the public API."""
    import tf_dlrm

    workload = job.workload
    spec = tf_dlrm.FeatureSpec(
        tuple(f"I{i + 1}" for i in range(workload.num_dense)),
        [
            tf_dlrm.EmbeddingTable(f"C{i + 1}", rows, workload.embedding_dim)
            for i, rows in enumerate(workload.table_sizes)
        ],
    )
    return tf_dlrm.DLRM(
        spec,
        workload.bottom_mlp_dims,
        workload.top_mlp_dims,
        embedding=_make_embedding(spec, job),
        dtype="mixed_bfloat16" if job.precision == "bfloat16" else "float32",
    )


def _make_embedding(spec, job):
    import tf_dlrm

    if job.num_devices == 1:
        return None
    hotness = (1 + job.workload.max_hotness) / 2
    return tf_dlrm.sharding.ShardedEmbeddingCollection(
        spec.tables,
        job.placement,
        plan_options={"batch_size": job.batch_size, "hotness": hotness},
    )


def compile_model(model, job: Job) -> None:
    """Compile as a user would, with Keras' optimizer and its row-sparse counterpart."""
    import keras

    import tf_dlrm

    dense = {
        "sgd": keras.optimizers.SGD,
        "adagrad": keras.optimizers.Adagrad,
        "rowwise_adagrad": keras.optimizers.Adagrad,
        "adam": keras.optimizers.Adam,
        "ftrl": keras.optimizers.Ftrl,
    }
    tables = {
        "rowwise_adagrad": tf_dlrm.optimizers.RowWiseAdagrad,
        "adam": tf_dlrm.optimizers.SparseAdam,
        "ftrl": tf_dlrm.optimizers.SparseFtrl,
    }
    own = tables.get(job.optimizer)  # for others, tf_dlrm finds the counterpart
    model.compile(
        dense[job.optimizer](LEARNING_RATE),
        "binary_crossentropy",
        metrics=tf_dlrm.metrics.click_metrics() if job.metrics else None,
        embedding_optimizer=own and own(LEARNING_RATE),
        jit_compile=job.jit_compile,
        steps_per_execution=job.steps_per_execution,
    )


def make_dataset(job: Job):
    """Return the pool as an endless `tf.data.Dataset` of `(features, label)`."""
    import tensorflow as tf

    dense, label, bags = zip(*make_pool(job.workload, job.batch_size, job.seed))
    dense, label = np.stack(dense), np.stack(label)
    if job.workload.is_one_hot:
        ids = np.stack([np.stack([ids for ids, _ in b], axis=1) for b in bags])
        features = {"dense_features": dense, "sparse_features": ids}
        dataset = tf.data.Dataset.from_tensor_slices((features, label))
        return dataset.repeat().prefetch(2)
    rows = [interleave(*zip(*b), dtype=np.int64)[:2] for b in bags]
    values, splits = zip(*((ids, row_splits(lengths)) for ids, lengths in rows))
    num_sparse = len(job.workload.table_sizes)
    values = tf.RaggedTensor.from_row_lengths(
        np.concatenate(values), [len(v) for v in values]
    )

    def to_batch(dense, values, splits, label):
        bags = tf.RaggedTensor.from_row_splits(values, splits, validate=False)
        ids = tf.RaggedTensor.from_uniform_row_length(bags, num_sparse)
        return {"dense_features": dense, "sparse_features": ids}, label

    slices = (dense, values, np.stack(splits), label)
    dataset = tf.data.Dataset.from_tensor_slices(slices).map(to_batch)
    return dataset.repeat().prefetch(2)


def _time_fit(model, dataset, job):
    """Return the seconds of single steps of `fit`, measured in a callback.

    The measurement begins when `fit` has chosen what XLA compiles, as for most of a
    long training.
    """
    import keras

    warmup = -(-job.warmup_steps // job.steps_per_execution)
    if job.steps is not None:
        return _time_steps(model, dataset, job, warmup)

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            times.append(time.perf_counter())

        def on_epoch_end(self, epoch, logs=None):
            nonlocal first
            is_late = times[-1] - times[0] > _MAX_WARM_UP * job.seconds
            is_warm = self.model.xla_choice_is_final or is_late
            if first is None and is_warm and len(times) >= warmup:
                first = len(times) - 1
            if first is not None and len(times) > first + 2:
                self.model.stop_training = times[-1] - times[first] >= job.seconds

    times, first = [], None
    model.fit(
        dataset,
        epochs=10**6,
        steps_per_epoch=_STEPS_OF_AN_EPOCH * job.steps_per_execution,
        verbose=0,
        callbacks=[Clock()],
    )
    return np.diff(times[first:]) / job.steps_per_execution


def _time_steps(model, dataset, job, warmup):
    """Return the seconds of each of `job.steps` steps, in a separate `fit`."""
    import keras

    def note(*_, **__):
        times.append(time.perf_counter())

    clock = keras.callbacks.LambdaCallback(on_epoch_begin=note, on_train_batch_end=note)
    for steps in (warmup * job.steps_per_execution, job.steps):
        times = []
        model.fit(dataset, steps_per_epoch=steps, verbose=0, callbacks=[clock])
    return np.diff(times) / job.steps_per_execution


def _time_inference(model, dataset, job):
    """Return the seconds of single calls, from ids to probabilities in NumPy."""
    import tensorflow as tf

    size = len(make_pool(job.workload, job.batch_size, job.seed))
    batches = [features for features, _ in dataset.take(size)]
    predict = tf.function(
        lambda features: model(features, training=False), reduce_retracing=True
    )
    times, end, i = [], None, 0
    while end is None or time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        predict(batches[i % size]).numpy()
        if i >= job.warmup_steps:
            times.append(time.perf_counter() - start)
            end = end or time.perf_counter() + job.seconds
        i += 1
    return times


def _profile(model, dataset, job):
    import tensorflow as tf

    from pipelines.benchmark import breakdown

    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        try:
            steps = -(-_PROFILED_STEPS // job.steps_per_execution)
            model.fit(
                dataset,
                epochs=1,
                steps_per_epoch=steps * job.steps_per_execution,
                verbose=0,
            )
        finally:
            tf.profiler.experimental.stop()
        return breakdown.read_trace(folder, job.steps_per_execution)


def main(arguments=None) -> None:
    """Measure the job in the only argument, and print the result."""
    (text,) = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["TF_DLRM_CACHE"] = "off"  # so that all rounds make the same choice
    job = Job.from_json(text)
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the result
        result = measure(job)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
