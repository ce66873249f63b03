"""Decoded audio on local disk: utterances of recordings in, a folder of samples and texts out.

In: utterances. Out: `audio.i16`, the samples of all regions with text one after the other,
`utterances.arrow`, the place and text of each utterance, and `summary.json`, what was excluded and
why. A region is audio without a long pause between utterances. Epochs read through the page cache,
so memory does not grow with the data; the folder takes 115 MB per hour of audio. Independent of
windows and features.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int16, Int64

from corpus_asr.errors import ConfigError, ItemError
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.training.samples import FULL_SCALE, Samples, Wanted, joined, read_samples
from corpus_asr.training.utterances import Recording, Utterance
from corpus_asr.units import SAMPLE_RATE_HZ, WINDOW_SAMPLES

AUDIO_NAME = "audio.i16"
UTTERANCES_NAME = "utterances.arrow"
SUMMARY_NAME = "summary.json"

_SCHEMA = pa.schema(
    [
        pa.field("region", pa.int32(), nullable=False),  # of audio that runs on
        pa.field("start", pa.int64(), nullable=False),  # samples of audio.i16
        pa.field("end", pa.int64(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("language", pa.string()),
        pa.field("previous", pa.string(), nullable=False),  # text preceding the region
    ]
)
_PLACES = ("region", "start", "end", "tokens")
_ROWS_AT_ONCE = 10_000
_FAILURES_KEPT = 20

CountTokens = Callable[[str], int | None]
"""Tokens of a text; None where it holds control tokens."""


@dataclass(frozen=True, slots=True)
class AudioCache:
    """The training or validation data of one machine."""

    audio: Int16[np.ndarray, " sample"]
    """Of the file, mapped into memory."""
    region: np.ndarray
    start: Int64[np.ndarray, " utterance"]
    end: Int64[np.ndarray, " utterance"]
    tokens: np.ndarray
    table: pa.Table
    summary: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map a prepared folder."""
        table = _table(folder / UTTERANCES_NAME)
        summary = json.loads((folder / SUMMARY_NAME).read_text(encoding="utf-8"))
        # numpy maps no empty file
        path = folder / AUDIO_NAME
        audio = np.memmap(path, np.int16, "r") if path.stat().st_size else np.zeros(0, np.int16)
        region, start, end, tokens = (table[name].to_numpy() for name in _PLACES)
        return cls(audio, region, start, end, tokens, table, summary)

    def __len__(self) -> int:
        return len(self.start)

    @property
    def hours(self) -> float:
        """Of utterances, silence between them left out."""
        return float((self.end - self.start).sum()) / SAMPLE_RATE_HZ / 3600

    @property
    def silent(self) -> Int64[np.ndarray, " utterance"]:
        """Utterances without speech."""
        return np.flatnonzero(self.tokens == 0)

    def samples(self, begin: int, end: int) -> Float32[np.ndarray, " _"]:
        """Return a region of the audio, in [-1, 1]."""
        return self.audio[begin:end].astype(np.float32) / np.float32(FULL_SCALE)

    def text(self, utterance: int) -> str:
        """Return the text of an utterance; empty without speech."""
        text: str = self.table["text"][utterance].as_py()
        return text

    def ends(self, utterances: slice) -> int:
        """Return the sample at which the last of some utterances ends: they may overlap."""
        return int(self.end[utterances].max())

    def text_before(self, utterance: int, *, letters: int) -> str:
        """Return at least `letters` characters of the preceding text, if it is known."""
        earlier: list[str] = []
        at = utterance
        while at and self.region[at - 1] == self.region[utterance]:
            at -= 1
            earlier.insert(0, self.text(at))
            if sum(map(len, earlier)) > letters:
                return " ".join(filter(None, earlier))
        first: str = self.table["previous"][at].as_py()
        return " ".join(filter(None, [first, *earlier]))

    def languages(self) -> list[str | None]:
        """Return the languages of utterances with text."""
        spoken = self.table.filter(pa.array(self.tokens > 0))
        found: list[str | None] = spoken["language"].unique().to_pylist()
        return found

    def language(self, utterance: int) -> str | None:
        """Return the code of an utterance's language."""
        code: str | None = self.table["language"][utterance].as_py()
        return code


