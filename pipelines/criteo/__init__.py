"""`Parser` and `read` of `pipelines`, under a name for Criteo's logs."""

from pipelines.lazy_names import import_lazily

_MEMBERS = {"Parser": "pipelines.formats.parser", "read": "pipelines.formats.reading"}

__all__ = ["Parser", "read"]
__getattr__, __dir__ = import_lazily(__name__, _MEMBERS)
