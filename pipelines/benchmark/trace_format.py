"""The adapter to TensorFlow's private module for traces, checked with version 2.21.

`tests/pipelines/test_report.py` fails when it changes.
"""

import importlib.util
import pathlib
import sys
from typing import Any


def make_trace() -> Any:
    """Return an empty `XSpace`, without importing the rest of TensorFlow."""
    name = "tensorflow.tsl.profiler.protobuf.xplane_pb2"
    if "tensorflow" in sys.modules:
        return importlib.import_module(name).XSpace()
    root = pathlib.Path(importlib.util.find_spec("tensorflow").origin).parent
    path = root.joinpath(*name.split(".")[1:]).with_suffix(".py")
    spec = importlib.util.spec_from_file_location("xplane_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.XSpace()
