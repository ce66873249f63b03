"""Corrections and speaker names from pages: validation, saving, and the changed segments.

Segments are identified by keys, which are never reused. Saving a segment that someone else has
changed meanwhile is refused, and the present state displayed; nothing is overwritten unseen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeVar

from corpus_asr.edits.corrected_segments import EditedRow
from corpus_asr.edits.corrections import (
    Correction,
    EditedSegment,
    correct,
)
from corpus_asr.errors import ConfigError
from corpus_asr.json_values import parsed
from corpus_asr.storage.run_state.annotations import SPEAKER_LABEL
from corpus_asr.view.catalogue import Library, Transcript, Transcripts, View

# Overlapping speech exists; a longer overlap with a neighbor is a mistake.
MOST_OVERLAP_S = 1.0
MOST_SEGMENTS = 100
# Around a change: what is left of a segment ends where the change begins.
_REACH_S = 1.0


class ConflictError(Exception):
    """The target of a change no longer exists, or differs from what the person saw."""

    def __init__(
        self, message: str, *, seen: str = "", span: tuple[int | None, float, float] | None = None
    ) -> None:
        super().__init__(message)
        self.seen = seen
        """Speaker name for the message, when naming a speaker."""
        self.span = span
        """Channel, start and end of the segments to display."""
        self.answer: dict[str, Any] = {}
        """Additional data for the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Segments with which a page replaces others."""

    id: str
    """ID of the recording."""
    keys: list[Any] = field(default_factory=list)
    """Keys of the replaced segments."""
    segments: list[EditedSegment] | None = None
    """New segments; None: mark the existing ones as checked."""
    checked: bool = False
    name: str = ""
    """Name of the author, if given."""
    seen: dict[str, Any] = field(default_factory=dict)
    """Seen version of each segment, by key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """A segment whose correction a page reverts."""

    id: str
    """ID of the recording."""
    key: str = ""
    seen: str = ""
    """Seen version of the segment."""
    name: str = ""
    """Name of the author, if given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """A name that a page gives to a speaker."""

    id: str
    """ID of the recording."""
    speaker: str = ""
    """Label in the run, such as S1."""
    name: str = ""
    """New name; empty: remove the name."""
    seen: str = ""
    """The replaced name, or empty."""


C = TypeVar("C", bound=Change | Undo | Naming)


def parse_change(kind: type[C], body: Mapping[str, Any], *, doing: str) -> C:
    """Parse a change; unknown fields are ignored."""
    try:
        change: C = parsed(kind, body)
    except ValueError as error:
        raise ConfigError(f"{doing}: {error}") from error
    return change


def save_name(library: Library, recording: Mapping[str, Any], naming: Naming) -> None:
    """Save the name of a speaker of a recording, given the recording's row.

    Raises:
        ConfigError: the name is invalid.
        ConflictError: someone else gave another name.
        GoneError: see `Library.save`.
        FetchError: the output folder is not writable.
    """
    other_name = library.name(recording, naming.speaker, naming.name, seen=naming.seen)
    if other_name is not None:
        action = f"called {naming.speaker} “{other_name}”" if other_name else "taken the name away"
        raise ConflictError(
            f"another user has {action}; save again to replace that", seen=other_name
        )


@dataclass(frozen=True, slots=True)
class Differences:
    """Segments changed by a save."""

    removed: list[str]
    """Keys of removed segments."""
    rows: list[dict[str, Any]]
    """New segments, as returned by `Transcript.segments`."""


def save_change(
    library: Library,
    transcripts: Transcripts,
    recording: Mapping[str, Any],
    change: Change | Undo,
) -> Differences:
    """Save a change of a recording's transcript, given its row; return the changed segments.

    Raises:
        ConfigError: the change is invalid.
        ConflictError: the segments have changed, or another change was saved.
        GoneError: see `Library.save`.
        FetchError: the output folder is not writable.
    """
    old_transcripts: list[Transcript] = []

    def make(view: View) -> Correction:
        shown = transcripts.read(view, recording)
        old_transcripts.append(shown)
        if isinstance(change, Undo):
            return _withdrawal(view, recording, shown, change)
        speakers = {turn.speaker for turn in transcripts.turns(view, recording["recording_id"])}
        return _correction(view, recording, shown, change, speakers)

    view = library.save(recording, make)
    return _differences(old_transcripts[-1], transcripts.read(view, recording))


def _differences(before: Transcript, after: Transcript) -> Differences:
    # Only around removed and new segments.
    by_key = [{edit.key: edit for edit in shown.edits.values()} for shown in (before, after)]
    changed = [by_key[0].get(key) or by_key[1][key] for key in by_key[0].keys() ^ by_key[1].keys()]
    rows = [
        {row["key"]: row for edit in changed
         for row in shown.between(edit.correction.channel, *_reach(edit))}
        for shown in (before, after)
    ]  # fmt: skip
    return Differences(
        [key for key in rows[0] if key not in rows[1]],
        sorted((row for key, row in rows[1].items() if key not in rows[0]),
               key=lambda row: row["start_s"]),
    )  # fmt: skip


def _reach(edit: EditedRow) -> tuple[float, float]:
    correction, segment = edit.correction, edit.segment
    start_s = min(correction.start_s, segment.start_s)
    return start_s - _REACH_S, max(correction.end_s, segment.end_s) + _REACH_S


def _withdrawal(
    view: View, recording: Mapping[str, Any], shown: Transcript, change: Undo
) -> Correction:
    at = shown.number_of(change.key)
    edit = shown.edits.get(at) if at is not None else None
    if edit is None or change.seen not in ("", edit.correction.id):
        raise _changed(view, shown, recording["recording_id"], [change.key])
    correction_id = edit.correction.id
    if any(correction_id in later.builds_on for later in shown.edits.values()):
        raise ConflictError(
            "later changes build on this one; undo these first",
            span=(edit.correction.channel, *_reach(edit)),
        )
    return correct(recording["recording_id"], (), (), name=change.name, undoes=(correction_id,))


def _changed(
    view: View, shown: Transcript, recording_id: str, keys: Sequence[Any]
) -> ConflictError:
    spans = [span for key in keys if (span := _span_of(view, recording_id, str(key)))]
    if not spans:
        return ConflictError("this segment no longer exists; reload the page")
    channel, start_s, end_s = (
        spans[0][0],
        min(span[1] for span in spans),
        max(span[2] for span in spans),
    )
    names = [row["edit"].correction.name for row in shown.between(channel, start_s, end_s)
             if row["edit"]]  # fmt: skip
    who = next(filter(None, names), "another user" if names else "")
    why = f"{who} has changed this segment" if who else "a run has transcribed this segment again"
    return ConflictError(
        f"{why}; nothing was saved, check its current text",
        span=(channel, start_s, end_s),
    )


def _span_of(view: View, recording_id: str, key: str) -> tuple[int | None, float, float] | None:
    parts = key.split(".")
    if len(parts) == 4 and parts[1].isdecimal() and parts[2].isdecimal():
        channel = int(parts[0]) if parts[0].isdecimal() else None
        return channel, int(parts[1]) / 1000, int(parts[2]) / 1000
    made = view.corrections.get(recording_id, key.rpartition(".")[0])
    return (made.channel, made.start_s, made.end_s) if made and made.segments else None


def _correction(
    view: View,
    recording: Mapping[str, Any],
    shown: Transcript,
    change: Change,
    speakers: set[str],
) -> Correction:
    if not change.keys:
        raise ConfigError("saving a correction: found no keys, expected those of segments")
    keys = list(dict.fromkeys(map(str, change.keys)))
    numbers = sorted(at for key in keys if (at := shown.number_of(key)) is not None)
    rows = [shown.segments(at, 1)[0] for at in numbers]
    if len(rows) < len(keys) or any(
        change.seen.get(row["key"], "") not in ("", row["version"]) for row in rows
    ):
        raise _changed(view, shown, recording["recording_id"], keys)
    channels = {row["channel"] for row in rows}
    if len(channels) > 1:
        raise ConfigError(
            "merging segments: found several channels, expected one; merge the segments of each"
        )
    previous_row, between, next_row = shown.neighbors(numbers)
    if between:
        raise ConfigError(
            "merging segments: found another segment between them, expected consecutive ones; "
            "merge it as well"
        )
    if change.segments is None:
        segments = [
            EditedSegment(
                start_s=row["start_s"], end_s=row["end_s"], text=(row["text"] or "").strip(),
                speaker=row["edit"].segment.speaker if row["edit"] else None,
                checked=change.checked,
            )
            for row in rows
        ]  # fmt: skip
    else:
        # An assigned speaker is kept, even if a later run found fewer speakers.
        kept = {row["edit"].segment.speaker for row in rows if row["edit"]}
        segments = _segments(change, speakers | kept)
        _check_times(recording, rows, segments, previous_row, next_row)
    return correct(change.id, rows, segments, name=change.name)


def _segments(change: Change, speakers: set[str]) -> list[EditedSegment]:
    doing, segments = "saving a correction", change.segments or []
    if len(segments) > MOST_SEGMENTS:
        raise ConfigError(
            f"{doing}: found {len(segments)} segments, expected at most {MOST_SEGMENTS}"
        )
    for segment in segments:
        if not segment.text.strip() and len(segments) > 1:
            raise ConfigError(
                f"{doing}: found a segment without text, expected text; omit the segment to "
                "remove it"
            )
        speaker = segment.speaker
        if speaker and SPEAKER_LABEL.fullmatch(speaker) and speaker not in speakers:
            labels = ", ".join(sorted(speakers)) or "none"
            raise ConfigError(
                f"{doing}: found the speaker {speaker:.50}, expected one of the recording's "
                f"({labels}), or a name"
            )
    return [replace(segment, checked=change.checked) for segment in segments]


def _check_times(
    recording: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    segments: Sequence[EditedSegment],
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> None:
    doing = "moving times"
    if not segments:
        return
    # The model's own values are valid, however odd.
    least_s = min(0.0, *(row["start_s"] for row in rows))
    most_s = max(recording["duration_s"] or 0.0, *(row["end_s"] for row in rows))
    for segment in segments:
        if segment.end_s <= segment.start_s and (segment.start_s, segment.end_s) not in {
            (row["start_s"], row["end_s"]) for row in rows
        }:
            raise ConfigError(
                f"{doing}: found an end at {segment.end_s:.3f} s, expected it after the start at "
                f"{segment.start_s:.3f} s"
            )
        if segment.start_s < least_s or segment.end_s > most_s + 1e-3:
            raise ConfigError(
                f"{doing}: found {segment.start_s:.3f} to {segment.end_s:.3f} s, expected times "
                f"up to the end of the recording, {most_s:.3f} s"
            )
    for first, second in pairwise(segments):
        if second.start_s < max(first.start_s, first.end_s - MOST_OVERLAP_S):
            raise ConfigError(
                f"{doing}: found a segment from {second.start_s:.3f} s after one until "
                f"{first.end_s:.3f} s, expected segments in order that overlap by at most "
                f"{MOST_OVERLAP_S:g} s"
            )
    first_s = min(rows[0]["start_s"], before["end_s"] - MOST_OVERLAP_S if before else math.inf)
    last_s = max(
        *(row["end_s"] for row in rows), after["start_s"] + MOST_OVERLAP_S if after else -math.inf
    )
    if (before and segments[0].start_s < first_s) or (after and segments[-1].end_s > last_s):
        raise ConfigError(
            f"{doing}: found {segments[0].start_s:.3f} to {segments[-1].end_s:.3f} s, expected at "
            f"most {MOST_OVERLAP_S:g} s of the segments before and after; merge with these, or "
            "move their times first"
        )