def _table(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def prepare(
    utterances: Iterable[Utterance],
    folder: Path,
    *,
    count_tokens: CountTokens,
    max_tokens: int,
    max_gap_s: float,
    workers: int,
    timeout_s: float,
    endpoint_url: str | None = None,
) -> AudioCache:
    """Decode what is to be used, or take what an earlier call left in the folder.

    Args:
        utterances: in any order; held in memory, texts included.
        folder: of this machine; replaced unless it holds the same. Recordings whose content
            changed under the same address are not noticed.
        count_tokens: see there.
        max_tokens: of an utterance; longer ones are excluded.
        max_gap_s: audio between two utterances is kept with them up to here.
        workers: recordings decoded at a time.
        timeout_s: the longest silence of a decoder.
        endpoint_url: the S3 endpoint, where it is not Amazon's.

    Raises:
        ConfigError: no usable utterance is left.
        EngineError: decoding cannot continue, independent of the recording.
        OSError: the folder cannot be written.
    """
    counts = _Counts()
    kept = list(_usable(utterances, count_tokens, max_tokens, counts))
    kept.sort(key=lambda pair: _order(pair[0]))
    gap = round(max_gap_s * SAMPLE_RATE_HZ)
    fingerprint = _fingerprint(kept, gap)
    if (folder / SUMMARY_NAME).is_file():
        found = AudioCache.open(folder)
        if found.summary["fingerprint"] == fingerprint:
            return found
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wanted = list(_wanted(kept, gap))
    with _Writer(folder) as writer:
        readings = read_samples(
            (one.wanted for one in wanted),
            workers=workers,
            timeout_s=timeout_s,
            endpoint_url=endpoint_url,
        )
        for one, (_, found_samples) in zip(wanted, readings, strict=True):
            if isinstance(found_samples, ItemError):
                counts.failed(one, found_samples)
            else:
                writer.add(kept[one.first : one.end], one, found_samples, counts)
    _finish(folder, fingerprint, counts)
    return AudioCache.open(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recording:
    wanted: Wanted
    first: int
    """The first of its utterances."""
    end: int


class _Counts:
    """Counts of excluded utterances by reason."""

    def __init__(self) -> None:
        self.utterances = 0
        self.kept = 0
        self.excluded: Counter[str] = Counter()
        self.failures: list[str] = []

    def failed(self, recording: _Recording, error: ItemError) -> None:
        self.excluded[f"utterances of unreadable recordings ({error.kind})"] += (
            recording.end - recording.first
        )
        if len(self.failures) < _FAILURES_KEPT:
            self.failures.append(str(error))


def _usable(
    utterances: Iterable[Utterance], count_tokens: CountTokens, max_tokens: int, counts: _Counts
) -> Iterator[tuple[Utterance, int]]:
    """Yield utterances that fit a window, with the tokens of their texts."""
    known: set[Utterance] = set()
    for utterance in utterances:
        counts.utterances += 1
        if utterance in known:
            # It would be its own neighbour in windows: a text that says all twice.
            counts.excluded["duplicate utterances"] += 1
            continue
        known.add(utterance)
        tokens = count_tokens(utterance.text)
        length_s = 0.0 if utterance.end_s is None else utterance.end_s - utterance.start_s
        if tokens is None:
            counts.excluded["texts with control tokens"] += 1
        elif tokens > max_tokens:
            counts.excluded[f"texts of more than {max_tokens} tokens"] += 1
        elif tokens and length_s * SAMPLE_RATE_HZ > WINDOW_SAMPLES:
            counts.excluded["utterances of more than 30 s"] += 1
        else:
            yield utterance, tokens


def _order(utterance: Utterance) -> tuple[str, int, int, float]:
    row, channel = (-1 if n is None else n for n in (utterance.row, utterance.channel))
    return utterance.uri, row, channel, utterance.start_s


def _fingerprint(kept: list[tuple[Utterance, int]], gap: int) -> str:
    """Return a hash of the utterances and their numbers of tokens."""
    digest = hashlib.sha256(f"{_SCHEMA} {gap}".encode())
    for pair in kept:
        digest.update(repr(pair).encode("utf-8", "replace"))
    return digest.hexdigest()[:32]


def _wanted(kept: list[tuple[Utterance, int]], gap: int) -> Iterator[_Recording]:
    """Yield each recording with what is wanted of it."""
    recordings: list[Recording] = [utterance.recording for utterance, _ in kept]
    firsts = [i for i, one in enumerate(recordings) if not i or recordings[i - 1] != one]
    for first, end in pairwise([*firsts, len(kept)]):
        regions = [_in_samples(utterance) for utterance, _ in kept[first:end]]
        yield _Recording(
            wanted=Wanted(recording=recordings[first], regions=joined(regions, gap=gap)),
            first=first,
            end=end,
        )


def _in_samples(utterance: Utterance) -> tuple[int, int | None]:
    start = round(utterance.start_s * SAMPLE_RATE_HZ)
    end = (
        None if utterance.end_s is None else max(start + 1, round(utterance.end_s * SAMPLE_RATE_HZ))
    )
    return start, end


class _Writer:
    """Appends regions and their utterances."""

    def __init__(self, folder: Path) -> None:
        self._audio = (folder / AUDIO_NAME).open("wb")
        self._sink = pa.OSFile(str(folder / UTTERANCES_NAME), "wb")
        self._rows = pa.ipc.new_file(self._sink, _SCHEMA)
        self._waiting: list[dict[str, Any]] = []
        self._samples = self._regions = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._rows.close()
        self._sink.close()
        self._audio.close()

    def add(
        self,
        utterances: list[tuple[Utterance, int]],
        recording: _Recording,
        found: list[Samples],
        counts: _Counts,
    ) -> None:
        at = 0
        for (begin, until), samples in zip(recording.wanted.regions, found, strict=True):
            while at < len(utterances):
                start, end = _in_samples(utterances[at][0])
                if until is not None and start >= until:
                    break
                utterance, tokens = utterances[at]
                at += 1
                place = (
                    start - begin,
                    min(samples.size, samples.size if end is None else end - begin),
                )
                if place[1] <= place[0]:
                    counts.excluded["utterances after the end of their recording"] += 1
                elif tokens and place[1] - place[0] > WINDOW_SAMPLES:
                    counts.excluded["utterances of more than 30 s"] += 1
                else:
                    counts.kept += 1
                    for piece in range(*place, WINDOW_SAMPLES):  # only what is silent is longer
                        end_of_piece = min(piece + WINDOW_SAMPLES, place[1])
                        self._row(utterance, tokens, (piece, end_of_piece))
            samples.tofile(self._audio)
            self._samples += samples.size
            self._regions += 1

    def _row(self, utterance: Utterance, tokens: int, place: tuple[int, int]) -> None:
        self._waiting.append(
            {
                "region": self._regions,
                "start": self._samples + place[0],
                "end": self._samples + place[1],
                "tokens": tokens,
                "text": utterance.text.strip(),
                "language": utterance.language,
                "previous": utterance.previous,
            }
        )
        if len(self._waiting) == _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        self._rows.write_table(pa.Table.from_pylist(self._waiting, schema=_SCHEMA))
        self._waiting = []


def _finish(folder: Path, fingerprint: str, counts: _Counts) -> None:
    """Write the counts, which says that the folder is whole."""
    if not counts.kept:
        reasons = ", ".join(f"{n} {why}" for why, n in counts.excluded.most_common())
        first = f" ({counts.failures[0]})" if counts.failures else ""
        raise ConfigError(
            f"preparing {redact_uri(str(folder))}: found no usable utterance among "
            f"{counts.utterances}; excluded: {reasons or 'none'}{first}; name other data"
        )
    written = {
        "fingerprint": fingerprint,
        "utterances": counts.utterances,
        "kept": counts.kept,
        "excluded": dict(counts.excluded),
        "failures": counts.failures,
    }
    path = folder / SUMMARY_NAME
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(written, indent=2), encoding="utf-8")
    partial.rename(path)
