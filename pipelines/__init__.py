"""Click logs to tensors, and the whole job: generators, training runs, the command.

Names are imported at first use, so that the command starts fast.
"""

import importlib

_MEMBERS = {
    "Dense": "pipelines.schema",
    "HashVocabulary": "pipelines.vocabulary",
    "Label": "pipelines.schema",
    "MultiHot": "pipelines.multi_hot",
    "NegativeSampling": "pipelines.sampling",
    "Parquet": "pipelines.schema",
    "Parser": "pipelines.formats.parser",
    "Quarantine": "pipelines.quarantine",
    "Schema": "pipelines.schema",
    "Sparse": "pipelines.schema",
    "Text": "pipelines.schema",
    "Vocabulary": "pipelines.vocabulary",
    "from_dataframe": "pipelines.frames",
    "read": "pipelines.formats.reading",
    "to_dataframe": "pipelines.frames",
}
_MODULES = (
    "criteo",
    "evaluation",
    "placement",
    "prepare",
    "records",
    "runs",
    "scoring",
    "synthetic",
    "vocabulary",
)

__all__ = [*_MEMBERS, *_MODULES]


def __getattr__(name):
    if name in _MEMBERS:
        return getattr(importlib.import_module(_MEMBERS[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"pipelines.{name}")
    raise AttributeError(f"module 'pipelines' has no attribute '{name}'")


def __dir__():
    return sorted(__all__)
