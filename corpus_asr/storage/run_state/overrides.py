"""What people set of a recording in place of columns of its manifest: an object for each save.

    overrides/RECORDING_ID/NUMBER.json

The last number stands. A save makes the object after the one that its person saw, and only if there
is none: of two who saw the same, the second is refused. A plan puts what stands into the columns of
the recordings that it lists, so that it takes effect as a change of the manifest does
(`manifest_columns`); what the manifest says is kept in the column `overridden_columns`.
"""

import datetime
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.extraction import MOST_SPEAKERS, SPEAKER_COUNTS
from corpus_asr.config.hotwords import hotwords_from
from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.storage.manifest import HOTWORDS, metadata_text
from corpus_asr.storage.run_state.corrections import MAX_NAME_CHARS, plain_text
from corpus_asr.storage.run_state.moved import Moves
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import READERS, OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import counted

OVERRIDES_FOLDER = "overrides"
OVERRIDDEN = "overridden_columns"
"""The column that keeps what a manifest says of columns that people set."""
NUM_SPEAKERS = SPEAKER_COUNTS[0]
MAX_HOTWORDS_CHARS = 20_000
_SUFFIX = ".json"
_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """What stands in place of a recording's columns; by default those of its manifest do."""

    recording_id: str
    num_speakers: int | None = None
    hotwords: tuple[str, ...] = ()
    name: str = ""
    """Of the person, if given."""
    saved_at: str = ""
    """ISO 8601, UTC."""
    number: int = 0
    """Of its object; 0: nobody has set anything."""

    @property
    def object_name(self) -> str:
        """Of its object."""
        return f"{OVERRIDES_FOLDER}/{self.recording_id}/{self.number:0{_DIGITS}}{_SUFFIX}"

    def words(self) -> str:
        """Say what is set."""
        found = [] if self.num_speakers is None else [counted(self.num_speakers, "speaker")]
        found += [counted(len(self.hotwords), "hotword")] if self.hotwords else []
        return ", ".join(found) or "nothing set any more"

    def of_columns(self, metadata: str | None) -> str | None:
        """Return the columns of a recording with what is set in their place."""
        columns: dict[str, Any] = json.loads(metadata) if metadata else {}
        before: dict[str, Any] = {}
        if self.num_speakers is not None:
            before = {NUM_SPEAKERS: None}
            before |= {name: columns.pop(name) for name in SPEAKER_COUNTS if name in columns}
            columns[NUM_SPEAKERS] = self.num_speakers
        if self.hotwords:
            before[HOTWORDS] = columns.get(HOTWORDS)
            columns[HOTWORDS] = list(self.hotwords)
        return metadata_text(columns | {OVERRIDDEN: before}) if before else metadata


