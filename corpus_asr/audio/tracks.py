"""Audio tracks of a container, and selection of the track to transcribe.

Films and broadcasts have several: languages, commentaries, audio descriptions, a camera's second
microphone. Players play one at a time, numbered from 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import av
import av.container
from av.audio.codeccontext import AudioCodecContext
from av.stream import Discard, Disposition

from corpus_asr.config.decoding import ALL_TRACKS, AUTO_TRACK
from corpus_asr.errors import DecodeError
from corpus_asr.languages import code_of

# For special audiences, or about the film: players only play them on request.
_SPECIAL = (
    Disposition.comment
    | Disposition.descriptions
    | Disposition.visual_impaired
    | Disposition.hearing_impaired
    | Disposition.clean_effects
    | Disposition.karaoke
)
_TITLE_CHARACTERS = 80
# ISO 639-2 codes: undetermined, several, none, and "other" as written by some muxers.
_UNKNOWN_LANGUAGES = ("", "und", "mul", "zxx", "qaa")


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioTrack:
    """One audio track of a recording, as its header describes it."""

    number: int
    """Number among the audio tracks, from 1."""
    language: str | None
    """Language code in the container, such as `eng`; None without one."""
    title: str | None
    is_default: bool
    is_special: bool
    """Whether it is a commentary, a description or for a special audience."""
    is_readable: bool
    """Whether libav supports its codec, rate and channels."""

    @property
    def name(self) -> str:
        """Language and title; empty if the container has neither."""
        return ": ".join(filter(None, (self.language, self.title)))


def audio_tracks(container: av.container.InputContainer) -> tuple[AudioTrack, ...]:
    """Return the audio tracks of an open container, in its order."""
    return tuple(
        _described(number, stream) for number, stream in enumerate(container.streams.audio, 1)
    )


def in_order(
    tracks: Sequence[AudioTrack], *, track: str | int, languages: Sequence[str], uri: str
) -> list[AudioTrack]:
    """Return the tracks that may be transcribed, best first; all of them for `all`.

    Args:
        tracks: at least one.
        track: `auto`, `all`, a number from 1, or a language by code, tag or name.
        languages: codes of the expected languages, most likely first; empty: any.
        uri: names the recording in messages.

    Raises:
        DecodeError: kind `no_such_track`.
    """
    if track == ALL_TRACKS:
        return list(tracks)
    matches = tracks
    if isinstance(track, int):
        matches = tracks[track - 1 : track] if track > 0 else ()
    elif track != AUTO_TRACK:
        matches = [
            audio_track
            for audio_track in tracks
            if _language(audio_track) == code_of(track).lower()
        ]
    if not matches:
        raise DecodeError(
            f"decoding {uri}: found audio tracks {listed(tracks)}, expected {track}; set "
            "extract.track (--audio-track) to one of these, auto or all",
            uri=uri,
            kind="no_such_track",
        )
    return sorted(matches, key=lambda match: _rank(match, languages))


def listed(tracks: Sequence[AudioTrack]) -> str:
    """Return a list of tracks for a message, such as `1 eng, 2 deu, 3`."""
    return ", ".join(f"{track.number} {track.name}".rstrip() for track in tracks)


def read_only(container: av.container.InputContainer, stream: av.AudioStream) -> None:
    """Make the demuxer skip all other streams."""
    for other_stream in container.streams:
        if other_stream.index != stream.index:
            other_stream.discard = Discard.all


def _rank(track: AudioTrack, languages: Sequence[str]) -> tuple[bool | int, ...]:
    # The language has precedence over the default: if another language is expected, a film's
    # default track is the wrong one. A track without a language may have any.
    language = _language(track)
    expected = len(languages)
    if language in languages:
        expected = languages.index(language)
    elif language is not None:
        expected += bool(languages)
    return (not track.is_readable, track.is_special, expected, not track.is_default, track.number)


def _language(track: AudioTrack) -> str | None:
    return None if track.language is None else code_of(track.language).lower()


def _described(number: int, stream: av.AudioStream) -> AudioTrack:
    context: AudioCodecContext | None = stream.codec_context
    is_known = context is not None and bool(context.sample_rate and context.layout.nb_channels)
    language = _printable(stream.language)
    title = _printable(stream.metadata.get("title"))[:_TITLE_CHARACTERS]
    return AudioTrack(
        number=number,
        language=None if language.lower() in _UNKNOWN_LANGUAGES else language,
        title=title or None,
        is_default=bool(stream.disposition & Disposition.default),
        is_special=bool(stream.disposition & _SPECIAL),
        is_readable=is_known,
    )


def _printable(text: str | None) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text or "").split())
