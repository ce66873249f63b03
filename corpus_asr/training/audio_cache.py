"""Decoded audio on local disk: a folder of samples and texts.

    audio.i16           the samples of all regions with text, one after the other
    utterances.arrow    the place and text of each utterance
    summary.json        what was excluded and why; written last

A region is audio without a long pause between utterances. Epochs read through the page cache, so
memory does not grow with the data; the folder takes 115 MB per hour of audio.
"""

import hashlib
import io
import json
import queue
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import numpy as np
import pyarrow as pa

from corpus_asr.array_types import Float32, Int16, Int64
from corpus_asr.audio.decode import open_audio
from corpus_asr.config.decoding import AUTO_TRACK
from corpus_asr.config.finetune import DataSettings
from corpus_asr.errors import ConfigError, DecodeError, ItemError
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.storage.parquet import parquet_rows
from corpus_asr.storage.stores.filesystem import StoreOptions, open_binary
from corpus_asr.storage.stores.uri import redact_uri
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
_NUMBERS = ("region", "start", "end", "tokens")
# Dictionaries take many times the memory of Arrow: some megabytes of them are held at most.
_ROWS_PER_BATCH = 10_000
_FAILURES_KEPT = 20  # messages in summary.json
_DECODE_TIMEOUT_S = 600.0  # the longest silence of a decoder
_FULL_SCALE = 32768.0  # of int16
# Rows of a file with audio are read in order, so that one request fetches several recordings.
_PARQUET_ROWS_AHEAD = 16

Samples = Int16[np.ndarray, "_"]
Region = tuple[int, int | None]
"""First and last sample of a part of a recording; None: up to its end."""
CountTokens = Callable[[str], int | None]
"""Tokens of a text; None where it holds control tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The regions to decode of a recording, ascending, none touching the next."""

    recording: Recording
    regions: tuple[Region, ...]


