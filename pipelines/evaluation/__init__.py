"""Metrics of a run's model on rows, what its features are worth, and its tables.

Names are imported at first use, so that reports can draw charts without TensorFlow.
"""

from pipelines.lazy_names import import_lazily

_MEMBERS = {
    "FeatureImportance": "pipelines.evaluation.importance_report",
    "FittedCorrection": "pipelines.evaluation.correction",
    "Importance": "pipelines.evaluation.importance_report",
    "SlicedEvaluation": "pipelines.evaluation.slices",
    "TableReport": "pipelines.evaluation.table_report",
    "evaluate": "pipelines.evaluation.evaluation",
    "evaluate_export": "pipelines.evaluation.exported",
    "fit_on_rows": "pipelines.evaluation.correction",
    "importance": "pipelines.evaluation.permutation_importance",
    "inspect_tables": "pipelines.evaluation.table_inspection",
}

__all__ = [*_MEMBERS]
__getattr__, __dir__ = import_lazily(__name__, _MEMBERS)
