"""Files and folders that are to outlast a power cut."""

import os


def sync(path: str | os.PathLike) -> None:
    """Brings a file's content, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: str | os.PathLike) -> None:
    """Brings a folder with all that is in it to the disk."""
    for root, _, files in os.walk(folder):
        for name in files:
            sync(os.path.join(root, name))
        sync(root)