def override(recording_id: str, *, num_speakers: int | None, hotwords: str, name: str) -> Override:
    """Return what a person sets: a number of speakers, and hotwords with commas or line ends.

    Raises:
        ConfigError: a number or a phrase that no run can use, or too much text.
    """
    doing = "setting what a recording has"
    if num_speakers is not None and num_speakers not in range(1, MOST_SPEAKERS + 1):
        raise ConfigError(
            f"{doing}: found {num_speakers} speakers, expected 1 to {MOST_SPEAKERS}; correct it, "
            "or leave it out so that the number is found"
        )
    if len(hotwords) > MAX_HOTWORDS_CHARS:
        raise ConfigError(
            f"{doing}: found hotwords of {len(hotwords):,} characters, expected "
            f"{MAX_HOTWORDS_CHARS:,} at most; leave out what the model spells correctly by itself"
        )
    try:
        # A tab would have a weight after it.
        phrases = [each.phrase for each in hotwords_from(hotwords.replace("\t", " "))]
    except ValueError as error:
        raise ConfigError(f"{doing}: {error}") from error
    return Override(
        recording_id=recording_id,
        num_speakers=num_speakers,
        hotwords=tuple(plain_text("a hotword", each, MAX_HOTWORDS_CHARS) for each in phrases),
        name=plain_text("the name", name, MAX_NAME_CHARS),
        saved_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def read_override(store: OutputStore, recording_id: str) -> Override:
    """Return what stands of a recording."""
    names = _latest(store.all_names(f"{OVERRIDES_FOLDER}/{recording_id}"))
    return _read(store, names[recording_id]) if names else Override(recording_id=recording_id)


def save_override(store: OutputStore, made: Override, *, seen: int) -> Override | None:
    """Let it stand if `seen` is still the last number; return it so, or None if it is not."""
    if read_override(store, made.recording_id).number != seen:
        return None
    numbered = replace(made, number=seen + 1)
    said = {key: value for key, value in asdict(numbered).items() if key != "number"}
    data = json.dumps(said, indent=2, ensure_ascii=False).encode()
    created = filesystem.create(store.address(numbered.object_name), data, store.options)
    return numbered if created else None


def has_overrides(store: OutputStore) -> bool:
    """Tell whether somebody has set anything of a recording, also if it stands no more."""
    return bool(_latest(store.all_names(OVERRIDES_FOLDER)))


_COLUMNS = """
select distinct recording_id, metadata from parts
where recording_id in (select unnest($ids::varchar[]))
"""


class Overrides:
    """What stands of all recordings."""

    def __init__(self, of: Mapping[str, Override]) -> None:
        self._of = of

    @classmethod
    def load(cls, store: OutputStore) -> "Overrides":
        """Read what people set in an output folder."""
        names = _latest(store.all_names(OVERRIDES_FOLDER))
        with ThreadPoolExecutor(READERS, thread_name_prefix="read-overrides") as pool:
            read = pool.map(lambda name: _read(store, name), names.values())
            return cls(dict(zip(names, read, strict=True)))

    def __len__(self) -> int:
        """Return of how many recordings something was set, also if it stands no more."""
        return len(self._of)

    def num_since(self, moment: str) -> int:
        """Return of how many recordings something was set after a moment, in ISO 8601, UTC."""
        return sum(each.saved_at > moment for each in self._of.values())

    def waiting(self, tables: RunTables) -> dict[str, Override]:
        """Return those, by `recording_id`, by which a recording's results were not made yet."""
        rows = tables.rows(_COLUMNS, ids=list(self._of)) if self._of else ()
        found = {}
        for own, metadata in rows:
            used, stands = Applied.of(metadata), self._of[own]
            if (used.num_speakers, used.hotwords) != (stands.num_speakers, stands.hotwords):
                found[own] = stands
        return found

    def moved(self, moves: Moves) -> Self:
        """Return those of recordings that moved, by what they are called now."""
        now = {old: move.recording_id for old, move in moves.items()}
        return type(self)({now[each]: one for each, one in self._of.items() if each in now})

    def __or__(self, others: Self) -> Self:
        """Return both, where those of `others` come first."""
        return type(self)({**self._of, **others._of})

    def in_place(self, files: pa.Table) -> pa.Table:
        """Return FILES rows with what is set in place of their columns; the same if nothing is."""
        ids = files["recording_id"]
        known = pa.array(self._of, pa.string())
        found = pc.indices_nonzero(pc.is_in(ids, value_set=known)).to_pylist()
        if not found:
            return files
        metadata = files["metadata"].to_pylist()
        for at in found:
            metadata[at] = self._of[ids[at].as_py()].of_columns(metadata[at])
        place = files.schema.get_field_index("metadata")
        return files.set_column(place, files.schema.field(place), pa.array(metadata, pa.string()))


@dataclass(frozen=True, slots=True)
class Applied:
    """What people set of a recording when its results were made."""

    num_speakers: int | None
    hotwords: tuple[str, ...]
    manifest: Mapping[str, Any]
    """The columns as its manifest has them."""

    @classmethod
    def of(cls, metadata: str | None) -> "Applied":
        """Read it from a recording's columns, as tables keep them."""
        columns: dict[str, Any] = json.loads(metadata) if metadata else {}
        before = columns.pop(OVERRIDDEN, None)
        # A manifest may have a column of this name.
        if not isinstance(before, dict) or not before.keys() <= {*SPEAKER_COUNTS, HOTWORDS}:
            return cls(None, (), columns)
        return cls(
            columns.get(NUM_SPEAKERS) if NUM_SPEAKERS in before else None,
            tuple(columns.get(HOTWORDS) or ()) if HOTWORDS in before else (),
            columns | before,
        )


def _latest(names: Iterable[str]) -> dict[str, str]:
    """Return the last object of each recording."""
    found: dict[str, str] = {}
    for name in sorted(names):
        _, own, base = name.rsplit("/", 2)
        if base.endswith(_SUFFIX) and base.removesuffix(_SUFFIX).isdecimal():
            found[own] = name
    return found


def _read(store: OutputStore, name: str) -> Override:
    said = store.read_json(name)
    try:
        # Newer versions may say more.
        values = {each.name: said[each.name] for each in fields(Override) if each.name != "number"}
        values["hotwords"] = tuple(each.phrase for each in hotwords_from(values["hotwords"]))
        count = values["num_speakers"]
        texts = [values[key] for key in ("recording_id", "name", "saved_at")]
        if not (count is None or type(count) is int) or not all(type(one) is str for one in texts):
            raise TypeError(f"{values!r:.200}")
    except (KeyError, TypeError, ValueError) as error:
        raise CorpusAsrError(
            f"reading {redact_uri(store.address(name))}: found nothing that was set of a recording "
            f"({error!r}), expected the JSON that `corpus-asr view` saves; restore or remove it"
        ) from error
    return Override(**values, number=int(name.rpartition("/")[2].removesuffix(_SUFFIX)))
