"""The state of a sharded collection for `tf.train.Checkpoint`."""

import dataclasses
import json

import tensorflow as tf

from tf_dlrm.runtime.errors import UserError
from tf_dlrm.sharding.planning.plans import Plan

_KEY = "shards"


class CheckpointState(tf.Module):
    """The variables of all shards as attributes, and a description of the shards.

    Shards are saved unchanged, so nothing is copied. Only a collection with the same
    shards can restore them. (Keras' files contain logical tables, which any collection
    can load.)

    Args:
        plan: The `Plan`.
        is_part: Whether the variables are only those of one of several workers.
    """

    def __init__(self, plan: Plan, is_part: bool = False) -> None:
        super().__init__()
        layout = json.dumps([dataclasses.astuple(shard) for shard in plan])
        self.layout = _Layout(layout, is_part)


class _Layout(tf.Module):
    """A line of text that is compared when a checkpoint is restored."""

    def __init__(self, text: str, is_part: bool) -> None:
        super().__init__()
        self._text, self._is_part = text, is_part

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        if self._is_part:
            raise UserError(
                "tf.train.Checkpoint would write only the shards of one worker. Use "
                "`model.save_weights`, or `tf_dlrm.callbacks.ResumableTraining`."
            )
        return {_KEY: tf.constant(self._text)}

    def _restore_from_tensors(self, restored_tensors: dict[str, tf.Tensor]) -> None:
        if not tf.executing_eagerly():
            return
        text = restored_tensors[_KEY].numpy().decode()
        if text != self._text:
            raise UserError(
                "The checkpoint has other shards than this collection: it was written "
                "with another plan or number of devices. Use `model.save_weights` or "
                "`model.save`, whose files load with any plan."
            )
