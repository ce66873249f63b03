"""Who says what when, for other tools: RTTM, CTM and Praat's TextGrid.

Source: NIST, 2009 RT evaluation plan, appendix A (RTTM); NIST sclite, `ctm` format; Praat manual,
"TextGrid file formats".
"""

import re
from collections.abc import Iterator, Sequence

from corpus_asr.errors import ConfigError
from corpus_asr.formats.cues import Transcribed, one_line
from corpus_asr.segments import Segment, Word

_BLANKS = re.compile(r"\s+")
_NO_SPEAKER = "text"
# Praat refuses intervals without duration.
_SHORTEST_S = 0.001

_Interval = tuple[float, float, str]


def rttm_text(recording: Transcribed) -> str:
    """Return a line per turn of a speaker.

    Raises:
        ConfigError: speakers were not looked for.
    """
    if recording.turns is None:
        raise ConfigError(
            f"writing RTTM of {recording.uri}: found no speakers, expected their turns; transcribe "
            "with speakers (--diarize, or speakers: auto in a job)"
        )
    name = _name(recording)
    return "".join(
        f"SPEAKER {name} {_channel(turn.channel)} {turn.start_s:.3f} "
        f"{turn.end_s - turn.start_s:.3f} <NA> <NA> {_token(turn.speaker)} {turn.confidence:.3f} "
        "<NA>\n"
        for turn in sorted(recording.turns, key=lambda turn: (turn.start_s, turn.channel or 0))
    )


def ctm_text(recording: Transcribed) -> str:
    """Return a line per word: file, channel, start, duration, word, probability.

    Raises:
        ConfigError: words have no times.
    """
    name = _name(recording)
    lines = []
    for channel, segments in recording.by_channel().items():
        for segment in segments:
            for word in _words(recording, segment):
                lasts_s = max(0.0, word.end_s - word.start_s)
                lines.append(
                    f"{name} {_channel(channel)} {word.start_s:.3f} {lasts_s:.3f} "
                    f"{_token(word.word)} {word.probability:.3f}\n"
                )
    return "".join(lines)


def textgrid_text(recording: Transcribed) -> str:
    """Return an interval tier of each speaker's segments, and where words have times, of those."""
    end_s = max(
        [recording.duration_s, *(segment.end_s for segment in recording.segments)], default=0.0
    )
    tiers: dict[str, list[_Interval]] = {}
    for channel, segments in recording.by_channel().items():
        for segment in segments:
            name = segment.speaker or _NO_SPEAKER
            name = name if channel is None else f"{name} {channel}"
            said = one_line(segment.text).strip()
            tiers.setdefault(name, []).append((segment.start_s, segment.end_s, said))
            if segment.words:
                tiers.setdefault(f"{name} words", []).extend(
                    (word.start_s, word.end_s, one_line(word.word).strip())
                    for word in segment.words
                )
    if not tiers:
        tiers[_NO_SPEAKER] = []
    lines = [
        'File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0",
        f"xmax = {end_s:.3f}", "tiers? <exists>", f"size = {len(tiers)}", "item []:",
    ]  # fmt: skip
    for number, (name, intervals) in enumerate(tiers.items(), 1):
        filled = list(_without_gaps(intervals, end_s))
        lines += [
            f"    item [{number}]:", '        class = "IntervalTier"',
            f"        name = {_quoted(name)}", "        xmin = 0", f"        xmax = {end_s:.3f}",
            f"        intervals: size = {len(filled)}",
        ]  # fmt: skip
        for place, (start_s, stop_s, text) in enumerate(filled, 1):
            lines += [
                f"        intervals [{place}]:", f"            xmin = {start_s:.3f}",
                f"            xmax = {stop_s:.3f}", f"            text = {_quoted(text)}",
            ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _without_gaps(intervals: Sequence[_Interval], end_s: float) -> Iterator[_Interval]:
    # A tier covers all of the time, and no two of its intervals overlap.
    last_s = 0.0
    for start_s, stop_s, text in sorted(intervals):
        start_s, stop_s = round(max(start_s, last_s), 3), round(min(stop_s, end_s), 3)
        if stop_s - start_s < _SHORTEST_S:
            continue
        if start_s - last_s >= _SHORTEST_S:
            yield last_s, start_s, ""
        else:
            start_s = last_s
        yield start_s, stop_s, text
        last_s = stop_s
    if round(end_s, 3) - last_s >= _SHORTEST_S:
        yield last_s, end_s, ""


def _words(recording: Transcribed, segment: Segment) -> Sequence[Word]:
    if segment.words is None:
        raise ConfigError(
            f"writing CTM of {recording.uri}: found words without times, expected them; transcribe "
            "with decoding.word_timestamps"
        )
    return [word for word in segment.words if word.word.strip()]


def _name(recording: Transcribed) -> str:
    path = (recording.uri or "recording").partition("?")[0].rstrip("/").rpartition("/")[2]
    stem = path.rpartition(".")[0] or path
    return _token(stem)


def _token(text: str) -> str:
    # Blanks divide fields.
    return _BLANKS.sub("_", one_line(text).strip()) or "_"


def _channel(channel: int | None) -> int:
    return 1 if channel is None else channel + 1


def _quoted(text: str) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"'
