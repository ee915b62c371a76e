"""Files that are there in full or not at all, and that stay."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["checksum", "naming_file", "publish"]


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Put the name of a file into an error that has none, such as that of a full disk.

    Examples:
        >>> with naming_file(Path("train.csv")):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: 'train.csv'
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def publish(staged: Path, path: Path) -> None:
    """Move a written file to its name, so that a process or machine that dies leaves it whole.

    Args:
        staged: the file, complete, on the file system of ``path``.
        path: its name; a file of that name is replaced.

    Raises:
        OSError: if the disk is full or fails; ``path`` is as it was then.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     staged, path = Path(folder, ".new"), Path(folder, "numbers")
        ...     _ = staged.write_bytes(b"123")
        ...     publish(staged, path)
        ...     path.read_bytes(), checksum(path), staged.exists()
        (b'123', 2286445522, False)
    """
    with naming_file(path):
        _flush(staged)
        os.replace(staged, path)
        if os.name == "posix":
            _flush(path.parent)  # the new name


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> int:
    """The CRC-32 of a file's bytes."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value
