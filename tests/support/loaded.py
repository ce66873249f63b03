"""A transcriber that is loaded once for many commands of one process."""

from functools import partial
from typing import Any

import pytest

from corpus_asr.runtime.transcriber import FIXED_OPTIONS, Transcriber


class _Lent:
    """The loaded transcriber, with the options of one command; it stays open."""

    def __init__(self, loaded: Transcriber, arguments: dict[str, Any]) -> None:
        options = {name: arguments[name] for name in arguments if name not in FIXED_OPTIONS}
        # Of clear speech five beams say the same, in three times as long.
        self.transcribe_many = partial(loaded.transcribe_many, **options | {"beam_size": 1})
        self.align_many = partial(loaded.align_many, **options)

    def __enter__(self) -> "_Lent":
        return self

    def __exit__(self, *_: object) -> None:
        return


def lend(loaded: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every command of the test transcribe with this, whatever model it names."""

    def from_pretrained(checkpoint: str, **arguments: Any) -> _Lent:
        return _Lent(loaded, arguments)

    monkeypatch.setattr(Transcriber, "from_pretrained", from_pretrained)
