"""Corrections that people make to segments: one small object per save, apart from the tables.

    corrections/RECORDING_ID/STEM.json

Nothing is rewritten, so two windows or two servers cannot destroy each other's work: of several
saves of one segment the last by name, which is by time, counts. A correction names the segment's
channel, times and text. So it survives whatever is transcribed again, applies to every version of
its recording that says the same at the same time, and does not apply to a segment that has changed
since; such a correction is `stale`. The version of the recording that was corrected is kept for the
record.
"""

import datetime
import hashlib
import json
import math
import re
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.storage.run_state.tables import READERS, OutputStore, time_ns_of
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import redact_uri

CORRECTIONS_FOLDER = "corrections"
_SUFFIX = ".json"
# A segment of 30 s has some 500 characters; a page of text in one is a mistake.
MAX_TEXT_CHARS = 4_000
MAX_NAME_CHARS = 100
_HASH_BYTES = 8
# What a person vouches for. Scores of the model are those of its own text.
CORRECTED_CONFIDENCE = 1.0
_SCORES = ("tokens", "text_logprob", "avg_logprob", "no_speech_prob", "compression_ratio",
           "temperature")  # fmt: skip
# Inserted words for which there is no pause borrow time from a neighbor.
_SHORTEST_WORD_S = 0.02


class SegmentKey(NamedTuple):
    """What a correction knows a segment by, within a recording."""

    channel: int | None
    start_ms: int
    end_ms: int
    text_hash: str

    def __str__(self) -> str:
        channel = "" if self.channel is None else self.channel
        return f"{channel}.{self.start_ms}.{self.end_ms}.{self.text_hash}"


def hash_of(text: str) -> str:
    """Return the hash by which a segment's text is compared."""
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=_HASH_BYTES).hexdigest()


