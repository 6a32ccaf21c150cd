"""Talking to the Hugging Face Hub without its client's own lines in between."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_CLIENT = "huggingface_hub"
_BELOW = ("httpx", "httpx2")
_log = logging.getLogger("tunestack")


class _Listener(logging.Handler):
    """Says once that the Hub is slow to answer, where its client says so for each of its tries."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told = False

    def emit(self, record: logging.LogRecord) -> None:
        if "Retrying" in record.getMessage() and not self.told:
            self.told = True
            _log.warning("The Hugging Face Hub does not answer. Trying again, for up to a minute ...")


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep requests and retries off the terminal: what fails in the end is told once, as a problem.

    While it is tried again and again, one line says so.
    """
    client = logging.getLogger(_CLIENT)
    levels = {name: logging.getLogger(name).level for name in _BELOW}
    handlers, propagates = client.handlers, client.propagate
    client.handlers, client.propagate = [_Listener()], False
    for name in _BELOW:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        client.handlers, client.propagate = handlers, propagates
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
