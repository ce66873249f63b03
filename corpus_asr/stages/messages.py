"""Messages to and from the child processes that read headers and cut clips.

Imports no native decoders, Arrow or pydantic: the parents do not need the first, and the children
start faster without the others.
"""

from dataclasses import dataclass

CHANGED = "source_changed"
CUT_SHORT = "cut_short"
"""Failure kinds of a recording that differs from the transcribed one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Header data of one recording."""

    audio_s: float | None = None
    """Seconds to transcribe, summed over separate channels; None if the header has none."""
    tracks: str | None = None
    """Names of its audio tracks if there are several, and the selected one."""
    failure: str | None = None
    """Failure kind that the recording will have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRange:
    """A part of a recording, in samples at 16 kHz."""

    channel: int | None
    """Channel index; None: all channels mixed."""
    track: int | None = None
    """Number of the audio track, from 1; None if there is only one."""
    start_sample: int
    end_sample: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRequest:
    """A transcribed recording, and the ranges to cut out."""

    uri: str
    size_bytes: int | None
    etag: str | None
    ranges: tuple[ClipRange, ...]
    seek: bool = False
    """Seek to the first range. Not for a damaged recording, whose times count only audio that could
    be decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """The encoded clip of one range."""

    number: int
    """Index of its range in the request."""
    data: bytes
    num_samples: int
