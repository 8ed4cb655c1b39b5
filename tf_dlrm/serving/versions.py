"""Version directories: `base/1`, `base/2`, ... Written beside, renamed into place."""

import contextlib
import os
import pathlib
import shutil
import tempfile
import time

from tf_dlrm import disk

_PREFIX = ".tmp-"
_ABANDONED_SECONDS = 24 * 3600


def existing_versions(base_dir) -> list[int]:
    """Version numbers under `base_dir`, ascending; what else is there is no version."""
    base_dir = pathlib.Path(base_dir)
    if not base_dir.is_dir():
        return []
    return sorted(int(p.name) for p in base_dir.iterdir() if p.name.isdecimal())


def choose_version(base_dir, version: int | None) -> int:
    """Returns `version`, or the next one if it is `None`.

    Raises:
        ValueError: If it is not a positive integer.
        FileExistsError: If it is there already; a version is never overwritten.
    """
    versions = existing_versions(base_dir)
    if version is None:
        return (versions[-1] if versions else 0) + 1
    is_count = hasattr(version, "__index__") and not isinstance(version, bool)
    if not is_count or int(version) < 1:
        raise ValueError(
            f"`version` must be a positive integer or None. Received: {version!r}"
        )
    version = int(version)
    if version in versions:
        raise FileExistsError(
            f"Version {version} of {base_dir} exists; a version is never overwritten. "
            "Choose another, or None for the next."
        )
    return version


@contextlib.contextmanager
def staged_directory(base_dir, version: int):
    """Yields a temporary directory that becomes `base_dir/version` on success.

    Its name is no integer, so that TensorFlow Serving does not look at it. On an
    error it is removed.
    """
    base_dir = pathlib.Path(base_dir)
    base_dir.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(base_dir)
    staging = pathlib.Path(
        tempfile.mkdtemp(prefix=f"{_PREFIX}{version}-", dir=base_dir)
    )
    try:
        yield staging
        staging.chmod(0o755)  # mkdtemp's 0o700 would hide it from a server's user
        disk.sync_tree(staging)
        # Renaming onto a version that appeared meanwhile fails: it is not empty.
        os.rename(staging, base_dir / str(version))
        disk.sync(base_dir)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _remove_abandoned(base_dir):
    """Removes what killed exports left; after a day, for others may be at work."""
    for path in base_dir.glob(f"{_PREFIX}*"):
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:
            continue  # another export did, or put it in place
