"""Two hooks: numbers of texts made unreadable, and vectors by which segments are compared."""

import re
from pathlib import Path

import pyarrow as pa


def redact_numbers(segments: pa.Table, sign: str = "#") -> pa.Table:
    """Return the segments, with a sign in place of each digit, and how many there were."""
    found = [re.subn(r"\d", sign, text) for text in segments["text"].to_pylist()]
    segments = segments.append_column("redacted", pa.array([text for text, _ in found]))
    return segments.append_column("digits", pa.array([count for _, count in found]))


class Embeddings:
    """Vectors of texts, 256 numbers each, by the small model that the package wordllama has in it.

    It compares which words there are, not their order; 16 MB, and no download.
    """

    def __init__(self) -> None:
        import wordllama

        # Its own folder in place of a cache: the network is never asked.
        folder = Path(wordllama.__file__).parent
        self._model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)

    def __call__(self, segments: pa.Table) -> pa.Table:
        """Return the segments with vectors of length 1."""
        texts = segments["text"].to_pylist()
        vectors = self._model.embed(texts, norm=True).tolist()
        return segments.append_column("vector", pa.array(vectors))
