"""Samples for engines that decode no files themselves, and their recordings in batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32


def read_samples(path: str) -> Float32[np.ndarray, " sample"]:
    """Decode a file to 16 kHz mono.

    Raises:
        DecodeError: it holds no audio.
    """
    # Where engines are timed on windows alone, PyAV need not be installed.
    from corpus_asr.audio.decode import open_audio

    with Path(path).open("rb") as file, open_audio(file, uri=path) as decoder:
        return np.concatenate([chunk[0] for chunk in decoder])


class _Sliced(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Any: ...


def batches(items: _Sliced, size: int) -> Iterator[Any]:
    """Yield `items` in runs of `size`."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
