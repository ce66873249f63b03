"""Corrections and names from the pages: what is asked for is checked, saved and shown.

A segment is named by its key, so that nothing is written over one that has changed meanwhile. Who
saves says which correction they saw: another one in between is shown before it is replaced.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from corpus_asr.errors import ConfigError
from corpus_asr.report.html.formatting import visible
from corpus_asr.storage.run_state.corrections import Correction, correct
from corpus_asr.view.catalogue import Library, Transcript


class ConflictError(Exception):
    """A segment is not, or no longer, what somebody is about to correct."""

    def __init__(self, message: str, *, seen: str = "") -> None:
        super().__init__(message)
        self.seen = seen
        """The correction that the message shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a page asks for."""

    id: str
    """Of the recording."""
    key: str = ""
    """Of the segment."""
    text: str = ""
    checked: bool = False
    name: str = ""
    """Of the person, if given."""
    withdraw: bool = False
    """Go back to the model's text."""
    seen: str = ""
    """The correction that is replaced, or empty."""
    dismiss: str = ""
    """A stale correction to forget, in place of all above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """A name that a page gives to a speaker."""

    id: str
    """Of the recording."""
    speaker: str = ""
    """As the run names them, such as S1."""
    name: str = ""
    """Empty: none again."""
    seen: str = ""
    """The name that is replaced, or empty."""


C = TypeVar("C", Change, Naming)


def parse_change(kind: type[C], body: Mapping[str, Any], *, doing: str) -> C:
    """Read a change; unknown names are ignored."""
    values = {field.name: body[field.name] for field in fields(kind) if field.name in body}
    for name, value in values.items():
        expected = bool if name in ("checked", "withdraw") else str
        if not isinstance(value, expected):
            raise ConfigError(f"{doing}: found {name} {value!r:.50}, expected text")
    if "id" not in values:
        raise ConfigError(f"{doing}: found no id, expected that of a recording")
    return kind(**values)


def save_name(library: Library, uri: str, naming: Naming) -> None:
    """Save the name of a speaker.

    Raises:
        ConfigError: it cannot be saved.
        ConflictError: somebody else gave another name.
        FetchError: the output folder cannot be written to.
    """
    other = library.name(uri, naming.speaker, naming.name, seen=naming.seen)
    if other is not None:
        given = f"called {naming.speaker} “{other}”" if other else "took the name away"
        raise ConflictError(
            f"somebody else has {given} meanwhile; save again to replace that", seen=other
        )


def save_change(
    library: Library, recording: Mapping[str, Any], shown: Transcript, change: Change
) -> None:
    """Save a change of a transcript that is shown, given the row of its recording.

    Raises:
        ConfigError: text or name cannot be saved.
        ConflictError: the segment has changed, or somebody else saved another correction.
        FetchError: the output folder cannot be written to.
    """
    if change.dismiss:
        library.save(_dismissed(shown, change))
        return
    at = shown.number_of(change.key)
    if at is None:
        raise ConflictError(
            "this segment is not there any more, since the recording was transcribed again; "
            "reload the page"
        )
    seen, before = shown.edits.get(at, ("", None))
    if seen != change.seen and before is not None:
        raise ConflictError(
            f"{before.name or 'somebody else'} has corrected this segment meanwhile: "
            f"“{before.text}”; save again to replace that",
            seen=seen,
        )
    original = shown.original(at)
    library.save(
        correct(
            recording,
            original,
            text=original["text"] if change.withdraw else change.text,
            checked=change.checked and not change.withdraw,
            name=change.name,
        )
    )


def _dismissed(shown: Transcript, change: Change) -> Correction:
    stale = shown.stale.get(change.dismiss)
    if stale is None:
        raise ConflictError("this correction is not there any more; reload the page")
    key = {"channel": stale.channel, "start_s": stale.start_s, "end_s": stale.end_s}
    version = {name: getattr(stale, name) for name in ("recording_id", "etag", "size_bytes")}
    said = correct(
        version, key | {"text": stale.original}, text=stale.original, checked=False,
        name=change.name,
    )  # fmt: skip
    return replace(said, original_hash=stale.original_hash)


def correction_data(edit: tuple[str, Correction] | None) -> dict[str, Any] | None:
    """Return a correction as the pages have it."""
    if edit is None:
        return None
    name, correction = edit
    return {
        "id": name,
        "text": correction.text,
        "original": visible(correction.original.strip()),
        "changed": correction.changes,
        "checked": correction.checked,
        "name": visible(correction.name),
        "saved_at": correction.saved_at,
        "start_s": correction.start_s,
    }
