"""Logging as it was, after a test that set it up."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from corpus_asr.logs import FORMAT_VARIABLE, LEVEL_VARIABLE, RUN_VARIABLE


@contextmanager
def logging_put_back() -> Iterator[None]:
    """Begin without anything of this package's in the environment, and end as it was."""
    root, own = logging.getLogger(), logging.getLogger("corpus_asr")
    handlers, level = list(root.handlers), own.level
    with mock.patch.dict(os.environ):
        for name in (FORMAT_VARIABLE, LEVEL_VARIABLE, RUN_VARIABLE, "CORPUS_ASR_DEBUG"):
            os.environ.pop(name, None)
        try:
            yield
        finally:
            root.handlers[:] = handlers
            own.setLevel(level)
