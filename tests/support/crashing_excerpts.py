"""A decoder for listening that crashes over one recording; runs in a child process."""

import os
import signal
from collections.abc import Iterator
from typing import Any

from corpus_asr.view.excerpts import Excerpts
from corpus_asr.view.sound import ExcerptRequest


class Crashing(Excerpts):
    """Decodes anything but what is named `segfault`."""

    def __call__(self, request: ExcerptRequest) -> Iterator[Any]:
        """Die as native code does."""
        if "segfault" in request.uri:
            os.kill(os.getpid(), signal.SIGSEGV)
        yield from super().__call__(request)
