"""`HyperparameterLogger`: hyperparameters for comparing runs in TensorBoard."""

import zlib
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorboard.plugins.hparams import api, api_pb2, plugin_data_pb2, summary

from tf_dlrm.callbacks.watcher import TRAIN, VALIDATION, Watcher
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Logs, PathLike

_METRICS = ("auc", "log_loss", "normalized_entropy", "calibration", "loss")


class HyperparameterLogger(Watcher):
    """Write a run's hyperparameters for TensorBoard's HParams page.

    The page has a row for each run with logs in TensorBoard's folder. It shows results
    that `TensorBoardLogger` writes: rows/s and validation metrics, or training
    metrics if there is no validation.

    Args:
        log_dir: Folder of the run's logs.
        values: Values by name. Numbers, booleans and strings are unchanged, sequences
            become text such as `"512-256"`, and `None` becomes `"none"`.
        shown: Names of up to five values that the page shows by default.

    Raises:
        ValueError: If `values` is empty.
    """

    def __init__(
        self, log_dir: PathLike, values: dict, shown: Sequence[str] = ()
    ) -> None:
        super().__init__(log_dir)
        if not values:
            raise UserError("`values` must name at least one hyperparameter.")
        self._values = {name: _plain(value) for name, value in values.items()}
        self._shown = tuple(shown)

    def on_train_begin(self, logs: Logs = None) -> None:
        self._status = api_pb2.STATUS_FAILURE  # until training ends without an error
        self._described = False
        with self._events():
            api.hparams(self._values, trial_id=self._trial())

    def _trial(self) -> str:
        """Return the name of the run with a suffix that makes it unique."""
        path = self.log_dir.resolve()
        name = path.parent.name if path.name == "logs" else path.name
        return f"{name} {zlib.crc32(str(path).encode()) & 0xFFFF:04x}"

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if self._described:
            return
        self._described = True
        part = TRAIN
        if any(name.startswith("val_") for name in logs or {}):
            part = VALIDATION
        metrics = [
            api.Metric(f"metrics/{name}", group=part, display_name=f"{part} {name}")
            for name in _METRICS
            if name in (logs or {})
        ]
        metrics.append(api.Metric("speed/samples_per_second", TRAIN, "rows/s"))
        names = [api.HParam(name) for name in self._values]
        config = api.hparams_config_pb(names, metrics)
        # The page first shows hyperparameters that are marked as different.
        plugin = config.value[0].metadata.plugin_data
        data = plugin_data_pb2.HParamsPluginData.FromString(plugin.content)
        for info in data.experiment.hparam_infos:
            info.differs = info.name in self._shown
        plugin.content = data.SerializeToString()
        with self._events():
            tf.summary.experimental.write_raw_pb(config.SerializeToString())

    def on_train_end(self, logs: Logs = None) -> None:
        self._status = api_pb2.STATUS_SUCCESS
        self.on_fit_exit()

    def on_fit_exit(self) -> None:
        """Record how the run ended; called at the end of `fit`, even if it fails."""
        if self._status is not None:
            end = summary.session_end_pb(self._status).SerializeToString()
            with self._events():
                tf.summary.experimental.write_raw_pb(end)
            self._status = None
        super().on_fit_exit()

    _status = None


def _plain(value: Any) -> Any:
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        return "-".join(str(_plain(item)) for item in value)
    return value
