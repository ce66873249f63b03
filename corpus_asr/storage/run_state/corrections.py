"""Corrections that people make to segments: one small object per save, apart from the tables.

    corrections/RECORDING_ID/STEM.json

A correction replaces segments of one channel by others: texts, speakers, times, splits, merges and
removals are all of this form. What it replaces are segments of the model, named by channel, times
and text, or segments that an earlier correction made, named by its stem. Nothing is rewritten, so
two windows or two servers cannot destroy each other's work:

- Corrections that build on each other are one `Group`: segments of the model, and what people have
  in their place now.
- Of two that replace the same segment, which only two servers at once can save, the later by name
  stands, and the other is kept as a group that is `in_conflict`.
- One that is withdrawn stands no more, unless a later one builds on it.

How groups are placed on the segments of a newer transcript is in `placing`.
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
from typing import Any, NamedTuple, TypeVar

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
SPEAKER_LABEL = re.compile(r"S\d+")
"""Of a speaker whom turns number; any other is a name that a person gave."""


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
class Replaced:
    """A segment that a correction replaces."""

    channel: int | None
    start_s: float
    end_s: float
    original: str
    """Its text."""
    edit: str = ""
    """Stem of the correction that made it; empty: the model did."""
    index: int = 0
    """Its number among those that the correction made."""

    @property
    def node(self) -> "Node":
        """What it is known by among the saves of its recording."""
        if self.edit:
            return self.edit, self.index
        start_ms, end_ms = (round(1000 * value) for value in (self.start_s, self.end_s))
        return SegmentKey(self.channel, start_ms, end_ms, hash_of(self.original))


Node = SegmentKey | tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A segment as a person has it."""

    start_s: float
    end_s: float
    text: str
    """Without outer spaces; empty where nothing is said."""
    speaker: str | None = None
    """A label such as S1, or a name; None: whoever speaks then by the turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What a person put in place of segments of one channel; nothing where it only withdraws."""

    recording_id: str
    etag: str | None
    """Of the recording when it was transcribed, as is the size."""
    size_bytes: int | None
    replaces: tuple[Replaced, ...]
    segments: tuple[Said, ...]
    checked: bool
    """Whether the text was compared with the audio."""
    name: str
    """Of the person, if given."""
    saved_at: str
    """ISO 8601, UTC."""
    withdraws: tuple[str, ...] = ()
    """Stems of corrections that are to stand no more."""


def correct(
    recording: Mapping[str, Any],
    replaces: Sequence[Replaced],
    segments: Sequence[Said],
    *,
    checked: bool,
    name: str = "",
    withdraws: Sequence[str] = (),
) -> Correction:
    """Return a correction, its texts with single spaces; without segments the replaced are removed.

    Args:
        recording: recording_id, etag and size_bytes of the catalog.

    Raises:
        ConfigError: a text or name is too long, or has characters that are no text.
    """
    if replaces and not segments:
        start_s = min(each.start_s for each in replaces)
        segments = [Said(start_s=start_s, end_s=max(each.end_s for each in replaces), text="")]
    return Correction(
        **{name: recording[name] for name in ("recording_id", "etag", "size_bytes")},
        replaces=tuple(replaces),
        segments=tuple(
            Said(
                start_s=each.start_s,
                end_s=each.end_s,
                text=plain_text("the corrected text", each.text, MAX_TEXT_CHARS),
                speaker=plain_text("the speaker", each.speaker or "", MAX_NAME_CHARS) or None,
            )
            for each in segments
        ),
        checked=checked,
        name=plain_text("the name", name, MAX_NAME_CHARS),
        saved_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        withdraws=tuple(withdraws),
    )


def replaced_row(row: Mapping[str, Any]) -> Replaced:
    """Return a row of the segments table as one that is replaced."""
    values = {name: row[name] for name in ("channel", "start_s", "end_s")}
    return Replaced(**values, original=row["text"] or "")


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
    text = spaced_once(text)
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise ConfigError(
                f"saving {what}: found the character U+{ord(character):04X}, expected text; "
                "remove it"
            )
    return text


def spaced_once(text: str) -> str:
    """Return a text with single spaces, none of them outside."""
    return " ".join(text.split())


def save_correction(store: OutputStore, correction: Correction) -> str:
    """Put a correction as an object of its own; return its name."""
    folder = f"{CORRECTIONS_FOLDER}/{correction.recording_id}"
    # The last name stands: a clock that is behind must not bring an earlier save back.
    newest_ns = max(map(time_ns_of, store.all_names(folder)), default=0)
    name = f"{folder}/{store.stem(max(time.time_ns(), newest_ns + 1))}{_SUFFIX}"
    store.write_json(name, asdict(correction))
    return name


