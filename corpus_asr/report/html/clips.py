"""Clips of a page's samples: cut in a child process within limits of time and bytes, to embed.

A recording that cannot be read, or that crashes its decoder, costs its own clips and no more.
"""

import base64
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from corpus_asr import failure_kinds
from corpus_asr.errors import EngineError, ItemError
from corpus_asr.logs import event
from corpus_asr.report.recordings import RecordingRow
from corpus_asr.report.samples import Sample
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.messages import ClipRange, CutRequest
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.store import RetryPolicy
from corpus_asr.units import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from corpus_asr.audio.resample import Channels

_LOG = logging.getLogger(__name__)

# By name, so that native decoders are imported in the child process alone.
CUTTER = "corpus_asr.stages.cutting:ClipCutter"
# All 24 samples of a page at their longest are 1.0 MB of Opus; the limit holds whatever comes.
# Base64 takes a third more, so clips add at most 1.5 MB to a page.
MAX_CLIP_S = 20.0
BIT_RATE = 16_000  # source: RFC 6716, section 2.1.1, 16 to 20 kb/s for wideband speech
MAX_BYTES = 1_100_000
# A run waits for it at its end: 23 clips of local files took 2.3 s of CPU, child process included.
BUDGET_S = 20.0
# Of one clip: a store that stalls or a decoder that hangs leaves time for others.
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
    duration_s: float = 0.0
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
    budget_s: float = BUDGET_S,
) -> dict[Sample, SampleClip]:
    """Return the clip of each sample.

    Args:
        recordings: those of the samples, by recording_id; samples of others have no clip.
        store: how the recordings are reached; its retries are cut down to `PATIENCE`.
        channels: which channels were transcribed, `extract.channels` of the run.
        budget_s: after so many seconds no further clip is started.
    """
    deadline = time.monotonic() + budget_s
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
    num_bytes, stopped = 0, ""
    try:
        for sample in dict.fromkeys(samples):  # one may be of both kinds
            if num_bytes + MAX_CLIP_S * BIT_RATE / 8 > MAX_BYTES:
                stopped = f"the clips before it fill {MAX_BYTES / 1e6:.1f} MB"
            elif time.monotonic() >= deadline:
                stopped = f"the clips before it took {budget_s:g} s"
            if stopped:
                clips[sample] = SampleClip(why=stopped)
                continue
            try:
                clips[sample] = _clip(cutter, sample, recordings.get(sample.recording_id))
                num_bytes += len(clips[sample].data or b"")
            except EngineError as error:  # no fault of this recording: others have none, either
                stopped = "no process for decoding could be started"
                clips[sample] = _none(sample, error, stopped)
    finally:
        cutter.close()
    return clips


def _clip(cutter: IsolatedGenerator, sample: Sample, recording: RecordingRow | None) -> SampleClip:
    if recording is None:
        return SampleClip(why="its recording is not in the tables")
    start, end = _range(sample, recording.duration_s)
    request = CutRequest(
        uri=recording.uri,
        size_bytes=recording.size_bytes,
        etag=recording.etag,
        ranges=(ClipRange(channel=sample.channel, start_sample=start, end_sample=end),),
        # Times of damaged recordings are those of what could be decoded, which a seek misses.
        seek=not recording.decode_errors,
    )
    try:
        [clip] = cutter.run(request)
    except EngineError:
        raise
    except ItemError as error:
        return _none(sample, error, _WHY.get(error.kind, "it cannot be read or decoded now"))
    except Exception as error:  # whatever one recording did costs its clip alone
        return _none(sample, error, "it cannot be decoded")
    return SampleClip(
        data=clip.data,
        duration_s=clip.num_samples / SAMPLE_RATE_HZ,
        cut=sample.end_s - sample.start_s > MAX_CLIP_S,
    )


def _range(sample: Sample, duration_s: float) -> tuple[int, int]:
    start_s = max(0.0, sample.start_s - _PAD_S)
    end_s = min(sample.end_s, sample.start_s + MAX_CLIP_S) + _PAD_S
    # The last segment of a recording may end behind it.
    end_s = min(end_s, max(duration_s, start_s + _PAD_S))
    return round(start_s * SAMPLE_RATE_HZ), round(end_s * SAMPLE_RATE_HZ)


def _none(sample: Sample, error: Exception, why: str) -> SampleClip:
    event(
        _LOG, logging.INFO, "clip_not_cut", recording=sample.recording_id,
        why=f"{type(error).__name__}: {error}",
    )  # fmt: skip
    return SampleClip(why=why)
