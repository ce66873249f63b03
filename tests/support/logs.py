"""Logging as it was, after a test that set it up."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from corpus_asr.logs import FORMAT_VARIABLE, LEVEL_VARIABLE, RUN_VARIABLE


@contextmanager
def logging_put_back() -> Iterator[None]:
    """Begin without anything of this package's in the environment, and end as it was."""
    names = (FORMAT_VARIABLE, LEVEL_VARIABLE, RUN_VARIABLE)
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    root = logging.getLogger()
    own = [logging.getLogger(name) for name in ("corpus_asr",)]
    handlers, levels = list(root.handlers), [logger.level for logger in own]
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for logger, level in zip(own, levels, strict=True):
            logger.setLevel(level)
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)
