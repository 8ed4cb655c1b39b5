"""Agreement of several workers on the tables that they create."""

import json
import zlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_dlrm.features import EmbeddingTable
from tf_dlrm.runtime import collectives, replicas
from tf_dlrm.runtime.errors import UserError


def agree_on_seed(seed: int, tables: Sequence[EmbeddingTable]) -> int:
    """Return the chief's seed, after checking that all workers have the same tables.

    Args:
        seed: The seed of this worker.
        tables: The tables of this worker.

    Raises:
        ValueError: If the tables of a worker differ in names, sizes or features.
    """
    place = replicas.place()
    if place.num_workers == 1:
        return seed
    facts = [
        [t.name, t.vocabulary_size, t.embedding_dim, t.combiner, list(t.features)]
        for t in tables
    ]
    own = np.array([seed, zlib.crc32(json.dumps(facts).encode())], np.int64)
    seeds, sums = zip(*collectives.gather_arrays(place, own), strict=True)
    if len(set(sums)) > 1:
        others = [w for w, s in zip(place.workers, sums, strict=True) if s != sums[0]]
        raise UserError(
            "All workers must create the same tables, in the same order. Other names, "
            f"sizes or features than in {place.workers[0]}: {', '.join(others)}. Do "
            "they read the same vocabulary?"
        )
    return int(seeds[0])


def of_chief(values: tf.Tensor) -> tf.Tensor:
    """Return the chief's float32 values, in all workers.

    An initializer without a seed draws other values in each process.
    """
    place = replicas.place()
    if place.num_workers == 1:
        return values
    own = np.asarray(values, np.float32).reshape(-1) if place.is_chief else None
    return tf.reshape(collectives.broadcast_array(place, 0, own), values.shape)