def stem_of(name: str) -> str:
    """Return what a save is called in others, also once its recording has moved."""
    return name.rpartition("/")[2].removesuffix(_SUFFIX)


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
        correction = _parsed(Correction, said)
        if len({each.channel for each in correction.replaces}) > 1:
            raise ValueError("it replaces segments of several channels")
        if correction.replaces and not correction.segments:
            raise ValueError("it has no segments")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CorpusAsrError(
            f"reading {redact_uri(address)}: found no correction ({error!r}), expected the JSON "
            "that `corpus-asr view` saves; restore or remove it"
        ) from error
    return correction


_Kind = TypeVar("_Kind", Correction, Replaced, Said)


def _parsed(kind: type[_Kind], said: Any) -> _Kind:
    # Newer versions may say more.
    values = {field.name: said[field.name] for field in fields(kind)}
    for name, value in values.items():
        if not isinstance(value, _TYPES[name]) or isinstance(value, bool) != (name == "checked"):
            raise TypeError(f"{name} is {value!r:.100}")
        if isinstance(value, str):
            value.encode()  # half of a pair would be no text for a table
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}")
        elif isinstance(value, list):
            values[name] = tuple(_PARTS[name](each) for each in value)
    return kind(**values)


def _stem(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"withdraws {value!r:.100}")
    return value


_PARTS: Mapping[str, Any] = {
    "replaces": lambda value: _parsed(Replaced, value),
    "segments": lambda value: _parsed(Said, value),
    "withdraws": _stem,
}
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("recording_id", "original", "text", "name", "saved_at", "edit"), str),
    **dict.fromkeys(("start_s", "end_s"), (int, float)),
    **dict.fromkeys(("channel", "size_bytes"), (int, type(None))),
    **dict.fromkeys(("etag", "speaker"), (str, type(None))),
    **dict.fromkeys(("replaces", "segments", "withdraws"), list),
    "index": int,
    "checked": bool,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A segment as people have it now, and the correction that made it."""

    stem: str
    index: int
    said: Said
    correction: Correction
    rewritten: bool
    """Whether a save that it stems from has other words than it replaced."""

    @property
    def key(self) -> str:
        """What it is called; no other segment is, at any time."""
        return f"{self.stem}.{self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Corrections that build on each other: what of the model they replace, and by what."""

    stems: tuple[str, ...]
    """Of all of these corrections, in order."""
    replaced: tuple[Replaced, ...]
    """Segments of the model, in order of time."""
    leaves: tuple[Leaf, ...]
    """In order of time; a removal is one leaf without text."""
    in_conflict: bool = False
    """Whether a later correction of the same segment stands in its place."""

    @property
    def channel(self) -> int | None:
        """Of all of it."""
        return self.replaced[0].channel

    @property
    def span_s(self) -> tuple[float, float]:
        """Start and end of what it replaces."""
        return self.replaced[0].start_s, max(each.end_s for each in self.replaced)

    @property
    def original(self) -> str:
        """The model's text."""
        return " ".join(filter(None, (spaced_once(each.original) for each in self.replaced)))

    @property
    def text(self) -> str:
        """What people have in its place."""
        return " ".join(filter(None, (leaf.said.text for leaf in self.leaves)))

    @property
    def checked(self) -> bool:
        """Whether people compared all of it with the audio."""
        return all(leaf.correction.checked for leaf in self.leaves)


