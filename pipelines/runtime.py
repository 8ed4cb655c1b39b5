"""The parts of `tf_dlrm.runtime` that need no TensorFlow, imported without it.

Half of the commands do not need TensorFlow, which `tf_dlrm` imports. The modules are
the same objects as those in the package.
"""

import importlib.machinery
import importlib.util
import sys


def _import_alone(name):
    """Import a module of `tf_dlrm.runtime` without the package."""
    full_name = f"tf_dlrm.runtime.{name}"
    if full_name not in sys.modules:
        package = importlib.util.find_spec("tf_dlrm")  # does not import it
        places = [f"{place}/runtime" for place in package.submodule_search_locations]
        spec = importlib.machinery.PathFinder.find_spec(full_name, places)
        module = importlib.util.module_from_spec(spec)
        sys.modules[full_name] = module
        spec.loader.exec_module(module)
    return sys.modules[full_name]


UserError = _import_alone("errors").UserError  # first, as the others import it
remote_files = _import_alone("remote_files")  # before `disk`, which imports it
disk = _import_alone("disk")
locks = _import_alone("locks")
