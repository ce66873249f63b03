"""`Transcript`: the result for a recording, with conversion to text and files."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from os import PathLike, fspath
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from corpus_asr.errors import ConfigError
from corpus_asr.formats.options import CueRules, ExportFormat, FormatName, SubtitlePreset, WordStyle
from corpus_asr.formats.subtitles import check_words
from corpus_asr.formats.writers import file_contents, file_suffix, whisper_json
from corpus_asr.segments import MissingWord, Segment, SpeakerTurn
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import normalize_writable, within
from corpus_asr.units import shortened

_AUDIO_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,10}$")


class SubtitleOptions(TypedDict, total=False):
    """Subtitle limits; by default two lines of 42 characters, shown for at most 7 s.

    Names of the command line, such as max_duration, are accepted too.
    """

    preset: Literal["none", "netflix", "netflix-children", "bbc"] | None
    """Limits of a broadcaster's guide, overridden by other options; with `none` a segment is one
    cue on one line."""
    max_line_width: int | None
    """Maximum columns per line, as displayed: wide characters take two."""
    max_line_count: int | None
    """Maximum lines per cue; needs max_line_width."""
    max_duration_s: float | None
    """Maximum duration of a cue in seconds."""
    min_duration_s: float | None
    """Minimum duration of a cue in seconds, if there is time."""
    max_cps: float | None
    """Maximum columns per second; a cue is extended if there is time."""
    max_wpm: float | None
    """Maximum words per minute; a cue is extended if there is time."""
    min_gap_s: float | None
    """Pause in seconds before the next cue."""
    close_gaps_s: float | None
    """A shorter pause before the next cue is closed, down to min_gap_s."""
    words: Literal["plain", "highlight"]
    """Style of the spoken word: `highlight` (srt, vtt) underlines it; needs word_timestamps."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Transcript:
    """Transcript of one recording.

    Examples:
        >>> transcript = transcriber.transcribe("talk.wav")
        >>> print(transcript.to_srt(max_line_width=24))
        1
        00:00:00,000 --> 00:00:0...
        Today, only platforms
        1 and 3 are used.
        <BLANKLINE>
        <BLANKLINE>
        >>> transcript.to_dict()["model"]
        'whisper-tiny.en'
        >>> [(segment.start_s, segment.text) for segment in transcript]
        [(0.0, ' Today, only platforms 1 and 3 are used.')]
    """

    segments: tuple[Segment, ...]
    """Segments sorted by time."""
    language: str | None
    """Code of the main language; None without speech, or if the model does not detect languages."""
    language_probability: float | None = None
    """Probability of `language`; None if it was configured."""
    duration_s: float
    """Seconds of audio decoded."""
    speech_s: float | None = None
    """Seconds of detected speech; None without detection."""
    speech_without_text_s: float | None = None
    """Seconds of detected speech in text gaps with at least 2 s of it; None without detection."""
    uri: str | None = None
    """URI or name."""
    metadata: dict[str, str] = field(default_factory=dict)
    channel: int | None = None
    """Number of the channel, from 0, or of the track, from 1, of this transcript; None for the
    whole recording."""
    channels: tuple["Transcript", ...] = ()
    """Transcripts of separately transcribed channels or audio tracks; `segments` has the segments
    of all of them, by time."""
    audio_track: int | None = None
    """Number of the transcribed audio track, from 1; None if there is only one, or if each was
    transcribed: then it is the `channel`."""
    audio_tracks: tuple[str, ...] = ()
    """Language and title of each audio track, as far as known; empty if there is only one."""
    silent_tracks: tuple[int, ...] = ()
    """Tracks before it that were skipped for lack of speech."""
    time_corrections: int = 0
    """Number of filled gaps, cut overlaps, damaged timestamps and wrong lengths in the file."""
    model: str | None = None
    """Checkpoint that transcribed it, as configured."""
    turns: tuple[SpeakerTurn, ...] | None = None
    """Speaker turns, by channel, then by time; None without speaker identification."""
    missing: tuple[MissingWord, ...] | None = None
    """Words of the known text missing in the audio; None without such a text."""
    extra_words: int | None = None
    """Number of recognized words that are not in the known text; None without such a text."""

    def __iter__(self) -> Iterator[Segment]:
        """Yield the segments."""
        return iter(self.segments)

    def __repr__(self) -> str:
        """Return one line: source, language, duration, and the start of the text."""
        return (
            f"Transcript(uri={self.uri!r}, language={self.language!r}, "
            f"duration_s={self.duration_s:g}, segments={len(self.segments)}, "
            f"text={shortened(self.text, 60)!r})"
        )

    def __len__(self) -> int:
        """Return the number of segments."""
        return len(self.segments)

    def __bool__(self) -> bool:
        """Return true, even without segments."""
        return True

    @property
    def text(self) -> str:
        """The joined texts of the segments, stripped."""
        return "".join(segment.text for segment in self.segments).strip()

    def by_channel(self) -> dict[int | None, Sequence[Segment]]:
        """Return the segments of each channel, sorted by time."""
        return {part.channel: part.segments for part in self.channels or (self,)}

    def to_srt(self, **options: Unpack[SubtitleOptions]) -> str:
        """Return the transcript as a SubRip file."""
        return self._file("srt", options)

    def to_vtt(self, **options: Unpack[SubtitleOptions]) -> str:
        """Return the transcript as a WebVTT file."""
        return self._file("vtt", options)

    def to_lrc(self, **options: Unpack[SubtitleOptions]) -> str:
        """Return the transcript as an LRC file: `[mm:ss.xx]` before each line."""
        return self._file("lrc", options)

    def to_txt(self) -> str:
        """Return plain text: one line per segment, with speakers one paragraph per turn."""
        return self._file("txt", {})

    def to_tsv(self) -> str:
        """Return tab-separated start and end in milliseconds and text, with a header."""
        return self._file("tsv", {})

    def to_json(self) -> str:
        """Return `to_dict()` as JSON in one line."""
        return self._file("json", {})

    def to_dict(self) -> dict[str, Any]:
        """Return openai-whisper's `text`, `segments` and `language`, with their source.

        Times are in seconds, rounded to milliseconds; `model` and `version` identify the origin.
        """
        return whisper_json(self)

    def save(
        self,
        place: str | PathLike[str],
        *formats: FormatName,
        **options: Unpack[SubtitleOptions],
    ) -> list[str]:
        """Write files as `corpus-asr export` does, replacing those of the same name.

        Args:
            place: without `formats`, a file whose suffix names one, such as `talk.srt`; with
                `formats`, a folder, in which files are named after the recording. Either may be an
                fsspec URI.
            *formats: srt, vtt, lrc, txt, md, tsv, csv, json, whisperx, nemo, rttm, ctm or eaf.
            **options: how subtitles are cut.

        Returns:
            Paths or URIs of the files.

        Examples:
            >>> [path.rpartition("/")[2] for path in transcript.save("subtitles", "srt", "json")]
            ['talk.srt', 'talk.json']

        Raises:
            ConfigError: no such format, or options that do not fit.
            FetchError: a file cannot be written.
        """
        target = normalize_writable(fspath(place), doing="saving to", choose="place")
        if formats:
            wanted = tuple(
                dict.fromkeys(_member("the format", name, ExportFormat) for name in formats)
            )
            stem = within(target.rstrip("/"), self._stem())
            addresses = {file_format: stem + file_suffix(file_format) for file_format in wanted}
        else:
            addresses = {_format_of(target): target}
        contents = self._contents(tuple(addresses), options)
        for content, address in zip(contents, addresses.values(), strict=True):
            filesystem.write_atomic(address, content)
        return list(addresses.values())

    def _stem(self) -> str:
        path = (self.uri or "transcript").partition("?")[0].rstrip("/")
        name = path.rpartition("/")[2]
        return _AUDIO_SUFFIX.sub("", name) or name or "transcript"

    def _file(self, name: FormatName, options: SubtitleOptions) -> str:
        (content,) = self._contents((ExportFormat(name),), options)
        return content.decode()

    def _contents(self, formats: Sequence[ExportFormat], options: SubtitleOptions) -> list[bytes]:
        rules = _named(options)
        words = _member("words", rules.pop("words", "plain"), WordStyle)
        check_words(formats, words)
        if rules.get("preset") is not None:
            rules["preset"] = _member("preset", rules["preset"], SubtitlePreset)
        contents = file_contents(self, formats, rules=CueRules(**rules), words=words)
        return [content for _, content in contents]


