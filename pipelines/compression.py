"""Read compressed and plain files, and recognize files that contain no lines.

The kind of a file is determined by its first bytes, not by its name.
"""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import pyarrow

from pipelines.runtime import UserError, remote_files

DAMAGES = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
_START_BYTES = 512  # first bytes that identify a file; a tar archive needs 262
_MAGICS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x5d\0\0": "xz",  # the older format, .lzma
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",  # an empty archive
}
_SUFFIXES = {
    ".gz": "gzip",
    ".zst": "zstd",
    ".bz2": "bzip2",
    ".xz": "xz",
    ".lz4": "lz4",
    ".zip": "zip",
    ".br": "brotli",
}
_OTHERS = {
    b"PAR1": "a Parquet file",
    b"PARE": "an encrypted Parquet file",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"\x1f\x9d": "a file of the program `compress`",
    b"\xff\x06\0\0sNaPpY": "a Snappy file",
    b"\x89LZO": "an lzop file",
    b"\x02\x21\x4c\x18": "an lz4 file of the old format",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"ARROW1": "an Arrow (Feather) file",
    b"FEA1": "an old Feather file",
    b"\xff\xff\xff\xff": "an Arrow stream",
    b"\x78\x01": "zlib data",
    b"\x78\x9c": "zlib data",
    b"\x78\xda": "zlib data",
    b"SEQ": "a Hadoop sequence file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"SQLite format 3": "an SQLite database",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04\x95": "a Python pickle",
    b"\x80\x05\x95": "a Python pickle",
}
_LFS_POINTER = b"version https://git-lfs.github.com/"
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r"))


class Content(NamedTuple):
    """The content of a file, as a binary stream that can be read and moved forward.

    Attributes:
        stream: The stream.
        stored_bytes: Function that returns the number of stored (compressed) bytes read
            so far.
    """

    stream: io.BufferedIOBase
    stored_bytes: Callable[[], int]


def compression_of(path: str) -> str | None:
    """Return the compression of a file, such as `"gzip"`, or `None`."""
    return _find(path, read_start(path))


def read_start(path: str, num_bytes: int = _START_BYTES) -> bytes:
    """Return the first bytes of a file, or all of a shorter one."""
    with remote_files.open_file(path, buffer_bytes=num_bytes) as file:
        return file.read(num_bytes)


def to_arrow(path: str, buffer_bytes: int = 1 << 20) -> pyarrow.NativeFile:
    """Open a file or an address for Arrow."""
    if not remote_files.is_remote(path):
        return pyarrow.OSFile(path)
    return pyarrow.PythonFile(remote_files.open_file(path, buffer_bytes), "r")


def open_content(path: str) -> Content:
    """Open a file to read its decompressed content.

    Raises:
        ValueError: If it does not contain lines; the message names its kind.
        OSError: Or another of `DAMAGES`, if it is damaged.
    """
    start = read_start(path)
    kind = _find(path, start)
    if kind is None:
        _check_start(path, start, "")
        for suffix, name in _SUFFIXES.items():
            if remote_files.name_of(path).endswith(suffix):
                raise UserError(
                    f"{path}: named {suffix}, but does not contain {name} data. Rename "
                    "it if it is plain text; otherwise download it again."
                )
        stream = remote_files.open_file(path)
        return Content(stream, stream.tell)
    content = _open_compressed(path, kind)
    _check_start(path, content.stream.peek(_START_BYTES), f"within {kind}")
    return content


def _open_compressed(path, kind):
    if kind in ("zstd", "lz4", "brotli"):
        file = _ArrowFile(path, kind)
        return Content(io.BufferedReader(file, 1 << 20), file.stored_bytes)
    raw = remote_files.open_file(path)
    if kind == "zip":
        return Content(_open_member(path, raw), raw.tell)
    if kind == "gzip":
        return Content(gzip.open(raw, "rb"), raw.tell)
    new = bz2.BZ2Decompressor if kind == "bzip2" else lzma.LZMADecompressor
    return Content(io.BufferedReader(_StreamsFile(raw, new), 1 << 20), raw.tell)


def _open_member(path, raw):
    archive = zipfile.ZipFile(raw)
    members = [
        member
        for member in archive.infolist()
        if not member.is_dir() and not _is_hidden(member.filename)
    ]
    if any(member.filename == "[Content_Types].xml" for member in members):
        raise UserError(
            f"{path} is an Office document, not lines of text. Save it as "
            "tab-separated text first."
        )
    if len(members) != 1 or members[0].flag_bits & 1:
        what = "an encrypted" if len(members) == 1 else f"{len(members)}"
        raise UserError(
            f"{path}: a zip archive must contain exactly one unencrypted file; this "
            f"one contains {what} file{'s' * (len(members) != 1)}. Extract it first."
        )
    return archive.open(members[0])


def _is_hidden(member):
    """Return True if a member of an archive is a hidden file of an operating system."""
    names = member.split("/")
    return names[0] == "__MACOSX" or names[-1] == ".DS_Store"


