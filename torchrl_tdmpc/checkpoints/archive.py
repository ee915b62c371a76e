"""Zip files from anywhere: what is looked at before a byte of them is believed."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["first_line", "read_weights", "verify_archive"]

LARGEST_FILE = 32 * 2**30  # bytes; the largest published agent takes 3 GB, with its optimisers 6
LARGEST = {"data.pkl": 2**20}  # bytes; that of a published agent, of any size, has about 10,000


def verify_archive(path: Path, largest: Mapping[str, int]) -> None:
    """Refuse what is no zip file, or one that is damaged or takes more memory than disk.

    Entries must be stored as they are, without compression and beside each other, as PyTorch and
    TorchRL write them: then no small file can become a large one.

    Args:
        path: the file; a link counts as what it points to.
        largest: the most bytes of the entries whose names end so. They are read by parsers, whose
            work and memory may be a multiple of what they read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: what is wrong, as the end of a sentence that begins with the path.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     verify_archive(Path(folder), {})
        Traceback (most recent call last):
        ValueError: is a folder
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is a folder" if path.is_dir() else "is no regular file")
    if status.st_size > LARGEST_FILE:
        raise ValueError(f"has {status.st_size:,} bytes, more than the {LARGEST_FILE:,} allowed")
    try:
        with zipfile.ZipFile(path) as archive:
            _verify_entries(archive.infolist(), status.st_size, largest)
            damaged = archive.testzip()
    except OSError:
        raise
    except Exception as error:  # whatever altered bytes lead zipfile into
        raise ValueError(f"is truncated or altered ({first_line(error)})") from error
    if damaged is not None:
        raise ValueError(f"is truncated or altered (the checksum of {damaged!r} does not hold)")


def _verify_entries(
    entries: list[zipfile.ZipInfo], num_bytes: int, largest: Mapping[str, int]
) -> None:
    names = [entry.filename for entry in entries]
    if len(names) != len(set(names)):
        raise zipfile.BadZipFile("two entries have one name")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise zipfile.BadZipFile("an entry is compressed")
    if sum(entry.file_size for entry in entries) > num_bytes:
        raise zipfile.BadZipFile("its entries say that they hold more bytes than the file")
    for entry in entries:
        for ending, limit in largest.items():
            if entry.filename.endswith(ending) and entry.file_size > limit:
                raise zipfile.BadZipFile(
                    f"{entry.filename!r} has {entry.file_size:,} bytes, more than {limit:,}"
                )


def read_weights(path: str | Path) -> dict[str, Any]:
    """The weights by their names in a file that ``torch.save`` wrote: ``{"model": {...}}``.

    Args:
        path: the file. Nothing else than tensors and plain values is opened.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds something else; the sentence begins with the path.
    """
    try:
        verify_archive(Path(path), LARGEST)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a file of tensors: it {error}.") from error
    try:
        file = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever bytes make torch's reader raise
        raise ValueError(
            f"{path} cannot be read as a file of tensors alone; nothing else is opened, for safety."
        ) from error
    entries = file.get("model") if isinstance(file, dict) else None
    if not isinstance(entries, dict):
        raise ValueError(f"{path} has no entry 'model' with a dictionary of weights.")
    for name, value in entries.items():
        if not isinstance(name, str):
            raise ValueError(
                f"{path} has the entry {name!r}; its entries must have words as names."
            )
        if isinstance(value, Tensor) and not _is_plain(value):
            raise ValueError(
                f"entry {name!r} of {path} is no plain tensor with numbers of its own."
            )
    return entries


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor takes the memory that its shape says."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    if tensor.is_nested or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def first_line(error: BaseException) -> str:
    r"""What an error says, up to its first line break and without a full stop.

    Examples:
        >>> first_line(ValueError("the file is odd.\nIt has no end."))
        'the file is odd'
    """
    return str(error).partition("\n")[0].strip().rstrip(".")[:300] or type(error).__name__
