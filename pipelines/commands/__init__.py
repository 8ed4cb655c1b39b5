"""The commands of `tf-dlrm`, each a dataclass of its options.

Options are declared without importing TensorFlow, so that help and errors appear at
once; the module of a command is imported at its first use. `plan` describes what the
command would do, `run` does it.
"""

import ast
import importlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any


class Commands(Mapping):
    """The classes of the commands by name, each imported at its first use.

    Args:
        places: Module and class of each command, by name.
    """

    def __init__(self, places: dict[str, tuple[str, str]]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> type[Any]:
        module, kind = self._places[name]
        return getattr(importlib.import_module(f"{__name__}.{module}"), kind)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def summary(self, name: str) -> str:
        """Return the first line of a command's docstring, without importing it."""
        module, kind = self._places[name]
        source = pathlib.Path(__file__).with_name(f"{module}.py")
        for node in ast.parse(source.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == kind:
                return (ast.get_docstring(node) or "").splitlines()[0]
        raise LookupError(f"{source} has no class {kind}.")


# Module and class of each command, in groups as `tf-dlrm --help` shows them.
GROUPS = {
    "Start here": {
        "demo": ("demo", "Demo"),
        "schema": ("schema", "GuessSchema"),
    },
    "Train and measure": {
        "train": ("model", "Train"),
        "tune": ("tune", "Tune"),
        "evaluate": ("evaluate", "Evaluate"),
        "importance": ("importance", "FeatureImportance"),
        "tables": ("importance", "InspectTables"),
        "report": ("report", "Report"),
        "runs": ("demo", "Runs"),
    },
    "Serve": {
        "export": ("export", "Export"),
        "predict": ("predict", "Predict"),
        "verify": ("export", "Verify"),
        "publish": ("fresh", "Publish"),
        "follow-deltas": ("fresh", "FollowDeltas"),
        "rollback": ("fresh", "Rollback"),
        "release": ("fresh", "Release"),
    },
    "Data": {
        "prepare": ("prepare", "Prepare"),
        "generate": ("generate", "Generate"),
        "profile-trace": ("generate", "ProfileTrace"),
    },
    "Speed": {
        "benchmark": ("benchmark", "Benchmark"),
    },
}
COMMANDS = Commands(
    {name: place for group in GROUPS.values() for name, place in group.items()}
)
