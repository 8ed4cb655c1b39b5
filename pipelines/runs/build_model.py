"""Build and compile the model of a `RunConfig`."""

import dataclasses

import keras
import tensorflow as tf

import tf_dlrm
from pipelines.runs.config import RunConfig
from pipelines.runs.defaults import complete_rates
from pipelines.runtime import UserError
from pipelines.schema import Schema
from tf_dlrm import layers

_NORMALIZATIONS = {
    "none": False,
    "before_activation": True,
    "after_activation": "after_activation",
}


def make_model(
    config: RunConfig,
    spec: tf_dlrm.FeatureSpec,
    placement="auto",
    negative_sampling_rate: float = 1.0,
) -> tf_dlrm.DLRM:
    """Build the model of a run, sharded under a strategy with several replicas.

    Args:
        config: Config of the run.
        spec: Features and tables, as `Parser.spec(config.embedding_dim)` returns them.
        placement: Strategy for sharding the tables, as `strategy` of
            `tf_dlrm.sharding.plan`.
        negative_sampling_rate: Share of the negatives that the model is trained on,
            sampled by this run or by `tf-dlrm prepare`.
    """
    limit = config.initial_embedding_limit
    if limit is not None:
        start = keras.initializers.RandomUniform(-limit, limit)
        tables = [
            dataclasses.replace(table, initializer=start.clone())
            for table in spec.tables
        ]
        spec = dataclasses.replace(spec, tables=tables)
    normalization = _NORMALIZATIONS[config.batch_normalization]
    dropout = config.bottom_dropout
    bottom_mlp = None  # not used without dense features
    if spec.num_dense:
        bottom_mlp = layers.MLP(
            config.bottom_mlp_dims,
            final_activation="relu",
            dropout=config.dropout if dropout is None else dropout,
            batch_normalization=normalization,
            name="bottom_mlp",
            dtype=config.dtype_policy,
        )
    top_mlp = layers.MLP(
        config.top_mlp_dims,
        dropout=config.dropout,
        batch_normalization=normalization,
        name="top_mlp",
        dtype=config.dtype_policy,
    )
    interaction = config.interaction or "dot"
    if interaction == "cross":
        interaction = layers.CrossInteraction(
            config.cross_layers,
            config.cross_rank,
            name="interaction",
            dtype=config.dtype_policy,
        )
    embedding = None  # always made after the MLPs: seeds are drawn in order
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        options = {"batch_size": config.batch_size, "optimizer": config.optimizer}
        embedding = tf_dlrm.sharding.ShardedEmbeddingCollection(
            spec.tables, placement, plan_options=options
        )
    return tf_dlrm.DLRM(
        spec,
        bottom_mlp,
        top_mlp,
        interaction=interaction,
        embedding=embedding,
        negative_sampling_rate=negative_sampling_rate,
        dtype=config.dtype_policy,
    )


_KERAS = {
    "sgd": keras.optimizers.SGD,
    "adagrad": keras.optimizers.Adagrad,
    "adam": keras.optimizers.Adam,
}
# With an L2 penalty on whole tables, for which SGD needs no pass over all rows.
_PENALIZED = {
    "sgd": tf_dlrm.optimizers.SparseSGD,
    "adagrad": tf_dlrm.optimizers.DenseAdagrad,
    "adam": tf_dlrm.optimizers.DenseAdam,
}

# Total rows of a training below which compiling costs more time than it saves. Seconds
# of CPU on two AVX2 cores, with XLA and without: 250,000 rows 56, 37; a million 74, 72.
_FEW_ROWS = 1_000_000


