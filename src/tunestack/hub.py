"""Talking to the Hugging Face Hub without its client's own lines in between."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("huggingface_hub", "httpx", "httpx2")


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep requests and retries off the terminal: what fails in the end is told once, as a problem."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
