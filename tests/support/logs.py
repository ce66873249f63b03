"""Logging as it was, after a test that set it up."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from corpus_asr.logs import FORMAT_VARIABLE, LEVEL_VARIABLE, RUN_VARIABLE


@contextmanager
def logging_put_back() -> Iterator[None]:
    """Begin without anything of this package's in the environment, and end as it was."""
    root, own = logging.getLogger(), logging.getLogger("corpus_asr")
    handlers, level = list(root.handlers), own.level
    names = (FORMAT_VARIABLE, LEVEL_VARIABLE, RUN_VARIABLE, "CORPUS_ASR_DEBUG")
    # Only these names are put back: a session's fixture may set others during its first test.
    before = {name: os.environ.pop(name, None) for name in names}
    try:
        yield
    finally:
        root.handlers[:] = handlers
        own.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
