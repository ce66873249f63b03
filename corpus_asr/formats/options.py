"""Options of exported files: formats, styles, and limits of cues, by themselves or by a preset.

A command line knows these before it imports what writes files.

Source of the presets: Netflix, Timed Text Style Guide: General Requirements, Subtitle Timing
Guidelines, and the guides of languages; BBC Subtitle Guidelines, 3.1 (line length), 4.1 (minimum
timing), 4.5 (gaps).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from numbers import Integral, Real
from typing import Any, Literal

from corpus_asr.errors import ConfigError

FormatName = Literal[
    "srt", "vtt", "lrc", "txt", "md", "tsv", "csv", "json", "whisperx", "nemo", "rttm", "ctm",
    "eaf",
]  # fmt: skip


JSON_LINES = "jsonl"
"""A line of JSON per transcript: of `transcribe` alone, as `--single` makes it of exports."""


class ExportFormat(StrEnum):
    """Formats of exported files."""

    srt = "srt"
    vtt = "vtt"
    lrc = "lrc"
    txt = "txt"
    md = "md"
    tsv = "tsv"
    csv = "csv"
    json = "json"
    whisperx = "whisperx"
    nemo = "nemo"
    rttm = "rttm"
    ctm = "ctm"
    eaf = "eaf"


class WordStyle(StrEnum):
    """Style of the word being spoken in subtitles, if words have times."""

    plain = "plain"
    highlight = "highlight"  # one cue per word, in which it is underlined, as openai-whisper's


class SubtitlePreset(StrEnum):
    """Broadcasters whose published guides set the limits of subtitles, and `none` for none."""

    none = "none"
    netflix = "netflix"
    netflix_children = "netflix-children"
    bbc = "bbc"


FRAME_S = 1 / 24
"""Minimum duration of a cue in seconds."""

_NETFLIX = {
    "max_line_width": 42, "max_line_count": 2, "min_duration_s": 5 / 6, "max_duration_s": 7.0,
    "min_gap_s": 2 * FRAME_S, "close_gaps_s": 0.5,
}  # fmt: skip
_PRESETS: Mapping[SubtitlePreset | None, Mapping[str, Any]] = {
    None: {
        "max_line_width": 42, "max_line_count": 2, "max_duration_s": 7.0, "min_duration_s": 5 / 6,
    },
    SubtitlePreset.netflix: _NETFLIX | {"max_cps": 20.0},
    SubtitlePreset.netflix_children: _NETFLIX | {"max_cps": 17.0},
    # 37 characters fit 68 % of the picture; pauses shorter than a second flicker.
    SubtitlePreset.bbc: {
        "max_line_width": 37, "max_line_count": 2, "max_wpm": 180.0, "close_gaps_s": 1.0,
    },
}  # fmt: skip
# Languages of wide characters, which take two columns; the second speed is for children. The guides
# count full-width characters, and others as half of one: 13, 16 and 16 a line.
_NETFLIX_WIDTHS = {"ja": 26, "zh": 32, "yue": 32, "ko": 32}
_NETFLIX_CPS = {"ja": (8.0, 8.0), "zh": (18.0, 14.0), "yue": (18.0, 14.0), "ko": (24.0, 18.0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class CueRules:
    """Limits of a cue; None means the preset's value, by default two lines of 42 columns and 7 s.

    A wide character of Chinese, Japanese or Korean takes two columns.

    A cue is extended for reading speed and minimum duration, at most until the next one.
    """

    preset: SubtitlePreset | None = None
    max_line_width: int | None = None
    max_line_count: int | None = None
    max_duration_s: float | None = None
    min_duration_s: float | None = None
    max_cps: float | None = None
    """Maximum columns per second, spaces included."""
    max_wpm: float | None = None
    """Maximum words per minute."""
    min_gap_s: float | None = None
    """Minimum seconds between cues."""
    close_gaps_s: float | None = None
    """Gaps shorter than this are closed, down to `min_gap_s`."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value, kind = getattr(self, name), Integral if isinstance(least, int) else Real
            is_number = isinstance(value, kind) and not isinstance(value, bool)
            if value is not None and not (is_number and value >= least):
                number = "a whole number" if kind is Integral else "a number"
                raise ConfigError(
                    f"reading the rules for subtitles: {name}: found {value!r}, expected {number} "
                    f"of at least {least}; correct it, or leave it out"
                )
        wrong, rules = [], self.of("en")
        if rules.max_line_count is not None and rules.max_line_width is None:
            wrong.append("max_line_count without max_line_width")
        if (rules.min_duration_s or 0.0) > (rules.max_duration_s or float("inf")):
            wrong.append(
                f"min_duration_s {rules.min_duration_s:g} above max_duration_s "
                f"{rules.max_duration_s:g}"
            )
        if wrong:
            raise ConfigError(
                f"reading the rules for subtitles: found {', '.join(wrong)}, expected bounds that "
                "leave room for text; correct them"
            )

    def of(self, language: str | None) -> "CueRules":
        """Return the rules for a language, with the preset's values filled in."""
        if self.preset is SubtitlePreset.none:
            return self
        values = dict(_PRESETS[self.preset])
        if self.preset is not SubtitlePreset.bbc and language in _NETFLIX_CPS:
            values["max_line_width"] = _NETFLIX_WIDTHS[language]
            if self.preset is not None:
                children = self.preset is SubtitlePreset.netflix_children
                values["max_cps"] = _NETFLIX_CPS[language][children]
        if self.max_duration_s is not None and "min_duration_s" in values:
            values["min_duration_s"] = min(values["min_duration_s"], self.max_duration_s)
        settings = {rule_field.name: getattr(self, rule_field.name) for rule_field in fields(self)}
        settings |= {name: value for name, value in values.items() if settings[name] is None}
        return CueRules(**{**settings, "preset": SubtitlePreset.none})


_LEAST = {
    "max_line_width": 1, "max_line_count": 1, "max_duration_s": 0.1, "min_duration_s": 0.0,
    "max_cps": 0.1, "max_wpm": 1.0, "min_gap_s": 0.0, "close_gaps_s": 0.0,
}  # fmt: skip
CUE_LIMITS = tuple(_LEAST)
"""Fields of `CueRules` except the preset."""
