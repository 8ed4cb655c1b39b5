"""State of a sharded collection for `tf.train.Checkpoint`."""

import dataclasses
import json

import tensorflow as tf

from tf_dlrm.runtime.errors import UserError
from tf_dlrm.sharding.planning.plans import Plan

_KEY = "shards"


class CheckpointState(tf.Module):
    """The variables of all shards as attributes, and what the shards are.

    Each shard is saved as it is, so nothing is copied. Only a collection of the same
    shards can restore them. (Keras' files hold logical tables, which fit any.)

    Args:
        plan: The `Plan`.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.layout = _Layout(json.dumps([dataclasses.astuple(each) for each in plan]))


class _Layout(tf.Module):
    """A line of text, compared when a checkpoint is restored."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        return {_KEY: tf.constant(self._text)}

    def _restore_from_tensors(self, restored_tensors: dict[str, tf.Tensor]) -> None:
        if not tf.executing_eagerly():
            return
        found = restored_tensors[_KEY].numpy().decode()
        if found != self._text:
            raise UserError(
                "The checkpoint holds other shards than this collection has: it was "
                "written with another plan or number of devices. Files of "
                "`model.save_weights` or `model.save` load on any."
            )