_Member = TypeVar("_Member", bound=StrEnum)


def _named(options: Mapping[str, Any]) -> dict[str, Any]:
    # By names in `SubtitleOptions`.
    option_names = SubtitleOptions.__annotations__
    named: dict[str, Any] = {}
    for name, value in options.items():
        if name == "highlight_words" and isinstance(value, bool):
            name, value = "words", "highlight" if value else "plain"
        elif name not in option_names:
            name = {"subtitle_preset": "preset"}.get(name, f"{name}_s")
        if name not in option_names or name in named:
            name = name.removesuffix("_s")
            near = difflib.get_close_matches(name, option_names, n=1)
            raise ConfigError(
                f"writing subtitles: found the option {name}, expected each once of "
                f"{', '.join(option_names)}{f'; did you mean {near[0]}?' if near else ''}"
            )
        named[name] = value
    return named


def _member(what: str, name: str, kind: type[_Member]) -> _Member:
    try:
        return kind(str(name).lower())
    except ValueError as error:
        near = difflib.get_close_matches(str(name).lower(), kind, n=1)
        raise ConfigError(
            f"writing a transcript: found {what} {name!r}, expected {', '.join(kind)}"
            f"{f'; did you mean {near[0]}?' if near else ''}"
        ) from error


def _format_of(path: str) -> ExportFormat:
    # The longest suffix matches: `.whisperx.json` also ends with `.json`.
    for file_format in sorted(ExportFormat, key=lambda choice: -len(file_suffix(choice))):
        if path.endswith(file_suffix(file_format)):
            return file_format
    suffixes = ", ".join(map(file_suffix, ExportFormat))
    raise ConfigError(
        f"saving a transcript as {path}: found no known suffix, expected one of {suffixes}; "
        'correct it, or name formats: save("folder", "srt")'
    )
