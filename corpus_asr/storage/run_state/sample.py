"""Counts of recordings by type and size, and a few of each: drawn the same way every time.

Holds addresses as they were given, signatures included, and never leaves the process.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from corpus_asr.activity import FileSums, stratum

# Headers of so many recordings tell the hours of a corpus to about a tenth.
SAMPLE_FILES = 64
_KEPT = 4 * SAMPLE_FILES


class SampledFile(NamedTuple):
    """A recording that stands for others of its stratum."""

    recording_id: str
    uri: str
    size_bytes: int | None


class FileSample:
    """Takes in recordings as they are listed; bounded memory, whatever their number."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._bytes: dict[str, int] = {}
        self._drawn: dict[str, list[SampledFile]] = {}
        self._last: dict[str, str] = {}

    def add(
        self, ids: Sequence[str], uris: Sequence[str], sizes_bytes: Sequence[int | None]
    ) -> None:
        """Count recordings, and keep those of each stratum whose identities come first."""
        for recording_id, uri, size_bytes in zip(ids, uris, sizes_bytes, strict=True):
            name = stratum(uri, size_bytes)
            self._files[name] = self._files.get(name, 0) + 1
            self._bytes[name] = self._bytes.get(name, 0) + (size_bytes or 0)
            # Identities are hashes: the first ones are as good as drawn by lot.
            if recording_id < self._last.get(name, "~"):
                self._keep(name, SampledFile(recording_id, uri, size_bytes))

    def _keep(self, name: str, file: SampledFile) -> None:
        drawn = self._drawn.setdefault(name, [])
        drawn.append(file)
        if len(drawn) == _KEPT:
            drawn.sort()
            del drawn[SAMPLE_FILES:]
            self._last[name] = drawn[-1].recording_id

    @property
    def strata(self) -> dict[str, FileSums]:
        """Numbers and sizes of all recordings, by stratum; their seconds are not known."""
        return {
            name: FileSums(files=files, size=files if name.endswith("?") else max(files, size))
            for name, files, size in (
                (name, files, self._bytes[name]) for name, files in self._files.items()
            )
        }

    def draw(self, number: int = SAMPLE_FILES) -> list[SampledFile]:
        """Return at most so many recordings: of each stratum by its bytes, and one at least.

        Strata of the most bytes come first; what is of unknown size counts as usual ones.
        """
        weights = self._weights()
        total = sum(weights.values())
        found: list[SampledFile] = []
        others: list[SampledFile] = []
        for name in sorted(weights, key=lambda name: (-weights[name], name)):
            drawn = sorted(self._drawn[name])
            wanted = min(max(1, round(number * weights[name] / total)), number - len(found))
            found += drawn[:wanted]
            others += drawn[wanted:]
        # Where some strata have fewer than their share.
        return found + others[: number - len(found)]

    def _weights(self) -> dict[str, float]:
        known = sum(files for name, files in self._files.items() if not name.endswith("?"))
        usual = sum(self._bytes.values()) / known if known else 1.0
        return {
            name: max(1.0, files * usual if name.endswith("?") else self._bytes[name])
            for name, files in self._files.items()
        }


def sums_of(found: Iterable[tuple[SampledFile, float]]) -> dict[str, FileSums]:
    """Add up recordings whose seconds are known, by stratum."""
    sums: dict[str, FileSums] = {}
    for file, audio_s in found:
        name = stratum(file.uri, file.size_bytes)
        sums[name] = sums.get(name, FileSums()) + FileSums.of(file.size_bytes, audio_s)
    return sums