def _find(path, start):
    while start[1:4] == b"\x2a\x4d\x18" and 0x50 <= start[0] <= 0x5F:
        # A skippable frame, such as pzstd writes; those of zstd and lz4 are the same.
        size = 8 + int.from_bytes(start[4:8], "little")
        if size >= len(start):
            with remote_files.open_file(path) as file:
                file.seek(size)
                start = bytes(size) + file.read(_START_BYTES)
        start = start[size:]
    for magic, kind in _MAGICS.items():
        if start.startswith(magic):
            return kind
    return "brotli" if remote_files.name_of(path).endswith(".br") else None


def _check_start(path, start, place):
    """Raise an error if the first bytes are not those of lines."""
    start = start[:_START_BYTES]
    what = _describe(start)
    for magic, kind in _MAGICS.items():
        if place and start.startswith(magic):
            what = f"{kind} data"
    if what is not None:
        what = f"{what} {place}".rstrip()
        raise UserError(
            f"{path} is {what}, not lines of text. Extract or convert it first."
        )
    if start.startswith(_LFS_POINTER):
        raise UserError(
            f"{path} is a Git LFS pointer, not the file itself. Fetch the file first: "
            "git lfs pull."
        )
    encoding = _find_encoding(start)
    if encoding:
        raise UserError(
            f"{path} is {encoding} text, but lines must be UTF-8 or ASCII. Convert it "
            f"first: iconv -f {encoding} -t UTF-8."
        )


def _describe(start):
    if start[257:262] == b"ustar":
        return "a tar archive"
    if start and not start.strip(b"\0") and len(start) == _START_BYTES:
        return "zero bytes"
    if start[:64].translate(None, _CONTROLS) == start[:64]:
        return None
    return next((w for magic, w in _OTHERS.items() if start.startswith(magic)), None)


def _find_encoding(start):
    """Return UTF-16 or UTF-32 if every other byte, or three of four, is zero."""
    text = start[4:68]  # after a byte-order mark
    zeros = [not text[i::4].strip(b"\0") for i in range(4)]
    if len(text) < 8:
        return None
    for pattern, name in (
        ([False, True, True, True], "UTF-32LE"),
        ([True, True, True, False], "UTF-32BE"),
        ([False, True, False, True], "UTF-16LE"),
        ([True, False, True, False], "UTF-16BE"),
    ):
        if zeros == pattern:
            return name
    for mark, name in ((b"\xff\xfe", "UTF-16LE"), (b"\xfe\xff", "UTF-16BE")):
        if start.startswith(mark) and b"\0" in text:
            return name
    return None


class _ForwardFile(io.RawIOBase):
    """The content of a compressed file; seeks only forward or to 0."""

    _position = 0

    def restart(self) -> None:
        """Go to the first byte."""
        raise NotImplementedError

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self._position

    def seek(self, offset, whence=io.SEEK_SET):
        if whence == io.SEEK_CUR:
            offset += self._position
        if offset < self._position:
            self.restart()
            self._position = 0
        while self._position < offset and self.read(
            min(offset - self._position, 1 << 20)
        ):
            pass
        return self._position


class _StreamsFile(_ForwardFile):
    """The content of bzip2 or xz streams one after another, with zeros between them.

    The classes of the standard library end without an error where zeros or other bytes
    follow a stream.
    """

    def __init__(self, raw, new):
        self._raw, self._new = raw, new
        self.restart()

    def restart(self):
        self._raw.seek(0)
        self._stream, self._rest = self._new(), b""

    def readinto(self, buffer):
        data = b""
        while not data:
            if self._stream.eof:
                self._rest = self._stream.unused_data.lstrip(b"\0")
                while not self._rest:
                    more = self._raw.read(1 << 16)
                    if not more:
                        return 0
                    self._rest = more.lstrip(b"\0")
                self._stream = self._new()
            elif self._stream.needs_input and not self._rest:
                self._rest = self._raw.read(1 << 16)
                if not self._rest:
                    raise EOFError("The last stream is truncated.")
            compressed, self._rest = self._rest, b""
            try:
                data = self._stream.decompress(compressed, len(buffer))
            except OSError as error:  # from bzip2
                raise EOFError(str(error)) from error
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class _ArrowFile(_ForwardFile):
    """The content of a file that Arrow decompresses."""

    def __init__(self, path, codec):
        self._path, self._codec = path, codec
        self.restart()

    def restart(self):
        self._file = to_arrow(self._path)
        self._stream = pyarrow.CompressedInputStream(self._file, self._codec)

    def stored_bytes(self):
        return self._file.tell()

    def readinto(self, buffer):
        try:
            num_bytes = self._stream.readinto(buffer)
        except OSError as error:
            if "memory" in str(error):  # after `zstd --long=31`, for example
                raise UserError(
                    f"{self._path}: the window of its {self._codec} compression is too "
                    "large. Compress it again with a smaller window."
                ) from error
            raise EOFError(str(error)) from error
        self._position += num_bytes
        return num_bytes
