"""Publish the model of a run: as a delta if the last base fits, otherwise as a base."""

from typing import Any

from pipelines.runs.folder import RunFolder
from pipelines.vocabulary.record_ids import RecordIds
from tf_dlrm.serving import Gate, Publisher


def publish(
    folder: RunFolder,
    base_dir: str,
    which: str = "saved",
    dtype: str = "float32",
    gate: Gate | None = None,
    **export: Any,
) -> Any:
    """Publish a model of a run, and return the `Publication`.

    It is a delta if the newest base has the same vocabulary, options and shapes: then
    only the rows that differ from the last state are written.

    Args:
        folder: The folder of the run.
        base_dir: Folder of the published model, or its address.
        which: `"saved"` for the run's model, `"best"` or `"last"`.
        dtype: Storage format of the tables.
        gate: The condition for a release. Default: every finite state is released.
        **export: Further arguments of `tf_dlrm.export_saved_model`.
    """
    parser = folder.load_parser()
    model = folder.load_model(parser, which)
    is_served = not isinstance(parser.vocabulary, RecordIds)
    identity = {
        "vocabulary": parser.vocabulary.digest,
        "negative_sampling_rate": model.negative_sampling_rate,
        **{name: str(value) for name, value in export.items()},
    }
    options = {"preprocessor": parser if is_served else None, **export}
    publisher = Publisher(base_dir, dtype, gate=gate, export=options)
    return publisher.publish_difference(model, identity)
