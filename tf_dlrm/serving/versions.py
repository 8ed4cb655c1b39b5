"""Version directories `base/1`, `base/2`, ..., which are staged and then renamed."""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator

import tensorflow as tf

from tf_dlrm.runtime import disk
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import PathLike

_PREFIX = ".tmp-"
_ABANDONED_SECONDS = 24 * 3600
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}
_WRITE_ERRORS = (tf.errors.OpError, RuntimeError)  # TensorFlow's, for a full disk


def existing_versions(base_dir: PathLike) -> list[int]:
    """Return the version numbers in `base_dir`, in ascending order."""
    base_dir = pathlib.Path(base_dir)
    if not base_dir.is_dir():
        return []
    return sorted(int(p.name) for p in base_dir.iterdir() if p.name.isdecimal())


def choose_version(base_dir: PathLike, version: int | None) -> int:
    """Return `version`, or the next version if it is `None`.

    Raises:
        ValueError: If `version` is not a positive integer.
        FileExistsError: If the version exists; a version is never overwritten.
    """
    versions = existing_versions(base_dir)
    if version is None:
        return (versions[-1] if versions else 0) + 1
    is_count = hasattr(version, "__index__") and not isinstance(version, bool)
    if not is_count or int(version) < 1:
        raise UserError(
            f"`version` must be a positive integer or None. Received: {version!r}"
        )
    version = int(version)
    if version in versions:
        raise FileExistsError(
            f"Version {version} in {base_dir} exists, and versions are never "
            "overwritten. Choose another one, or omit it to get the next one."
        )
    return version


class Staged:
    """A version that is being written.

    Attributes:
        path: Temporary directory to write the version to.
        version: Number of the version, which is final after the context ends.
    """

    def __init__(self, path: pathlib.Path, version: int) -> None:
        self.path, self.version = path, version


@contextlib.contextmanager
def staged_directory(base_dir: PathLike, version: int | None) -> Iterator[Staged]:
    """Yield a `Staged`, whose directory becomes `base_dir/<version>` on success.

    The temporary name is not an integer, so TensorFlow Serving ignores the directory.
    After an error it is removed. First, the function removes what killed exports on
    this host left behind.

    Args:
        base_dir: Directory of the versions.
        version: Number of the version. With `None`, it is the largest version at the
            end plus one, so that concurrent exports do not collide.

    Raises:
        FileExistsError: If another export has created the version in the meantime.
        OSError: If the version cannot be written.
    """
    base_dir = pathlib.Path(base_dir)
    kept = "Existing versions are unchanged."
    with disk.explaining("the exported model", base_dir, kept, also=_WRITE_ERRORS):
        base_dir.mkdir(parents=True, exist_ok=True)
        disk.remove_abandoned(base_dir)
        _remove_abandoned(base_dir)
        name = disk.temporary_name(str(version or "next"))
        staging = pathlib.Path(tempfile.mkdtemp(prefix=name, dir=base_dir))
        try:
            staged = Staged(staging, choose_version(base_dir, version))
            yield staged
            staging.chmod(0o755)  # mkdtemp's 0o700 would hide it from other users
            disk.sync_tree(staging)
            staged.version = _put_in_place(staging, base_dir, version)
            disk.sync(base_dir)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def _put_in_place(
    staging: pathlib.Path, base_dir: pathlib.Path, version: int | None
) -> int:
    """Rename a directory to its version, without ever replacing an existing one."""
    while True:
        number = choose_version(base_dir, version)
        try:
            os.rename(staging, base_dir / str(number))  # fails if it exists
            return number
        except OSError as error:
            if error.errno not in _TAKEN:
                raise


def _remove_abandoned(base_dir: pathlib.Path) -> None:
    """Remove directories that killed exports of earlier releases left, after a day.

    Their names do not contain the process, so it may still be running.
    """
    for path in base_dir.glob(f"{_PREFIX}*"):
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:
            continue  # another export removed or renamed it
