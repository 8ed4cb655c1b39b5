"""`WeightsFile`: Keras' HDF5 files, written without harm by a full disk."""

import io
import pathlib
from typing import Any


class WeightsFile(io.BytesIO):
    """A file that HDF5 writes to, for which a full disk is an ordinary error.

    After a failed write, HDF5 cannot close its own file: it prints a traceback for each
    object in the file and crashes at the end of the process. This class therefore hides
    failures from HDF5, and `check` raises the first one. (Keras accepts a path or a
    `BytesIO`, of which only the methods below are used.)

    Args:
        path: The file, with a name that Keras accepts.
    """

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self._path = str(path)
        self._error: OSError | None = None
        self._file = open(path, "w+b", buffering=0)
        self._end = 0

    def __str__(self) -> str:
        return self._path

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        start, num_written = self._file.tell(), 0
        try:
            while num_written < len(data) and self._error is None:
                num_written += self._file.write(data[num_written:])
        except OSError as error:
            self._error = error
        self._end = max(self._end, start + len(data))
        self._file.seek(start + len(data))
        return len(data)

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:  # the end of what HDF5 believes it has written
            offset, whence = offset + self._end, io.SEEK_SET
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        self._end = self.tell() if size is None else size
        try:
            self._file.truncate(self._end)
        except OSError as error:
            self._error = self._error or error
        return self._end

    def check(self) -> None:
        """Raise the first error of a write, if there was one."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._file.close()
        super().close()
