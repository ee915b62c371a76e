"""One writer at a time in the folder of a run."""

from __future__ import annotations

import gc
import os
import socket
import warnings
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["FolderLock"]


class FolderLock:
    """Holds a folder, by the lock of a file in it, until :meth:`release` or the process's death.

    The system releases the lock of a process that dies, however it dies. The file names the holder.
    A folder that several hosts share may hide their locks from each other: a holder on another host
    counts as alive until its file is removed. On Windows nothing is locked.

    Args:
        folder: made when absent.

    Raises:
        FileExistsError: another writer holds it; the sentence names its process and host.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> lock = FolderLock(folder)
        >>> FolderLock(folder)
        Traceback (most recent call last):
        FileExistsError: output_dir '...' is in use by process ... on host ...
        >>> lock.release()
        >>> FolderLock(folder).release()
    """

    NAME = "run.lock"

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.path = self.folder / self.NAME
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = self._acquire()
        self._file.truncate(0)
        self._file.write(f"{os.getpid()} {socket.gethostname()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let others write; nothing if that was done already."""
        if not self._file.closed:
            if self._is_there():
                self.path.unlink()
            self._file.close()

    def refuse_deleted(self) -> None:
        """Notice that the folder is gone, or is another one by now.

        Raises:
            FileNotFoundError: it is.
        """
        if not self._is_there():
            raise FileNotFoundError(
                f"output_dir {str(self.folder)!r} was deleted, moved or replaced during the run: "
                f"its {self.NAME} is not there any more."
            )

    def _acquire(self) -> TextIO:
        """The locked file, once it is the one of that name: its last holder may have removed it."""
        while True:
            self._file = self.path.open("a+", encoding="utf-8")
            self._lock()
            if self._is_there():
                return self._file
            self._file.close()

    def _lock(self) -> None:
        holder = self._holder()
        if holder is not None and holder[0] == str(os.getpid()):
            gc.collect()  # a trainer of this process that nobody has any more
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            process, host = holder or ("unknown", "unknown")
            self._refuse(f"in use by process {process} on host {host}", "end that run first")
        except OSError as error:  # a file system without locks
            warnings.warn(f"{self.path} cannot be locked ({error}).", stacklevel=4)
        if holder is not None and holder[1] != socket.gethostname():
            self._refuse(
                f"held by process {holder[0]} on host {holder[1]}, which cannot be asked from here",
                f"if that run has ended, remove {self.path}",
            )

    def _holder(self) -> tuple[str, str] | None:
        """Process id and host in the file; None if nobody is named."""
        self._file.seek(0)
        process, _, host = self._file.read(1000).strip().partition(" ")
        return (process, host) if process.isdecimal() and host else None

    def _refuse(self, what: str, way_out: str) -> None:
        self._file.close()
        raise FileExistsError(
            f"output_dir {str(self.folder)!r} is {what}; choose another folder, or {way_out}."
        )

    def _is_there(self) -> bool:
        """Whether the file that is locked has its name still."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False
