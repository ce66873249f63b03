"""Manual corrections of segments: one small object per save, separate from the tables.

    corrections/RECORDING_ID/NUMBER.json

A correction replaces the segments of one channel in a time span by new segments: texts, speakers,
times, checks, splits, merges and removals are all of this form. Corrections are numbered, and a
save creates the number after the last one its author saw. With two servers, one save is therefore
refused; that server reads the new corrections and retries if they concern other segments, so
nothing is overwritten unseen. An undo is a save that lists revoked corrections.

`corrected_segments` places them on a transcript, also on one of another model.
"""

import datetime
import hashlib
import json
import unicodedata
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from corpus_asr.errors import ConfigError
from corpus_asr.json_values import Seconds, parsed
from corpus_asr.storage.run_state.annotations import (
    CORRECTION_SUFFIX,
    CORRECTIONS_FOLDER,
    read_corrections,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem

_DIGITS = 6
# A 30 s segment has some 500 characters; a page of text in one is a mistake.
MAX_TEXT_CHARS = 4_000
MAX_NAME_CHARS = 100
_HASH_BYTES = 8


def hash_of(text: str) -> str:
    """Return the hash used to compare texts of segments."""
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=_HASH_BYTES).hexdigest()


def key_of(row: Mapping[str, Any]) -> str:
    """Return the key of a model's segment within its recording."""
    channel = "" if row["channel"] is None else row["channel"]
    start_ms, end_ms = (round(1000 * row[name]) for name in ("start_s", "end_s"))
    return f"{channel}.{start_ms}.{end_ms}.{hash_of(row['text'] or '')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EditedSegment:
    """A segment as edited by a person."""

    start_s: Seconds
    end_s: Seconds
    text: str
    """Text without outer spaces; empty: the segment is removed."""
    speaker: str | None = None
    """A label such as S1, or a name; None: the speaker of the turn at that time."""
    checked: bool = False
    """Whether a person compared the text with the audio."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """Segments that replace those of a channel in a time span."""

    id: str
    recording_id: str
    channel: int | None
    start_s: Seconds
    end_s: Seconds
    original: str
    """The replaced text as its author saw it, with single spaces."""
    segments: tuple[EditedSegment, ...]
    """New segments; None: this correction only revokes others."""
    name: str
    """Name of the author, if given."""
    saved_at: str
    """Time of the save in ISO 8601, UTC."""
    undoes: tuple[str, ...] = ()
    """IDs of corrections that it revokes."""
    file_digest: str = ""
    """Edited file of which this is the last correction; empty: none."""

    def __post_init__(self) -> None:
        if not self.segments and not self.undoes:
            raise ValueError("no segments")

    @property
    def text(self) -> str:
        """The corrected text."""
        return joined_text(segment.text for segment in self.segments)


def correct(
    recording_id: str,
    replaced: Sequence[Mapping[str, Any]],
    segments: Sequence[EditedSegment],
    *,
    name: str = "",
    undoes: Sequence[str] = (),
) -> Correction:
    """Return a correction, its texts with single spaces; no segments means removal.

    Args:
        replaced: channel, start_s, end_s and text of segments of one channel, in time order; empty:
            it only revokes others.

    Raises:
        ConfigError: a text or name is too long or has invalid characters.
    """
    start_s = min((row["start_s"] for row in replaced), default=0.0)
    end_s = max((row["end_s"] for row in replaced), default=0.0)
    if replaced and not segments:
        segments = [EditedSegment(start_s=start_s, end_s=end_s, text="")]
    return Correction(
        id=uuid.uuid4().hex[:12],
        recording_id=recording_id,
        channel=replaced[0]["channel"] if replaced else None,
        start_s=start_s,
        end_s=end_s,
        original=joined_text(row["text"] or "" for row in replaced),
        segments=tuple(
            replace(
                segment,
                text=plain_text("the corrected text", segment.text, MAX_TEXT_CHARS),
                speaker=plain_text("the speaker", segment.speaker or "", MAX_NAME_CHARS) or None,
            )
            for segment in segments
        ),
        name=plain_text("the name", name, MAX_NAME_CHARS),
        saved_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        undoes=tuple(undoes),
    )


def plain_text(what: str, text: str, max_chars: int) -> str:
    """Return a text entered by a person, with single spaces.

    Raises:
        ConfigError: it is too long or has invalid characters.
    """
    if len(text) > max_chars:
        raise ConfigError(
            f"saving {what}: found {len(text):,} characters, expected {max_chars:,} at most; "
            "shorten it"
        )
    text = spaced_once(text)
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise ConfigError(
                f"saving {what}: found the character U+{ord(character):04X}, expected text; "
                "remove it"
            )
    return text


def joined_text(texts: Iterable[str]) -> str:
    """Return texts joined to one, with single spaces."""
    return spaced_once(" ".join(texts))


def spaced_once(text: str) -> str:
    """Return a text with single spaces, stripped."""
    return " ".join(text.split())


Saved = Mapping[str, Correction]
"""Corrections by object name."""


def save_correction(store: OutputStore, correction: Correction, saved: Saved) -> str | None:
    """Save a correction under the number after the known ones; return its object name.

    None: another correction was saved first, and nothing was written.
    """
    folder = f"{CORRECTIONS_FOLDER}/{correction.recording_id}/"
    last = max((name for name in saved if name.startswith(folder)), default="")
    number = int(last.removeprefix(folder).removesuffix(CORRECTION_SUFFIX) or 0) + 1
    name = f"{folder}{number:0{_DIGITS}}{CORRECTION_SUFFIX}"
    text = json.dumps(asdict(correction), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    is_first = filesystem.create(store.address(name), text.encode(), store.options)
    return name if is_first else None


def read_saved(store: OutputStore, known: Saved | None = None) -> dict[str, Correction]:
    """Return all saves of an output folder; `known` ones, which are immutable, are not reread.

    Raises:
        CorpusAsrError: an object is not a correction, or of an older version.
    """
    return read_corrections(store, partial(parsed, Correction), known)


class Corrections:
    """Effective (not revoked) corrections of each recording, in the order of their saves."""

    def __init__(self, saved: Saved) -> None:
        self._saves: dict[str, dict[str, Correction]] = {}
        for name in sorted(saved):
            self._saves.setdefault(saved[name].recording_id, {})[name] = saved[name]
        counting = {key: _counting([*saves.values()]) for key, saves in self._saves.items()}
        self._counting = {key: corrections for key, corrections in counting.items() if corrections}

    @classmethod
    def load(cls, store: OutputStore) -> "Corrections":
        """Read the corrections of an output folder."""
        return cls(read_saved(store))

    def __len__(self) -> int:
        """Return the number of segments that people edited, checked or removed, placed or not."""
        return sum(map(_count_segments, self._counting.values()))

    @property
    def recording_ids(self) -> list[str]:
        """Recordings with an effective correction."""
        return list(self._counting)

    def of(self, recording_id: str) -> tuple[Correction, ...]:
        """Return the effective corrections of a recording, of any of its versions."""
        return self._counting.get(recording_id, ())

    def edition(self, recording_id: str) -> str:
        """Return a text that changes with each save of a recording."""
        return max(self._saves.get(recording_id, {}), default="")

    @property
    def editions(self) -> dict[str, str]:
        """The edition of each recording with an effective correction."""
        return {recording_id: self.edition(recording_id) for recording_id in self._counting}

    def get(self, recording_id: str, identity: str) -> Correction | None:
        """Return a save, effective or revoked; None without one."""
        saves = self._saves.get(recording_id, {}).values()
        return next((save for save in saves if save.id == identity), None)

    def digest(self) -> str:
        """Return a digest of all effective corrections."""
        content = [
            [recording_id, correction.channel, correction.start_s, correction.end_s,
             correction.original, [asdict(segment) for segment in correction.segments]]
            for recording_id in sorted(self._counting)
            for correction in self._counting[recording_id]
        ]  # fmt: skip
        return hash_of(json.dumps(content)) if content else ""


def _counting(saves: Sequence[Correction]) -> tuple[Correction, ...]:
    # Revoking an undo restores what it had revoked.
    undone: set[str] = set()
    counting = []
    for save in reversed(saves):
        if save.id not in undone:
            undone.update(save.undoes)
            counting.append(save)
    return tuple(save for save in reversed(counting) if save.segments)


def _count_segments(corrections: Sequence[Correction]) -> int:
    middles: list[tuple[int | None, float]] = []
    for correction in corrections:
        middles = [
            (channel, middle_s) for channel, middle_s in middles
            if channel != correction.channel
            or not correction.start_s <= middle_s <= correction.end_s
        ]  # fmt: skip
        middles += [(correction.channel, (segment.start_s + segment.end_s) / 2)
                    for segment in correction.segments]  # fmt: skip
    return len(middles)
