"""Files of lines: find them, and read them in blocks of complete lines."""

import glob
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence

from pipelines.compression import DAMAGES, Content, open_content
from pipelines.runtime import UserError, remote_files

MAX_LINE_BYTES = 16 << 20
stamp = remote_files.stamp
_MAX_OPEN_FILES = 64
_MAX_EXTRA_BYTES = 2 << 20
_HIDDEN = ("_", ".")
_SUCCESS = "_SUCCESS"  # written by Hadoop and Spark next to the parts of a dataset

Paths = str | os.PathLike | Sequence[str | os.PathLike]


def expand_paths(paths: Paths) -> list[str]:
    """Return the files of a path, a glob or a sequence of them.

    Args:
        paths: A path, a glob (`*`, `?`, `[...]`), or a sequence of either. The files of
            a glob are sorted; otherwise the order is kept. An existing path is never
            read as a glob. A folder of part files, as Spark writes it, stands for its
            files, also in partitions: `day=2026-01-01/part-0.parquet`. Names in a
            folder or a glob that begin with "_" or ".", such as `_SUCCESS`, are
            skipped. Addresses (`s3://`, `gs://`, `hdfs://`, `abfs://`) are read through
            Arrow; "?" is not a wildcard in them.

    Returns:
        The paths of the files, at least one.

    Raises:
        FileNotFoundError: If a file is missing or a glob matches nothing.
        ValueError: If a path is a pipe or a directory of other files, an address cannot
            be read, a file is listed twice (also through a link), or all files are
            empty.

    Example:

    >>> import os, tempfile
    >>> from pipelines import files
    >>> folder = tempfile.mkdtemp()
    >>> for day in (1, 0):
    ...     with open(os.path.join(folder, f"day_{day}"), "w") as file:
    ...         _ = file.write("text")
    >>> [os.path.basename(path) for path in files.expand_paths(folder + "/day_*")]
    ['day_0', 'day_1']
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    elif not isinstance(paths, Sequence):
        from pipelines.formats.frame_rows import is_frame

        if is_frame(paths):
            raise TypeError(
                "Paths must be text. Received a data frame: read it with "
                "`pipelines.from_dataframe`."
            )
    expanded = []
    for path in map(os.fspath, paths):
        if not isinstance(path, str):
            raise TypeError(f"Paths must be text. Received: {path!r}")
        path = remote_files.to_local(path)
        if remote_files.is_remote(path):
            expanded += _expand_address(path)
            continue
        found = [path]
        if not os.path.exists(path) and glob.has_magic(path):
            found = [p for p in glob.glob(path, recursive=True) if _is_meant(p, path)]
            if not found:
                raise FileNotFoundError(f"No file matches the pattern {path!r}.")
        for one in sorted(found):
            _check(one)
            expanded += _list_folder(one) if os.path.isdir(one) else [one]
    if not expanded:
        raise UserError("`paths` must name at least one file. Received none.")
    names = {}
    for path in expanded:
        file = path
        if not remote_files.is_remote(path):
            status = os.stat(path)
            file = status.st_dev, status.st_ino
        if file in names:
            first = names[file]
            link = "" if first == path else f" and, through a link, {path!r}"
            raise UserError(f"The same file is listed twice: {first!r}{link}.")
        names[file] = path
    if not any(map(remote_files.size_of, expanded)):
        raise UserError(f"The files are empty: {', '.join(map(repr, expanded))}.")
    return expanded


def _expand_address(address):
    """Return the files of an address, with the same rules as for local paths."""
    addresses, is_folder = remote_files.expand(address)
    if not is_folder:
        if addresses == [address]:
            return addresses
        found = [a for a in addresses if _is_meant(a, address)]
        if not found:
            raise FileNotFoundError(f"No file matches the pattern {address!r}.")
        return found
    names = [remote_files.name_of(a) for a in addresses]
    parts = [
        a
        for a, name in zip(addresses, names, strict=True)
        if not name.startswith(_HIDDEN)
    ]
    if not parts or not (_SUCCESS in names or all(map(_is_part, parts))):
        raise UserError(
            f"{address!r} is a directory, but not one of part files. Name its files, "
            "for example with a pattern that ends in /*."
        )
    return parts


def _is_meant(path: str, pattern: str = "") -> bool:
    """Return True if a path has no hidden names except those in the pattern."""
    asked = pattern.split(os.sep)
    if any(name.startswith(_HIDDEN) and glob.has_magic(name) for name in asked):
        return True
    names = path.split(os.sep)
    return not any(name.startswith(_HIDDEN) and name not in asked for name in names)


def _check(path):
    """Check that a path is a folder, or a file that can be read repeatedly."""
    if not os.path.exists(path):
        if os.path.islink(path):
            raise FileNotFoundError(
                f"There is no file {path!r}: it is a link to {os.readlink(path)!r}, "
                "which does not exist."
            )
        raise FileNotFoundError(f"There is no file {path!r}.")
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise UserError(
            f"{path!r} is {kind}, but input is read more than once. Write its content "
            "to a file first."
        )


def _list_folder(folder):
    """Return the part files of a folder, as one job wrote them."""
    names = sorted(os.listdir(folder))
    parts = [os.path.join(folder, name) for name in names if _is_meant(name)]
    if parts and all(map(_is_partition, parts)):
        return [path for part in parts for path in _list_folder(part)]
    is_whole = _SUCCESS in names or all(map(_is_part, parts))
    if not is_whole or not any(map(os.path.getsize, parts)):
        raise UserError(
            f"{folder!r} is a directory, but not one of part files. Name its files, "
            f"for example with the pattern {os.path.join(folder, '*')!r}."
        )
    for path in parts:
        _check(path)
        if os.path.isdir(path):
            raise UserError(
                f"{folder!r} is a directory that contains folders. Name the files, for "
                f"example with the pattern {os.path.join(folder, '*', '*')!r}."
            )
    return parts


def _is_partition(path):
    """Return True for a partition: a folder of one value, such as day=2026-01-01."""
    return "=" in os.path.basename(path) and os.path.isdir(path)


def _is_part(path):
    return remote_files.name_of(path).startswith("part")


def count_lines(block: bytes) -> int:
    """Return the number of lines of a block; the last one may have no line end."""
    return block.count(b"\n") + (block[-1:] not in (b"", b"\n"))


class BlockReader:
    """Read a plain or compressed file in blocks of complete lines, from any offset.

    A block depends only on the file and the offset, so iterators can share a reader and
    resume at any block. Reading blocks in order costs one sequential read: the file
    stays open at the end of the last block.

    Python's gzip module is used because it checks length and checksum at the end:
    TensorFlow's readers mistake a truncated gzip file for a short one.

    Args:
        block_bytes: Size of a block, before it is completed to full lines.
        is_whole: Function that returns whether a block may end where it does; if not,
            up to 1 MiB of further lines is added. `None`: it may end with any line.

    Example:

    >>> import gzip, os, tempfile
    >>> from pipelines import files
    >>> path = os.path.join(tempfile.mkdtemp(), "lines.gz")
    >>> with gzip.open(path, "wb") as file:
    ...     _ = file.write(b"one\\ntwo\\nthree")
    >>> reader = files.BlockReader(block_bytes=5)
    >>> reader.read(path, 0), reader.read(path, 8), reader.read(path, 13)
    (b'one\\ntwo\\n', b'three', b'')
    """

    def __init__(
        self,
        block_bytes: int = 1 << 20,
        is_whole: Callable[[bytes], bool] | None = None,
    ):
        self.block_bytes, self._is_whole = block_bytes, is_whole
        self._open_files = {}
        self._stored_bytes = {}
        self._lock = threading.Lock()

    def read(self, path: str, offset: int) -> bytes:
        """Read a block.

        Args:
            path: The file.
            offset: Position of the block in the (decompressed) file: 0, or the end of
                another block.

        Returns:
            Complete lines with their line ends; empty at the end of the file. The last
            line of a file may have no line end.

        Raises:
            ValueError: If a compressed file is truncated or damaged, a file does not
                contain lines, or a line is longer than `MAX_LINE_BYTES`.
        """
        with self._lock:
            content = self._open_files.pop((path, offset), None)
        try:
            if content is None:
                content = open_content(path)
                content.stream.seek(offset)
            block = self._read_block(path, offset, content)
        except (*DAMAGES, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # an error of the disk, not of the content
            raise UserError(
                f"{path}: the compressed file is truncated or damaged after byte "
                f"{offset:,} of its content ({error}). Download it again."
            ) from error
        if not block:
            content.stream.close()
            return block
        with self._lock:
            self._stored_bytes[path] = content.stored_bytes()
            self._open_files[path, offset + len(block)] = content
            while len(self._open_files) > _MAX_OPEN_FILES:
                self._open_files.pop(next(iter(self._open_files))).stream.close()
        return block

    def _read_block(self, path: str, offset: int, content: Content) -> bytes:
        block = self._read_lines(path, offset, content)
        if self._is_whole is None or not block:
            return block
        size, num_lines = len(block), 1
        while not self._is_whole(block) and len(block) < size + _MAX_EXTRA_BYTES:
            lines = [content.stream.readline(MAX_LINE_BYTES) for _ in range(num_lines)]
            if not lines[0]:
                break
            block = b"".join([block, *lines])
            num_lines *= 2
        return block

    def _read_lines(self, path: str, offset: int, content: Content) -> bytes:
        block = content.stream.read(self.block_bytes)
        if not block or block.endswith(b"\n"):
            return block
        rest = content.stream.readline(MAX_LINE_BYTES)
        if len(rest) == MAX_LINE_BYTES:
            what = "It may not be a text file."
            if b"\r" in rest:
                what = r"If lines end in a carriage return only, run tr '\r' '\n'."
            raise UserError(
                f"{path}: a line is longer than {MAX_LINE_BYTES:,} bytes, near byte "
                f"{offset + len(block):,}. {what}"
            )
        return block + rest

    def stored_bytes(self, path: str) -> int:
        """Return the number of stored bytes of the file up to the last block's end."""
        with self._lock:
            return self._stored_bytes.get(path, 0)

    def __del__(self):
        for content in self._open_files.values():
            content.stream.close()

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield all blocks of a file."""
        offset = 0
        while block := self.read(path, offset):
            yield block
            offset += len(block)
