"""Import of models from other libraries, with their weights."""

from tf_dlrm.interop.facebookresearch import from_facebookresearch_dlrm
from tf_dlrm.interop.tfrs import from_tfrs

__all__ = ["from_facebookresearch_dlrm", "from_tfrs"]
