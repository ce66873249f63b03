"""Samples of segments with their sound, for a page.

Places of samples are chosen while segments are read; what is chosen is read again. Clips of samples
are cut in a child process within limits of time and bytes, to embed: a recording that cannot be
read, or that crashes its decoder, costs its own clips and no more.
"""

import base64
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from corpus_asr import failure_kinds
from corpus_asr.confidence import WORD_EVIDENCE_COLUMNS, word_confidences
from corpus_asr.errors import EngineError, ItemError
from corpus_asr.logs import event
from corpus_asr.segments import place_of
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.messages import ClipRange, CutRequest
from corpus_asr.storage.run_state.current_rows import read_confidences
from corpus_asr.storage.run_state.part_rows import part_rows_at
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.table_names import LABEL_ROWS, SEGMENT_ROWS, PartRows
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.store import RetryPolicy
from corpus_asr.units import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from corpus_asr.audio.frames import Channels

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingRow:
    """A recording of which clips are cut."""

    recording_id: str
    uri: str
    size_bytes: int | None
    etag: str | None
    """With the size, the version that was transcribed."""
    duration_s: float
    decode_errors: int
    clock_restarts: int = 0
    audio_track: int | None = None
    audio_tracks: Sequence[str] | None = None
    """As in the recordings table."""

    @property
    def needs_decoding(self) -> bool:
        """Whether times are exact only if it is decoded from the start: a seek would be off."""
        return bool(self.decode_errors or self.clock_restarts)


_ROWS = """
select recording_id, uri, size_bytes, etag, coalesce(duration_s, 0) as duration_s,
  coalesce(decode_errors, 0) as decode_errors, coalesce(clock_restarts, 0) as clock_restarts,
  audio_track, audio_tracks
from recordings where recording_id in (select unnest($ids))
"""


def recordings_of(tables: RunTables, identities: Iterable[str]) -> dict[str, RecordingRow]:
    """Return recordings by ID."""
    rows = tables.table(_ROWS, ids=list(identities)).to_pylist()
    return {row["recording_id"]: RecordingRow(**row) for row in rows}


SAMPLES = 12  # of each sort
# One recording of noise would else fill the list.
_MOST_OF_A_RECORDING = 2
_ALTERNATIVES = 3