class SampleReader:
    """Decodes a recording as far as its last region, in a child that may crash or hang."""

    def __init__(self, *, endpoint_url: str | None) -> None:
        self._endpoint_url = endpoint_url
        self._rows: dict[tuple[str, int], bytes | None] = {}

    def __call__(self, wanted: Wanted) -> Iterator[tuple[int, Samples]]:
        """Yield pieces of regions with the number of the region."""
        uri, row, channel, track = wanted.recording
        channels: Literal["mix"] | int = "mix" if channel is None else channel
        begin = done = 0
        with (
            self._opened(uri, row) as file,
            open_audio(
                file, uri=redact_uri(uri), channels=channels, track=track or AUTO_TRACK
            ) as decoder,
        ):
            for chunk in decoder:
                scaled = np.rint(chunk[0] * _FULL_SCALE)
                samples = np.clip(scaled, -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
                after = begin + samples.size
                while done < len(wanted.regions) and wanted.regions[done][0] < after:
                    start, end = wanted.regions[done]
                    last = None if end is None else end - begin
                    yield done, samples[max(0, start - begin) : last]
                    # The region goes on in the next chunk.
                    if end is None or end > after:
                        break
                    done += 1
                # Nothing after the last region is decoded.
                if done == len(wanted.regions):
                    return
                begin = after

    def _opened(self, uri: str, row: int | None) -> BinaryIO:
        store = StoreOptions(endpoint_url=self._endpoint_url)
        if row is None:
            return open_binary(uri, store)
        if (uri, row) not in self._rows:
            with open_binary(uri, store) as file:
                tables = list(parquet_rows(file, ["audio"], [(row, row + _PARQUET_ROWS_AHEAD)]))
            encoded = [audio["bytes"] for table in tables for audio in table["audio"].to_pylist()]
            self._rows = {(uri, row + at): data for at, data in enumerate(encoded)}
        data = self._rows.get((uri, row))
        if data is None:
            raise DecodeError(
                f"decoding row {row} of {redact_uri(uri)}: found no bytes in its column audio, "
                "expected an encoded recording; write the data set with its audio",
                kind="empty_file",
            )
        return io.BytesIO(data)


def read_samples(
    wanted: Iterable[Wanted], *, workers: int, endpoint_url: str | None
) -> Iterator[list[Samples] | ItemError]:
    """Yield the regions of each recording, in order, decoding `workers` at a time.

    Twice as many recordings are in memory.
    """
    children: queue.SimpleQueue[IsolatedGenerator] = queue.SimpleQueue()
    owned = [
        IsolatedGenerator(
            f"{__name__}:{SampleReader.__name__}",
            init_kwargs={"endpoint_url": endpoint_url},
            timeout_s=_DECODE_TIMEOUT_S,
        )
        for _ in range(workers)
    ]
    for child in owned:
        children.put(child)

    def read(recording: Wanted) -> list[Samples] | ItemError:
        child = children.get()
        pieces: list[list[Samples]] = [[] for _ in recording.regions]
        try:
            for number, samples in child.run(recording):
                pieces[number].append(samples)
        except ItemError as error:
            return error
        finally:
            children.put(child)
        return [np.concatenate(each) if each else np.zeros(0, np.int16) for each in pieces]

    pending: deque[Future[list[Samples] | ItemError]] = deque()
    try:
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
            for recording in wanted:
                pending.append(pool.submit(read, recording))
                # As many again are decoded ahead, so that workers never wait for the writer.
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
    finally:
        for child in owned:
            child.close()


def joined(regions: Iterable[Region], *, gap: int) -> tuple[Region, ...]:
    """Join ascending regions that touch, overlap or lie no further apart than `gap`."""
    merged: list[Region] = []
    for start, end in regions:
        before = merged[-1][1] if merged else 0
        if merged and (before is None or start - before <= gap):
            until = None if before is None or end is None else max(before, end)
            merged[-1] = (merged[-1][0], until)
        else:
            merged.append((start, end))
    return tuple(merged)


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
        with pa.memory_map(str(folder / UTTERANCES_NAME)) as file:
            table = pa.ipc.open_file(file).read_all()
        summary = json.loads((folder / SUMMARY_NAME).read_text(encoding="utf-8"))
        # numpy maps no empty file
        path = folder / AUDIO_NAME
        audio = np.memmap(path, np.int16, "r") if path.stat().st_size else np.zeros(0, np.int16)
        region, start, end, tokens = (table[name].to_numpy() for name in _NUMBERS)
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
        return self.audio[begin:end].astype(np.float32) / np.float32(_FULL_SCALE)

    def text(self, utterance: int) -> str:
        """Return the text of an utterance; empty without speech."""
        return str(self.table["text"][utterance])

    def ends(self, utterances: slice) -> int:
        """Return the sample at which the last of some utterances ends: they may overlap."""
        return int(self.end[utterances].max())

    def text_before(self, utterance: int, *, characters: int) -> str:
        """Return at least so many characters of the preceding text, if it is known."""
        earlier: list[str] = []
        at = utterance
        while at and self.region[at - 1] == self.region[utterance]:
            at -= 1
            earlier.insert(0, self.text(at))
            if sum(map(len, earlier)) > characters:
                return " ".join(filter(None, earlier))
        return " ".join(filter(None, [str(self.table["previous"][at]), *earlier]))

    def languages(self) -> list[str | None]:
        """Return the languages of utterances with text."""
        spoken = self.table.filter(pa.array(self.tokens > 0))
        codes: list[str | None] = spoken["language"].unique().to_pylist()
        return codes

    def language(self, utterance: int) -> str | None:
        """Return the code of an utterance's language."""
        code: str | None = self.table["language"][utterance].as_py()
        return code


def prepare(
    utterances: Iterable[Utterance],
    folder: Path,
    data: DataSettings,
    *,
    count_tokens: CountTokens,
    max_tokens: int,
) -> AudioCache:
    """Decode what is to be used, or take what an earlier call left in the folder.

    The folder is replaced unless it holds the same. Recordings whose content changed under the
    same address are not noticed. Utterances of more than `max_tokens` are excluded.
    """
    counts = _Counts()
    kept = list(_usable(utterances, count_tokens, max_tokens, counts))
    # By recording and time, whatever the order of a manifest: each recording is decoded once.
    kept.sort(key=lambda pair: _order(pair[0]))
    gap = round(data.max_gap_s * SAMPLE_RATE_HZ)
    fingerprint = _fingerprint(kept, gap)
    if (folder / SUMMARY_NAME).is_file():
        cache = AudioCache.open(folder)
        # The same utterances, cut the same way: nothing is decoded again.
        if cache.summary["fingerprint"] == fingerprint:
            return cache
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    by_recording = [
        (recording, list(group))
        for recording, group in groupby(kept, key=lambda pair: pair[0].recording)
    ]
    wanted = [
        Wanted(recording=recording, regions=joined(map(_region, group), gap=gap))
        for recording, group in by_recording
    ]
    with _Writer(folder, counts) as writer:
        decoded = read_samples(wanted, workers=max(1, data.workers), endpoint_url=data.endpoint_url)
        for (_, group), regions, samples in zip(by_recording, wanted, decoded, strict=True):
            if isinstance(samples, ItemError):
                counts.failed(len(group), samples)
            else:
                writer.add(group, regions, samples)
    _finish(folder, fingerprint, counts)
    return AudioCache.open(folder)


@dataclass
class _Counts:
    """What is kept and excluded, as summary.json has it."""

    utterances: int = 0
    kept: int = 0
    excluded: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def failed(self, num_utterances: int, error: ItemError) -> None:
        self.excluded[f"utterances of unreadable recordings ({error.kind})"] += num_utterances
        if len(self.failures) < _FAILURES_KEPT:
            self.failures.append(str(error))


def _usable(
    utterances: Iterable[Utterance], count_tokens: CountTokens, max_tokens: int, counts: _Counts
) -> Iterator[tuple[Utterance, int]]:
    known: set[Utterance] = set()
    for utterance in utterances:
        counts.utterances += 1
        if utterance in known:
            # It would be its own neighbor in windows: a text that says all twice.
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


def _order(utterance: Utterance) -> tuple[str, int, int, int, float]:
    numbers = (utterance.row, utterance.channel, utterance.track)
    row, channel, track = (-1 if n is None else n for n in numbers)
    return utterance.uri, row, channel, track, utterance.start_s


def _fingerprint(kept: list[tuple[Utterance, int]], gap: int) -> str:
    digest = hashlib.sha256(f"{_SCHEMA} {gap}".encode())
    for pair in kept:
        digest.update(repr(pair).encode("utf-8", "replace"))
    return digest.hexdigest()[:32]


def _region(pair: tuple[Utterance, int]) -> Region:
    utterance = pair[0]
    start = round(utterance.start_s * SAMPLE_RATE_HZ)
    if utterance.end_s is None:
        return start, None
    # One sample at least: a region of none would end where the next one starts.
    return start, max(start + 1, round(utterance.end_s * SAMPLE_RATE_HZ))


class _Writer:
    """Appends regions and their utterances."""

    def __init__(self, folder: Path, counts: _Counts) -> None:
        self._counts = counts
        self._files = ExitStack()
        self._audio = self._files.enter_context((folder / AUDIO_NAME).open("wb"))
        sink = self._files.enter_context(pa.OSFile(str(folder / UTTERANCES_NAME), "wb"))
        self._rows = self._files.enter_context(pa.ipc.new_file(sink, _SCHEMA))
        self._waiting: list[dict[str, Any]] = []
        self._samples = self._regions = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._files.close()

    def add(
        self, group: list[tuple[Utterance, int]], wanted: Wanted, decoded: list[Samples]
    ) -> None:
        # Utterances and regions of a recording are both in the order of time.
        remaining = deque(group)
        for (begin, until), samples in zip(wanted.regions, decoded, strict=True):
            while remaining and (until is None or _region(remaining[0])[0] < until):
                start, end = _region(remaining[0])
                utterance, tokens = remaining.popleft()
                start -= begin
                end = samples.size if end is None else min(samples.size, end - begin)
                if end <= start:
                    self._counts.excluded["utterances beyond the end of their recording"] += 1
                elif tokens and end - start > WINDOW_SAMPLES:
                    self._counts.excluded["utterances of more than 30 s"] += 1
                else:
                    self._counts.kept += 1
                    # Only silence is longer than a window.
                    for first in range(start, end, WINDOW_SAMPLES):
                        self._row(utterance, tokens, first, min(first + WINDOW_SAMPLES, end))
            samples.tofile(self._audio)
            self._samples += samples.size
            self._regions += 1

    def _row(self, utterance: Utterance, tokens: int, start: int, end: int) -> None:
        self._waiting.append(
            {
                "region": self._regions,
                "start": self._samples + start,
                "end": self._samples + end,
                "tokens": tokens,
                "text": utterance.text.strip(),
                "language": utterance.language,
                "previous": utterance.previous,
            }
        )
        if len(self._waiting) == _ROWS_PER_BATCH:
            self._flush()

    def _flush(self) -> None:
        self._rows.write_table(pa.Table.from_pylist(self._waiting, schema=_SCHEMA))
        self._waiting = []


def _finish(folder: Path, fingerprint: str, counts: _Counts) -> None:
    if not counts.kept:
        reasons = ", ".join(f"{n} {why}" for why, n in counts.excluded.most_common())
        first = f" ({counts.failures[0]})" if counts.failures else ""
        raise ConfigError(
            f"preparing {redact_uri(str(folder))}: found no usable utterance among "
            f"{counts.utterances}; excluded: {reasons or 'none'}{first}; name other data"
        )
    summary = {"fingerprint": fingerprint, **vars(counts)}
    path = folder / SUMMARY_NAME
    # Renamed when it is whole, since its being there says that the folder is.
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(summary, indent=2), encoding="utf-8")
    partial.rename(path)