def compile_model(
    model: tf_dlrm.DLRM,
    config: RunConfig,
    num_steps: int,
    first_step: int = 0,
    schema: Schema | None = None,
    with_metrics: bool = True,
) -> None:
    """Compile the model of a run.

    Args:
        model: The model.
        config: Config of the run.
        num_steps: Steps of the whole run, for the decay of the learning rate.
        first_step: Number of the first step: 0, or larger after a warm start.
        schema: Schema of the rows. Metrics use its sample weights; soft labels have no
            accuracy. Default: `Schema.criteo()`.
        with_metrics: Whether to compute click metrics beside the loss.
    """
    schema = Schema.criteo() if schema is None else schema
    metrics = tf_dlrm.metrics.click_metrics() if with_metrics else []
    if schema.label.soft:
        metrics = [metric for metric in metrics if metric.name != "accuracy"]
    kind = "metrics" if schema.weight is None else "weighted_metrics"
    config = complete_rates(config)

    def rate_of(rate):
        if rate is None:  # the tables follow the MLPs' rate
            return None
        return _schedule(config, rate, first_step, num_steps)

    table_rate = rate_of(config.embedding_learning_rate)
    optimizer = _optimizer(_KERAS, config, rate_of(config.learning_rate))
    embedding_optimizer = None
    if config.l2:
        embedding_optimizer = _optimizer(_PENALIZED, config, table_rate, l2=config.l2)
        if config.optimizer != "sgd":
            _check_size(model, embedding_optimizer)
    elif table_rate is not None:
        embedding_optimizer = tf_dlrm.optimizers.get(
            _optimizer(_KERAS, config, table_rate)
        )
    model.compile(
        optimizer,
        "binary_crossentropy",
        **{kind: metrics},
        embedding_optimizer=embedding_optimizer,
        jit_compile={"auto": "auto", "on": True, "off": False}[config.jit_compile],
        steps_per_execution=config.steps_per_execution,
        max_skipped_batches=config.max_skipped_batches,
    )
    if config.jit_compile == "auto" and config.batch_size is not None:
        model.use_xla(num_steps * config.batch_size >= _FEW_ROWS)


def _optimizer(classes, config, rate, **options):
    if config.optimizer == "adagrad":
        options["initial_accumulator_value"] = config.initial_accumulator_value
        options["epsilon"] = config.adagrad_epsilon
    if config.optimizer == "adam" and config.adam_epsilon is not None:
        options["epsilon"] = config.adam_epsilon
        if classes is _PENALIZED:
            options["corrects_epsilon"] = True
    return classes[config.optimizer](rate, **options)


def _check_size(model, optimizer):
    sizes = [t.vocabulary_size * t.embedding_dim for t in model.spec.tables]
    if sum(sizes) > optimizer.max_values:
        raise UserError(
            "`l2` moves every row at every step, so the tables may have at most "
            f"{optimizer.max_values:,} values. They have {sum(sizes):,}. Use a larger "
            "`min_count`, a `max_vocabulary_size` or a smaller `embedding_dim`, "
            "optimizer='sgd', or no `l2`."
        )


def _schedule(config, rate, first_step, num_steps):
    """Return the learning rate of a run whose first step is `first_step`."""
    schedules = keras.optimizers.schedules
    decayed = tf_dlrm.optimizers.WarmupPolynomialDecay
    if config.learning_rate_decay == "linear" and not first_step:
        return schedules.PolynomialDecay(rate, num_steps, 0.0)
    if config.learning_rate_decay == "linear":
        # At step s the rate has lost the share (s - first_step) / num_steps; the
        # schedule counts steps from 1.
        return decayed(
            rate,
            decay_start_step=first_step + 1,
            decay_steps=num_steps,
            power=1.0,
            end_learning_rate=0.0,
        )
    if config.learning_rate_decay == "square":
        warmup_steps = 0 if first_step else config.warmup_steps  # already warm
        start = first_step + config.decay_start_step
        return decayed(rate, warmup_steps, start, config.decay_steps)
    if config.learning_rate_decay == "epochs":
        of_epoch = num_steps // config.epochs
        # Last step of each epoch, inclusive, counted from 0.
        ends = [
            first_step + of_epoch * epoch - 1 for epoch in config.reduce_after_epochs
        ]
        rates = [rate * 0.1**i for i in range(len(ends) + 1)]
        return schedules.PiecewiseConstantDecay(ends, rates)
    return rate
