"""Requests to the children that read headers and cut clips, and their replies.

Free of native decoders, of Arrow and of pydantic: their parents have no use for the first, and the
children start sooner without the others.
"""

from dataclasses import dataclass

CHANGED = "source_changed"
CUT_SHORT = "cut_short"
"""Kinds of failure of a recording that is not what was transcribed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the header of one recording says."""

    index: int
    """Its place among those that were asked for."""
    audio_s: float | None = None
    """Seconds to transcribe, of each channel where they are apart; None where it does not say."""
    tracks: str | None = None
    """Names its audio tracks where there are several, and the one that is taken."""
    failure: str | None = None
    """The kind of failure that the recording will have."""
    is_known: bool = True
    """False where the store failed: the recording itself may be in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRange:
    """A part of a recording, in samples at 16 kHz."""

    channel: int | None
    """None: all of them mixed."""
    track: int | None = None
    """Number of the audio track, from 1; None where there is one."""
    start_sample: int
    end_sample: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRequest:
    """A recording as it was transcribed, and the ranges to cut out."""

    uri: str
    size_bytes: int | None
    etag: str | None
    ranges: tuple[ClipRange, ...]
    seek: bool = False
    """Jump to the first range. Not in a damaged recording, whose times are those of what could be
    decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One range, encoded."""

    number: int
    """Of its range in the request."""
    data: bytes
    num_samples: int
