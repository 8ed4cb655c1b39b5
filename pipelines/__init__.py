"""Click logs to tensors, and the whole job: generators, training runs, the command.

Names are imported at first use, so that the command starts fast.
"""

from pipelines.lazy_names import import_lazily

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
    "follow": "pipelines.following",
    "from_dataframe": "pipelines.frames",
    "read": "pipelines.formats.reading",
    "to_dataframe": "pipelines.frames",
}
_MODULES = (
    "criteo",
    "evaluation",
    "following",
    "placement",
    "prepare",
    "records",
    "runs",
    "scoring",
    "synthetic",
    "vocabulary",
)

__all__ = [*_MEMBERS, *_MODULES]
__getattr__, __dir__ = import_lazily(__name__, _MEMBERS, _MODULES)
