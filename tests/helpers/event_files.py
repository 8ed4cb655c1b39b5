"""What TensorBoard would read: the events of a folder of logs."""

import pathlib

import tensorflow as tf
from tensorboard.plugins.hparams import metadata


def read(folder):
    """`{tag: {step: value}}` of one folder, values as NumPy arrays."""
    found = {}
    for path in sorted(pathlib.Path(folder).glob("events.*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                tensor = tf.make_ndarray(value.tensor)
                found.setdefault(value.tag, {})[event.step] = tensor
    return found


def hyperparameters(folder):
    """What the HParams page is told: values by name, metrics as `(tag, group)`."""
    values, metrics, status = {}, [], None
    for path in sorted(pathlib.Path(folder).glob("events.*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                content = value.metadata.plugin_data.content
                if value.tag == metadata.SESSION_START_INFO_TAG:
                    start = metadata.parse_session_start_info_plugin_data(content)
                    for name, each in start.hparams.items():
                        values[name] = getattr(each, each.WhichOneof("kind"))
                elif value.tag == metadata.EXPERIMENT_TAG:
                    experiment = metadata.parse_experiment_plugin_data(content)
                    metrics = [
                        (info.name.tag, info.name.group)
                        for info in experiment.metric_infos
                    ]
                elif value.tag == metadata.SESSION_END_INFO_TAG:
                    end = metadata.parse_session_end_info_plugin_data(content)
                    status = end.status
    return values, metrics, status