def key_of(row: Mapping[str, Any]) -> SegmentKey:
    """Return the key of a row of the segments table."""
    start_ms, end_ms = (round(1000 * row[name]) for name in ("start_s", "end_s"))
    return SegmentKey(row["channel"], start_ms, end_ms, hash_of(row["text"] or ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What a person said of a segment."""

    recording_id: str
    etag: str | None
    """Of the recording when it was transcribed, as is the size."""
    size_bytes: int | None
    channel: int | None
    start_s: float
    end_s: float
    original: str
    """The model's text."""
    original_hash: str
    text: str
    """Without outer spaces; empty where nothing is said."""
    checked: bool
    """Whether the text was compared with the audio."""
    name: str
    """Of the person, if given."""
    saved_at: str
    """ISO 8601, UTC."""

    @property
    def key(self) -> SegmentKey:
        """The segment that is corrected."""
        start_ms, end_ms = (round(1000 * value) for value in (self.start_s, self.end_s))
        return SegmentKey(self.channel, start_ms, end_ms, self.original_hash)

    @property
    def changes(self) -> bool:
        """Whether the text differs from the model's."""
        return self.text != _spaced_once(self.original)

    @property
    def segment_text(self) -> str:
        """The text in place of the model's, whose space before it stays; empty if removed."""
        if not self.changes:
            return self.original
        space = self.original[: len(self.original) - len(self.original.lstrip())]
        return space + self.text if self.text else ""

    @property
    def stands(self) -> bool:
        """Whether it says anything: the model's text, not checked, withdraws what was saved."""
        return self.changes or self.checked


def correct(
    recording: Mapping[str, Any],
    segment: Mapping[str, Any],
    *,
    text: str,
    checked: bool,
    name: str = "",
) -> Correction:
    """Return a correction of a segment.

    Args:
        recording: recording_id, etag and size_bytes of the catalog.
        segment: channel, start_s, end_s and text, as the model has it.
        text: spaces and line breaks become single spaces.

    Raises:
        ConfigError: text or name is too long, or has characters that are no text.
    """
    original = segment["text"] or ""
    return Correction(
        **{name: recording[name] for name in ("recording_id", "etag", "size_bytes")},
        **{name: segment[name] for name in ("channel", "start_s", "end_s")},
        original=original,
        original_hash=hash_of(original),
        text=plain_text("the corrected text", text, MAX_TEXT_CHARS),
        checked=checked,
        name=plain_text("the name", name, MAX_NAME_CHARS),
        saved_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def plain_text(what: str, text: str, max_chars: int) -> str:
    """Return text that a person entered, with single spaces.

    Raises:
        ConfigError: it is too long, or has characters that are no text.
    """
    if len(text) > max_chars:
        raise ConfigError(
            f"saving {what}: found {len(text):,} characters, expected {max_chars:,} at most; "
            "shorten it"
        )
    text = _spaced_once(text)
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise ConfigError(
                f"saving {what}: found the character U+{ord(character):04X}, expected text; "
                "remove it"
            )
    return text


def _spaced_once(text: str) -> str:
    return " ".join(text.split())


def save_correction(store: OutputStore, correction: Correction) -> str:
    """Put a correction as an object of its own; return its name."""
    folder = f"{CORRECTIONS_FOLDER}/{correction.recording_id}"
    # The last name stands: a clock that is behind must not bring an earlier save back.
    newest_ns = max(map(time_ns_of, store.all_names(folder)), default=0)
    name = f"{folder}/{store.stem(max(time.time_ns(), newest_ns + 1))}{_SUFFIX}"
    store.write_json(name, asdict(correction))
    return name


Saved = Mapping[str, Correction]
"""Corrections by the names of their objects."""


def read_saved(store: OutputStore, known: Saved | None = None) -> dict[str, Correction]:
    """Return every save in an output folder; `known` ones, which never change, are not read."""
    names = sorted(name for name in store.all_names(CORRECTIONS_FOLDER) if _is_save(name))
    known = known or {}
    fresh = [name for name in names if name not in known]
    with ThreadPoolExecutor(READERS, thread_name_prefix="read-corrections") as pool:
        read = dict(zip(fresh, pool.map(lambda name: _read(store, name), fresh), strict=True))
    return {name: known[name] if name in known else read[name] for name in names}


def _is_save(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.endswith(_SUFFIX) and not base.startswith(".")


def _read(store: OutputStore, name: str) -> Correction:
    address = store.address(name)
    data = filesystem.read_bytes(address, store.options)
    try:
        said = json.loads(data)
        # Newer versions may say more.
        values = {field.name: said[field.name] for field in fields(Correction)}
        for field_name, value in values.items():
            if not isinstance(value, _TYPES[field_name]):
                raise TypeError(f"{field_name} is {value!r}")
            if isinstance(value, str):
                value.encode()  # half of a pair would be no text for a table
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{field_name} is {value}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CorpusAsrError(
            f"reading {redact_uri(address)}: found no correction ({error!r}), expected the JSON "
            "that `corpus-asr view` saves; restore or remove it"
        ) from error
    return Correction(**values)


_TYPES: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("recording_id", "original", "original_hash", "text", "name", "saved_at"), str),
    **dict.fromkeys(("start_s", "end_s"), (int, float)),
    **dict.fromkeys(("channel", "size_bytes"), (int, type(None))),
    "etag": (str, type(None)),
    "checked": bool,
}


class Corrections:
    """The last save of each segment, where it stands."""

    def __init__(self, saved: Saved) -> None:
        self._latest: dict[str, dict[SegmentKey, tuple[str, Correction]]] = {}
        for name in sorted(saved):
            each = saved[name]
            self._latest.setdefault(each.recording_id, {})[each.key] = (name, each)

    @classmethod
    def load(cls, store: OutputStore) -> "Corrections":
        """Read the corrections of an output folder."""
        return cls(read_saved(store))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Correction]:
        return (each for own in map(self.of, self._latest) for _, each in own.values())

    @property
    def recording_ids(self) -> list[str]:
        """Recordings with a save of any version."""
        return list(self._latest)

    def of(self, recording_id: str) -> dict[SegmentKey, tuple[str, Correction]]:
        """Return name and correction of each segment of a recording, of any of its versions."""
        found = self._latest.get(recording_id, {})
        return {key: (name, each) for key, (name, each) in found.items() if each.stands}

    def digest(self) -> str:
        """Name everything that they say: another digest, other texts."""
        said = sorted(
            json.dumps([each.recording_id, each.etag, each.size_bytes, *each.key, each.text])
            for each in self
        )
        return hash_of("\n".join(said)) if said else ""


class Corrector:
    """Applies corrections to rows of segments, and notes which were applied.

    `recordings` has the recording_id of what rows are of.
    """

    def __init__(self, corrections: Corrections, recordings: pa.Table) -> None:
        self._said: dict[str, dict[SegmentKey, tuple[str, Correction]]] = {}
        self.stale: dict[str, Correction] = {}
        """By name: corrections that no row so far had, since their segments have changed."""
        ids = pa.array(corrections.recording_ids, pa.string())
        known = recordings.filter(pc.is_in(recordings["recording_id"], value_set=ids))
        for recording_id in known["recording_id"].to_pylist():
            self._said[recording_id] = corrections.of(recording_id)
            self.stale |= dict(self._said[recording_id].values())
        self._ids = pa.array(self._said, pa.string())

    def apply(self, rows: pa.Table) -> pa.Table:
        """Return rows of the segments table as corrected, with a column `corrected`."""
        numbers = np.flatnonzero(pc.is_in(rows["recording_id"], value_set=self._ids))
        order, marks = np.arange(rows.num_rows), np.zeros(rows.num_rows, dtype=bool)
        changed: list[dict[str, Any]] = []
        some = rows.take(pa.array(numbers)).to_pylist()
        for number, row in zip(numbers.tolist(), some, strict=True):
            name, correction = self._said[row["recording_id"]].get(key_of(row), ("", None))
            if correction is not None:
                self.stale.pop(name, None)
                order[number] = rows.num_rows + len(changed)
                marks[number] = True
                changed.append(corrected(row, correction))
        if changed:
            others = pa.Table.from_pylist(changed, schema=rows.schema)
            rows = pa.concat_tables([rows, others]).take(pa.array(order))
        return rows.append_column("corrected", pa.array(marks))


def corrected(row: Mapping[str, Any], correction: Correction) -> dict[str, Any]:
    """Return a row of the segments table with what a person said of it; columns stay the same."""
    values = dict(row)
    changes: dict[str, Any] = {"confidence": CORRECTED_CONFIDENCE, "known_hallucination": False}
    if correction.changes:
        text = correction.segment_text
        changes |= dict.fromkeys(_SCORES) | {"text": text}
        if row.get("words") is not None:
            changes["words"] = timed_words(row["words"], text, row["start_s"], row["end_s"])
    elif row.get("words") is not None:
        changes["words"] = [{**word, "probability": CORRECTED_CONFIDENCE} for word in row["words"]]
    values.update((name, value) for name, value in changes.items() if name in row)
    return values


def timed_words(
    words: Sequence[Mapping[str, Any]], text: str, start_s: float, end_s: float
) -> list[dict[str, Any]]:
    """Return the words of a corrected text with times, which joined are the text.

    Words that were kept keep their times; others divide by their lengths the time between these.
    """
    spaced = len(words) < 2 or any(word["word"][:1].isspace() for word in words[1:])
    pieces = re.findall(r"\s*\S+", text) if spaced else list(text)
    before = [_bare(word["word"]) for word in words]
    after = [_bare(piece) for piece in pieces]
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    timed: list[dict[str, Any]] = []
    for tag, first, stop, start, end in matcher.get_opcodes():
        if tag == "equal":
            timed += [
                _word(pieces[start + at], words[first + at]["start_s"], words[first + at]["end_s"])
                for at in range(stop - first)
            ]
            continue
        new = pieces[start:end]
        from_s = words[first]["start_s"] if tag == "replace" else _end_of(timed, start_s)
        to_s = words[stop - 1]["end_s"] if tag == "replace" else None
        if to_s is None:
            to_s = words[stop]["start_s"] if stop < len(words) else end_s
        if new and to_s - from_s < _SHORTEST_WORD_S * len(new) and timed:
            new.insert(0, timed.pop()["word"])
            from_s = _end_of(timed, start_s)
        timed += _divided(new, from_s, max(from_s, to_s))
    return timed


def _bare(word: str) -> str:
    letters = "".join(each for each in word.casefold() if each.isalnum())
    return letters or word.strip()


def _word(word: str, start_s: float, end_s: float) -> dict[str, Any]:
    return {"word": word, "start_s": start_s, "end_s": end_s, "probability": CORRECTED_CONFIDENCE}


def _end_of(timed: Sequence[Mapping[str, Any]], start_s: float) -> float:
    return float(timed[-1]["end_s"]) if timed else start_s


def _divided(pieces: Sequence[str], start_s: float, end_s: float) -> Iterator[dict[str, Any]]:
    bounds = np.cumsum([0, *map(len, pieces)])
    times_s = (start_s + (end_s - start_s) * bounds / max(1, bounds[-1])).tolist()
    for piece, (from_s, to_s) in zip(pieces, pairwise(times_s), strict=True):
        yield _word(piece, from_s, to_s)