_PLACE = ("recording_id", "uri", "channel", "start_s", "end_s")
_SAMPLE = (*_PLACE, "text", "language", "confidence")
_WINDOW = (*_PLACE, "part", "window", "rank", "label", "probability")
# Lists with the order of their rows: a draw that the same segments give again, wherever they lie.
_KEYS = {"unsure": "confidence", "random": "hash(recording_id, part, start_s)"}
_NONE = "create or replace table {list} (key double, object int, row bigint, recording_id varchar)"
# The first so far. Many more than are shown: most may be of one recording, of which two are taken.
_FIRST = f"""
create or replace table {{list}} as
from (from {{list}} union all select {{key}}, object, row, recording_id from arrived
      where counts and confidence is not null)
order by key, object, row limit {50 * SAMPLES}
"""
_CHOSEN = f"""
select name, row from {{list}} join objects using (object)
qualify row_number() over (partition by recording_id order by key, object, row) <= {{most}}
order by key, object, row limit {SAMPLES}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A segment of a transcription, or a window of a classification."""

    recording_id: str
    uri: str
    channel: int | None
    start_s: float
    end_s: float
    text: str
    language: str | None
    confidence: float
    words: tuple[tuple[str, float], ...] = ()
    """With their confidences; empty without word times."""
    labels: tuple[tuple[str, float], ...] = ()
    """The likeliest labels of a window, with their probabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """Samples for a page, and their recordings."""

    of_samples: Mapping[str, RecordingRow]
    """The recordings of the samples, by identity."""
    unsure: tuple[Sample, ...]
    """Those of least confidence, at most two of a recording."""
    random: tuple[Sample, ...]


class Sampler:
    """Chooses samples from the segments or labels of a store while these are read."""

    def __init__(self, store: OutputStore) -> None:
        self._store = store
        self._labels = False

    def read(self, tables: RunTables, rows: PartRows) -> None:
        """Read the confidences of all segments or labels, and select samples."""
        self._labels = rows is LABEL_ROWS
        for name in _KEYS:
            tables.execute(_NONE.format(list=name))
        read_confidences(self._store, tables, rows, on_batch=partial(self._choose, tables))

    def _choose(self, tables: RunTables) -> None:
        for name, key in _KEYS.items():
            tables.execute(_FIRST.format(list=name, key=key))

    def details(self, tables: RunTables) -> Details:
        """Read what was chosen."""
        chosen = [
            tables.rows(_CHOSEN.format(list=name, most=most))
            for name, most in (("unsure", _MOST_OF_A_RECORDING), ("random", SAMPLES))
        ]
        samples = self._read({*chain(*chosen)})
        unsure, random = (tuple(samples[place] for place in places) for places in chosen)
        shown = recordings_of(tables, {sample.recording_id for sample in (*unsure, *random)})
        unsure, random = (
            tuple(replace(sample, uri=shown[sample.recording_id].uri) for sample in samples)
            for samples in (unsure, random)
        )
        return Details(
            of_samples=shown,
            unsure=unsure,
            random=random,
        )

    def _read(self, chosen: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Sample]:
        kind, columns, width, made = (
            (LABEL_ROWS, _WINDOW, _ALTERNATIVES, _window) if self._labels else
            (SEGMENT_ROWS, tuple({*_SAMPLE, *WORD_EVIDENCE_COLUMNS}), 1, _segment)
        )  # fmt: skip
        samples = {}
        for name, places in groupby(sorted(chosen), itemgetter(0)):
            spans = [(row, row + width) for _, row in places]
            tables = part_rows_at(self._store, name, kind, columns, spans)  # a commit as a whole
            for (row, _), rows in zip(spans, tables, strict=True):
                samples[name, row] = made(rows.to_pylist())
        return samples


def _segment(rows: Sequence[dict[str, Any]]) -> Sample:
    row = rows[0]
    spelled = (word["word"] for word in row["words"] or ())
    words = tuple(zip(spelled, word_confidences(row), strict=True))
    return Sample(**{name: row[name] for name in _SAMPLE}, words=words)


def _window(rows: Sequence[dict[str, Any]]) -> Sample:
    first = rows[0]
    same = ("recording_id", "part", "window")
    labels = [row for row in rows if all(row[key] == first[key] for key in same)]
    return Sample(
        **{name: first[name] for name in _PLACE},
        text="",
        language=None,
        confidence=first["probability"],
        labels=tuple((row["label"], row["probability"]) for row in labels),
    )


# By name, so that native decoders are imported in the child process alone.
CUTTER = "corpus_asr.stages.cutting:ClipCutter"
# All 24 samples of a page at their longest are 1.0 MB of Opus. Base64 takes a third more, so clips
# add at most 1.5 MB to a page.
MAX_CLIP_S = 20.0
BIT_RATE = 16_000  # source: RFC 6716, section 2.1.1, 16 to 20 kb/s for wideband speech
# A run waits for it at its end: 23 clips of local files took 2.3 s of CPU, child process included.
BUDGET_S = 20.0
# Limit for one clip, so that a stalled store or a hung decoder leaves time for others.
CLIP_LIMIT_S = 6.0
PATIENCE = RetryPolicy(attempts=2, patience_s=CLIP_LIMIT_S, request_timeout_s=CLIP_LIMIT_S)
_PAD_S = 0.2  # words begin a little before the time that a model gives

_WHY: Mapping[str, str] = {
    failure_kinds.ACCESS_DENIED: "the store does not let it be read",
    failure_kinds.NOT_FOUND: "the recording is no longer there",
    failure_kinds.REFUSED_FILE: "it lies outside the folders that this user's runs read",
    failure_kinds.REFUSED_HOST: "its host is not in source.allow_hosts",
    failure_kinds.TIMEOUT: "the store did not answer in time",
    "source_changed": "the recording has changed since it was transcribed",
    "cut_short": "the recording ends before this segment",
    "decoder_crashed": "its decoder crashed",
    "decoder_killed": "its decoder was killed",
    "decoder_timeout": f"it took longer than {CLIP_LIMIT_S:g} s",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleClip:
    """The audio of a sample, or why there is none."""

    data: bytes | None = None
    """An Ogg Opus file."""
    cut: bool = False
    """Whether the segment is longer than the clip."""
    why: str = ""

    @property
    def src(self) -> str:
        """The clip as a data URL."""
        return f"data:audio/ogg;base64,{base64.b64encode(self.data or b'').decode()}"


def cut_clips(
    samples: Iterable[Sample],
    recordings: Mapping[str, RecordingRow],
    *,
    store: StoreOptions,
    channels: "Channels",
) -> dict[Sample, SampleClip]:
    """Return the clip of each sample.

    Args:
        recordings: by recording_id; samples of other recordings get no clip.
        store: access options; retries are limited to `PATIENCE`.
        channels: transcribed channels, `extract.channels` of the run.
    """
    deadline = time.monotonic() + BUDGET_S
    cutter = IsolatedGenerator(
        CUTTER,
        init_kwargs={
            "store": replace(store, policy=PATIENCE),
            "channels": channels,
            "audio_format": "opus",
            "bit_rate": BIT_RATE,
        },
        timeout_s=CLIP_LIMIT_S,
    )
    clips: dict[Sample, SampleClip] = {}
    stopped = ""
    try:
        for sample in dict.fromkeys(samples):  # a sample may be of both kinds
            if time.monotonic() >= deadline:
                stopped = f"the clips before it took {BUDGET_S:g} s"
            if stopped:
                clips[sample] = SampleClip(why=stopped)
                continue
            try:
                clips[sample] = _clip(cutter, sample, recordings.get(sample.recording_id))
            except EngineError as error:  # affects all recordings alike
                stopped = "no process for decoding could be started"
                clips[sample] = _none(sample, error, stopped)
    finally:
        cutter.close()
    return clips


def _clip(cutter: IsolatedGenerator, sample: Sample, recording: RecordingRow | None) -> SampleClip:
    if recording is None:
        return SampleClip(why="its recording is not in the tables")
    start, end = _range(sample, recording.duration_s)
    _, track = place_of(sample.channel, recording.audio_track, recording.audio_tracks)
    clip_range = ClipRange(channel=sample.channel, track=track, start_sample=start, end_sample=end)
    request = CutRequest(
        uri=recording.uri,
        size_bytes=recording.size_bytes,
        etag=recording.etag,
        ranges=(clip_range,),
        seek=not recording.needs_decoding,
    )
    try:
        [clip] = cutter.run(request)
    except EngineError:
        raise
    except ItemError as error:
        return _none(sample, error, _WHY.get(error.kind, "it cannot be read or decoded now"))
    except Exception as error:  # any error costs only this clip
        return _none(sample, error, "it cannot be decoded")
    return SampleClip(
        data=clip.data,
        cut=sample.end_s - sample.start_s > MAX_CLIP_S,
    )


def _range(sample: Sample, duration_s: float) -> tuple[int, int]:
    start_s = max(0.0, sample.start_s - _PAD_S)
    end_s = min(sample.end_s, sample.start_s + MAX_CLIP_S) + _PAD_S
    # The last segment of a recording may extend beyond its end.
    end_s = min(end_s, max(duration_s, start_s + _PAD_S))
    return round(start_s * SAMPLE_RATE_HZ), round(end_s * SAMPLE_RATE_HZ)


def _none(sample: Sample, error: Exception, why: str) -> SampleClip:
    event(
        _LOG, logging.INFO, "clip_not_cut", recording=sample.recording_id,
        why=f"{type(error).__name__}: {error}",
    )  # fmt: skip
    return SampleClip(why=why)