class Corrections:
    """What stands of all saves, as groups of each recording."""

    def __init__(self, saved: Saved) -> None:
        own: dict[str, dict[str, Correction]] = {}
        for name in sorted(saved):
            own.setdefault(saved[name].recording_id, {})[stem_of(name)] = saved[name]
        self._saves = own
        groups = {recording_id: tuple(_groups(saves)) for recording_id, saves in own.items()}
        self._groups = {recording_id: found for recording_id, found in groups.items() if found}

    @classmethod
    def load(cls, store: OutputStore) -> "Corrections":
        """Read the corrections of an output folder."""
        return cls(read_saved(store))

    def __len__(self) -> int:
        """Return how many segments people have made, checked or removed, placed or not."""
        return sum(len(group.leaves) for own in self._groups.values() for group in own)

    @property
    def recording_ids(self) -> list[str]:
        """Recordings with a correction that stands."""
        return list(self._groups)

    def of(self, recording_id: str) -> tuple[Group, ...]:
        """Return the groups of a recording, of any of its versions, in order of time."""
        return self._groups.get(recording_id, ())

    def edition(self, recording_id: str) -> str:
        """Return another text after each save of a recording."""
        saves = self._saves.get(recording_id, {})
        # That of another server may have an earlier name than the last that was known.
        return f"{max(saves)}+{len(saves)}" if saves else ""

    def get(self, recording_id: str, stem: str) -> Correction | None:
        """Return a save, whether it stands or not."""
        return self._saves.get(recording_id, {}).get(stem)

    def digest(self) -> str:
        """Name everything that they say: another digest, other texts."""
        said = sorted(
            json.dumps([recording_id, group.in_conflict,
                        [asdict(each) for each in group.replaced],
                        [[asdict(leaf.said), leaf.correction.checked] for leaf in group.leaves]])
            for recording_id, own in self._groups.items() for group in own
        )  # fmt: skip
        return hash_of("\n".join(said)) if said else ""


def _groups(saves: Mapping[str, Correction]) -> Iterator[Group]:
    """Yield the groups of one recording's saves, which are in order of their stems."""
    # By saves that stand: what one withdrew is there again once it is withdrawn itself.
    withdrawn: set[str] = set()
    standing: dict[str, Correction] = {}
    taken: dict[Node, str] = {}
    built_on: set[str] = set()
    # Latest first: a correction comes after those that it builds on.
    for stem, each in reversed([*saves.items()]):
        if stem in withdrawn and stem not in built_on:
            continue
        withdrawn.update(each.withdraws)
        if not each.replaces:
            continue
        standing[stem] = each
        built_on |= {one.edit for one in each.replaces}
        nodes = [one.node for one in each.replaces]
        if not any(node in taken for node in nodes):
            taken.update(dict.fromkeys(nodes, stem))
    lost: set[str] = set()
    family: dict[str, list[str]] = {}
    of: dict[str, str] = {}
    for stem in sorted(standing):
        parents = {one.edit for one in standing[stem].replaces if one.edit in of}
        if any(taken.get(one.node) != stem for one in standing[stem].replaces):
            lost.add(stem)
            parents = set()
        elif parents & lost:
            lost.add(stem)
            parents &= lost
        heads = sorted({of[parent] for parent in parents})
        head = heads[0] if heads else stem
        of[stem] = head
        family.setdefault(head, []).append(stem)
        for other in heads[1:]:
            moved = family.pop(other)
            of.update(dict.fromkeys(moved, head))
            family[head] += moved
    found = [_group(sorted(stems), standing, in_conflict=head in lost)
             for head, stems in family.items()]  # fmt: skip
    yield from sorted(found, key=lambda group: (group.span_s, group.stems))


def _group(stems: Sequence[str], standing: Mapping[str, Correction], *, in_conflict: bool) -> Group:
    inner = {one.node for stem in stems for one in standing[stem].replaces}
    leaves = [
        Leaf(stem=stem, index=index, said=said, correction=standing[stem],
             rewritten=_rewrites(stem, standing))
        for stem in stems
        for index, said in enumerate(standing[stem].segments)
        if (stem, index) not in inner
    ]  # fmt: skip
    roots: dict[Node, Replaced] = {}
    waiting = [one for stem in stems for one in standing[stem].replaces]
    known = set(stems)
    while waiting:
        one = waiting.pop()
        if one.edit not in standing:
            roots[one.node] = one
        elif one.edit not in known:  # what a conflict is about may have been made by others
            known.add(one.edit)
            waiting += standing[one.edit].replaces
    return Group(
        stems=tuple(stems),
        replaced=tuple(sorted(roots.values(), key=lambda one: (one.start_s, one.end_s))),
        leaves=tuple(sorted(leaves, key=lambda leaf: (leaf.said.start_s, leaf.key))),
        in_conflict=in_conflict,
    )


def _rewrites(stem: str, standing: Mapping[str, Correction]) -> bool:
    # Who splits, joins, moves or gives to a speaker vouches for no word.
    saved = standing[stem]
    originals = [segment.original for segment in saved.replaces]
    texts = [segment.text for segment in saved.segments]
    is_changed = "".join(" ".join(originals).split()) != "".join(" ".join(texts).split())
    edits = {segment.edit for segment in saved.replaces} & standing.keys()
    return is_changed or any(_rewrites(edit, standing) for edit in edits)
