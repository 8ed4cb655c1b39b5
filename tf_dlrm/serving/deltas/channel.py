"""`Channel`: the folder through which a model is published, with its bases and deltas.

```
<base_dir>/7/                          a base: an export that TensorFlow Serving loads
<base_dir>/deltas/7/base.json          its checksums and layout; without it, no base
<base_dir>/deltas/7/00000001/          a delta: manifest.json, tables.npz, dense.npz
<base_dir>/deltas/7/00000001-00000009/ nine deltas in one
<base_dir>/HEAD.json                   the state that replicas serve
```
"""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tf_dlrm.runtime import locks
from tf_dlrm.runtime.types import PathLike
from tf_dlrm.serving.deltas import files
from tf_dlrm.serving.deltas import format as formats
from tf_dlrm.serving.deltas.chain import (
    Base,
    Delta,
    Manifest,
    describe_files,
    read_verified,
    to_manifest,
    verify_files,
)
from tf_dlrm.serving.deltas.format import (
    BASE,
    DENSE_FILE,
    HEAD,
    MANIFEST,
    TABLES_FILE,
    DeltaError,
    Layout,
    Position,
    TableRows,
)

_NAME = re.compile(r"(\d{8,})(?:-(\d{8,}))?")


class Channel:
    """The bases and deltas of one published model.

    Args:
        base_dir: Folder of the model's versions, or its address in an object store.
    """

    def __init__(self, base_dir: PathLike) -> None:
        self.base_dir = files.normalize(base_dir)
        self._manifests: dict[tuple[int, str], Manifest] = {}

    def folder_of(self, base: int, name: str = "") -> str:
        """Return the folder of a base's deltas, or of one delta."""
        return files.join(self.base_dir, "deltas", str(base), *([name] if name else []))

    def version_dir(self, base: int) -> str:
        """Return the folder of the export that is a base."""
        return files.join(self.base_dir, str(base))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the channel against other writers; an object store has no lock.

        Raises:
            InUseError: If another process is publishing.
        """
        if not files.is_local(self.base_dir):
            yield
            return
        with locks.locked(files.join(self.base_dir, "deltas")):
            yield

    # Bases

    def bases(self) -> list[int]:
        """Return the versions of all bases, in ascending order."""
        folder = files.join(self.base_dir, "deltas")
        numbers = [int(n) for n in files.names_in(folder) if n.isdecimal()]
        return sorted(n for n in numbers if BASE in files.names_in(self.folder_of(n)))

    def write_base(
        self, version: int, layout: Layout, facts: Mapping[str, Any]
    ) -> Base:
        """Make an export a base.

        Args:
            version: Version of the export.
            layout: Where it stores its weights.
            facts: Further JSON-safe values.
        """
        folder = self.version_dir(version)
        content = {
            "version": version,
            "created": time.time(),
            **facts,
            "layout": layout.to_json(),
            "files": describe_files(folder),
        }
        text, _ = formats.seal(content)
        files.replace_file(files.join(self.folder_of(version), BASE), text)
        return self.read_base(version)

    def read_base(self, version: int, verify: bool = False) -> Base:
        """Return a base.

        Args:
            version: Its version.
            verify: Whether to verify the checksums of all its files.

        Raises:
            DeltaError: If the base is missing or damaged.
        """
        path = files.join(self.folder_of(version), BASE)
        try:
            facts = formats.unseal(files.read(path), path)
        except FileNotFoundError:
            raise DeltaError("missing", f"There is no base {version}: {path}") from None
        if facts["version"] != version:
            problem = f"{path} belongs to base {facts['version']}."
            raise DeltaError("foreign", problem)
        if verify:
            verify_files(self.version_dir(version), facts["files"])
        layout = Layout.from_json(facts["layout"])
        return Base(version, facts["sha256"], layout, facts)

    # Deltas

    def manifests(self, base: Base) -> list[Manifest]:
        """Return the descriptions of a base's deltas, by sequence.

        Raises:
            DeltaError: If one of them is damaged or belongs to another base.
        """
        names = files.names_in(self.folder_of(base.version))
        own = [self.read_manifest(base, n) for n in names if _NAME.fullmatch(n)]
        return sorted(own, key=lambda m: (m.sequence, m.first))

    def read_manifest(self, base: Base, name: str) -> Manifest:
        """Return the description of a delta, verified against its base and its name.

        Args:
            base: The base.
            name: Name of the delta's folder.

        Raises:
            DeltaError: If it is missing, damaged, of another base, of a later release,
                or another delta than the name says.
        """
        key = base.version, name
        if key in self._manifests:
            return self._manifests[key]
        path = files.join(self.folder_of(base.version, name), MANIFEST)
        try:
            facts = formats.unseal(files.read(path), path)
        except FileNotFoundError:
            problem = f"There is no delta {name} of base {base.version}: {path}"
            raise DeltaError("missing", problem) from None
        manifest = to_manifest(facts, name, base, path)
        match = _NAME.fullmatch(name)
        places = match and tuple(int(n) for n in match.groups() if n)
        single = (manifest.sequence,), (manifest.first, manifest.sequence)
        if places not in single:
            raise DeltaError(
                "reordered",
                f"{path} is delta {manifest.sequence}, but its folder is named {name}.",
            )
        self._manifests[key] = manifest
        return manifest

    def read_delta(self, base: Base, name: str) -> Delta:
        """Return a delta after verifying all of its files.

        Args:
            base: The base.
            name: Name of the delta's folder.

        Raises:
            DeltaError: If it is missing, truncated, damaged, of another base or of a
                later release.
        """
        self._manifests.pop((base.version, name), None)  # read what is there now
        manifest = self.read_manifest(base, name)
        contents = {}
        for file in (TABLES_FILE, DENSE_FILE):
            path = files.join(self.folder_of(base.version, name), file)
            contents[file] = read_verified(path, manifest.facts["files"].get(file))
        where = self.folder_of(base.version, name)
        tables = formats.unpack_tables(
            contents[TABLES_FILE], base.layout, files.join(where, TABLES_FILE)
        )
        dense = formats.unpack_dense(
            contents[DENSE_FILE], base.layout, files.join(where, DENSE_FILE)
        )
        return Delta(manifest, tables, dense)

    def write_delta(
        self,
        base: Base,
        tables: Mapping[str, TableRows],
        dense: list[np.ndarray],
        facts: Mapping[str, Any],
        name: str | None = None,
    ) -> Manifest:
        """Write a delta, complete or not at all.

        Args:
            base: The base.
            tables: The rows that it replaces, by table.
            dense: All dense weights.
            facts: JSON-safe values, with `sequence`, `first` and `parents`.
            name: Name of the folder; default: the sequence number.

        Raises:
            FileExistsError: If another process has published the same sequence number.
        """
        names = [name for name, _, _ in base.layout.tables]
        contents = {
            TABLES_FILE: formats.pack_tables(tables, names),
            DENSE_FILE: formats.pack_dense(dense),
        }
        counts = [
            {
                "name": name,
                "rows": len(tables[name].ids),
                "deleted": len(tables[name].deleted),
            }
            for name in names
        ]
        text, _ = formats.seal(
            {
                "base": {"version": base.version, "sha256": base.identity},
                "created": time.time(),
                **facts,
                "tables": counts,
                "files": {
                    file: {"bytes": len(content), "sha256": formats.digest(content)}
                    for file, content in contents.items()
                },
            }
        )
        name = name or f"{facts['sequence']:08d}"
        folder = self.folder_of(base.version, name)
        files.write_folder(folder, {**contents, MANIFEST: text}, MANIFEST)
        return self.read_manifest(base, name)

    def find_way(self, base: Base, start: int, end: int) -> list[str]:
        """Return the names of the fewest deltas that lead from one state to another.

        Args:
            base: The base.
            start: Sequence number of the present state.
            end: Sequence number of the wanted state, at least `start`.

        Raises:
            DeltaError: If a delta in between is missing.
        """
        found = [
            (int(m[1]), int(m[2] or m[1]), name)
            for name in files.names_in(self.folder_of(base.version))
            if (m := _NAME.fullmatch(name))
        ]
        way, place = [], start
        while place < end:
            steps = [
                (last, -first, name)
                for first, last, name in found
                if first <= place + 1 <= last <= end
            ]
            if not steps:
                raise DeltaError(
                    "missing",
                    f"Delta {place + 1} of base {base.version} is missing in "
                    f"{self.folder_of(base.version)}; wanted: {start + 1} to {end}.",
                )
            place, _, name = max(steps)
            way.append(name)
        return way

    # HEAD

    def read_head(self) -> dict[str, Any] | None:
        """Return the content of `HEAD.json`, or `None` before the first release.

        It contains `base`, `sequence`, `state` (the identity of that state) and the
        facts of `move_head`.

        Raises:
            DeltaError: If it is damaged or of a later release.
        """
        path = files.join(self.base_dir, HEAD)
        try:
            return formats.unseal(files.read(path), path)
        except FileNotFoundError:
            return None

    def move_head(
        self, position: Position, state: str, facts: Mapping[str, Any]
    ) -> None:
        """Make a state the one that replicas serve.

        Args:
            position: The state.
            state: Its identity.
            facts: Further JSON-safe values.
        """
        content = {
            "base": position.base,
            "sequence": position.sequence,
            "state": state,
            "moved": time.time(),
            **facts,
        }
        path = files.join(self.base_dir, HEAD)
        files.replace_file(path, formats.seal(content)[0])

    def identity_of(self, base: Base, sequence: int) -> str:
        """Return the identity of a state.

        Args:
            base: The base.
            sequence: Sequence number of the state.

        Raises:
            DeltaError: If no delta leads to it.
        """
        if sequence == 0:
            return base.identity
        manifests = self.manifests(base)
        for manifest in manifests:
            if manifest.sequence == sequence:
                return manifest.state
        for manifest in manifests:  # several deltas in one know the states between
            if manifest.first <= sequence < manifest.sequence:
                return manifest.parents[sequence - manifest.first + 1]
        known = [0, *(m.sequence for m in manifests)]
        raise DeltaError(
            "missing",
            f"No delta leads to sequence {sequence} of base {base.version}. Sequences: "
            f"{', '.join(map(str, sorted(set(known))))}.",
        )
