"""TorchRL's own message about a storage, kept from the terminal of whoever uses this package."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_storage_message() -> Iterator[None]:
    """Drop what TorchRL logs when a storage is allocated in this thread; all else is logged."""
    thread = threading.get_ident()

    def is_other(record: logging.LogRecord) -> bool:
        is_of_storage = record.getMessage().startswith("Initialized LazyTensorStorage")
        return not (is_of_storage and record.thread == thread)

    logger = logging.getLogger("torchrl")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
