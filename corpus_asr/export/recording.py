"""A recording as it is exported: its segments in the order of time.

In: rows of the segments table. Out: values. Knows nothing of files and stores.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from corpus_asr.segments import Segment, Word


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What is known of a recording and what was said in it."""

    recording_id: str
    uri: str
    duration_s: float
    """What was decoded of it."""
    language: str | None
    """What most of its parts were decoded in."""
    failed: bool = False
    """Whether a part of it failed."""
    segments: tuple[Segment, ...] = ()
    """In the order of time."""
    channels: tuple[int | None, ...] = ()
    """The channel of each segment; None where channels were mixed."""

    @property
    def text(self) -> str:
        """The segments' texts joined, outer blanks removed."""
        return "".join(segment.text for segment in self.segments).strip()

    def by_channel(self) -> dict[int | None, list[Segment]]:
        """Return the segments of each channel, in the order of time."""
        found: dict[int | None, list[Segment]] = {}
        for channel, segment in zip(self.channels, self.segments, strict=True):
            found.setdefault(channel, []).append(segment)
        return found


def segment_from(row: Mapping[str, Any]) -> Segment:
    """Return a row of the segments table; columns that were not read are empty."""
    words = row.get("words")
    return Segment(
        start_s=row["start_s"],
        end_s=row["end_s"],
        text=row["text"] or "",
        tokens=tuple(row.get("tokens") or ()),
        language=row.get("language"),
        language_probability=row.get("language_probability"),
        task=row.get("task") or "transcribe",
        confidence=_number(row.get("confidence")),
        avg_logprob=_number(row.get("avg_logprob")),
        no_speech_prob=row.get("no_speech_prob"),
        compression_ratio=_number(row.get("compression_ratio")),
        temperature=_number(row.get("temperature")),
        speech_fraction=row.get("speech_fraction"),
        known_hallucination=bool(row.get("known_hallucination")),
        words=None if words is None else tuple(_words(words)),
        text_logprob=row.get("text_logprob"),
    )


def _words(rows: Iterable[Mapping[str, Any]]) -> Iterable[Word]:
    for row in rows:
        yield Word(
            word=row["word"] or "",
            start_s=row["start_s"],
            end_s=row["end_s"],
            probability=_number(row["probability"]),
        )


def _number(value: float | None) -> float:
    return 0.0 if value is None else value
