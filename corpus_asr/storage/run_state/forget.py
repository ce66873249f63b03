"""All that an output folder holds of some recordings, removed; and these are kept away.

In come patterns of addresses. The folder is walked, and no list says who wrote what: tables lose
rows, JSON loses what names a recording, whoever put it there. The page is removed, and made again.
Any other file is neither read nor changed: where to look is returned.

Of a speaker, voice and name go; text and turns stay, since the text implies these. Names, by which
speakers are selected, are removed last.
"""

import difflib
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.failure_kinds import NOT_FOUND
from corpus_asr.segments import SpeakerTurn
from corpus_asr.storage.parquet import with_column
from corpus_asr.storage.run_state.annotations import (
    NAMES_NAME,
    SPEAKER_LABEL,
    corrected_ids,
    remove_corrections,
    rewrite_said_speakers,
)
from corpus_asr.storage.run_state.forgotten import Forgotten
from corpus_asr.storage.run_state.identities import Identities
from corpus_asr.storage.run_state.lock import (
    CHANGE_NAME,
    SUCCESS_NAME,
    AtTheEnd,
    changing,
    read_change,
)
from corpus_asr.storage.run_state.own_sources import forget_sources, read_own_sources
from corpus_asr.storage.run_state.prune import PRUNE, prune, recount
from corpus_asr.storage.run_state.rewriting import (
    remove_names,
    remove_recordings,
    rewrite_tables,
    walk,
)
from corpus_asr.storage.run_state.run_files import (
    CONFIG_NAME,
    PAGE_NAME,
    SUMMARIES_FOLDER,
    failures_name,
)
from corpus_asr.storage.run_state.speaker_turns import read_turns
from corpus_asr.storage.run_state.table_names import (
    PLANS_FOLDER,
    SPEAKERS_FOLDER,
    VOICES_FOLDER,
    is_commit,
    is_table,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import read_ahead
from corpus_asr.storage.stores.uri import normalize, public, redact_uri

FORGET: Final = "remove --uri"
FORGET_VOICES: Final = "remove --speaker"
Speaker = tuple[str, str]
"""`recording_id`, and S1, S2 ... in it, or a name given in corrections."""
_Turns = Mapping[str, Sequence[SpeakerTurn]]
DATASETS_FOLDER: Final = "_run/datasets"
"""Data sets that were made of this folder, an object of each."""
_SUMMARY = re.compile(r"\d{4}-\d\d-\d\d(?:-\d+)?\.json")  # of a night
_KNOWN = (CHANGE_NAME, NAMES_NAME, SUCCESS_NAME)  # changed by other means, or without content
_PLACEHOLDER = "(forgotten)"
_IDENTITY = ("recording_id", "uri")
_MOST_COMPARED = 100_000  # addresses, for the nearest to one that is not there


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgottenContents:
    """Contents of an output folder for recordings to forget."""

    recordings: Mapping[str, str]
    """Address by `recording_id`."""
    segments: int
    corrections: int
    datasets: Sequence[str]
    """Addresses of data sets that were made of the folder."""


def find_recordings(
    store: OutputStore, patterns: Sequence[str], *, begun: Iterable[str] = ()
) -> ForgottenContents:
    """Return the recordings whose URIs match a pattern, listed or with results.

    Present and earlier URIs match, unless an earlier one belongs to another recording now. A
    pattern equal to a URI matches only that URI, even if it is a glob. URIs in `begun`, whose
    removal was interrupted, may be missing.

    Raises:
        ConfigError: a pattern matches nothing; the message names similar URIs.
    """
    addresses = {pattern: public(normalize(pattern)) for pattern in patterns if pattern}
    identities = Identities.read(store)
    ids = {pattern: identities.id_of(address) for pattern, address in addresses.items()}
    exact: dict[str, dict[str, str]] = {pattern: {} for pattern in addresses}
    globs: dict[str, dict[str, str]] = {pattern: {} for pattern in addresses}
    seen: dict[str, None] = {}
    present = {*_pairs_of(identities.present())}
    for recording, uri in itertools.chain(_addresses_of(store), identities.pairs()):
        # Another sound is at their address, by which whoever wants to erase knows them.
        address = uri.removesuffix(f"#{recording}") if (recording, uri) in present else uri
        for pattern, recording_id in ids.items():
            if recording == recording_id or address == addresses[pattern] != uri:
                exact[pattern][recording] = uri
            elif fnmatchcase(address, pattern):
                globs[pattern][uri] = recording
        if len(seen) < _MOST_COMPARED:
            seen[uri] = None
    recordings: dict[str, str] = {}
    missing, begun = list[str](), list(begun)
    for pattern in patterns:
        uris = globs.get(pattern, {})
        last_ids = zip(uris, identities.ids_of([*uris]), strict=True)
        matches = exact.get(pattern) or {name: uri for uri, name in last_ids if name == uris[uri]}
        recordings |= matches
        if not matches and not any(
            addresses.get(pattern) == uri or fnmatchcase(uri, pattern) for uri in begun
        ):
            missing.append(pattern)
    if missing:
        raise ConfigError(
            f"looking in {redact_uri(store.uri)} for recordings to erase: found none of "
            f"{', '.join(map(redact_uri, missing))}, expected a URI or a glob of whole URIs, such "
            f"as '*/talk.mp3'{_nearest(missing, list(seen))}"
        )
    recordings |= identities.addresses_of(recordings)
    found_ids = pa.array(recordings, pa.string())
    segments = 0
    for rows in store.outcomes(["recording_id", "segments_written"]):
        recording_rows = rows.filter(pc.is_in(rows["recording_id"], value_set=found_ids))
        segments += pc.sum(recording_rows["segments_written"]).as_py() or 0
    return ForgottenContents(
        recordings=recordings,
        segments=segments,
        corrections=sum(recording in recordings for recording in corrected_ids(store)),
        datasets=datasets_of(store),
    )


def datasets_of(store: OutputStore) -> list[str]:
    """Return the URIs of datasets built from an output folder."""
    return [store.read_json(name)["uri"] for name in store.all_names(DATASETS_FOLDER)]


def summaries_of(store: OutputStore) -> OutputStore:
    """Return the folder of the nightly run summaries of an output folder.

    With untrusted settings, only a folder within the output folder is used.
    """
    config = store.read_json(CONFIG_NAME) if read_own_sources(store) is not None else None
    elsewhere = ((config or {}).get("nightly") or {}).get("summaries")
    folder = store.address(SUMMARIES_FOLDER) if elsewhere is None else elsewhere
    return OutputStore(folder, options=store.options)


def _nearest(patterns: Sequence[str], uris: Sequence[str]) -> str:
    names = {uri.rpartition("/")[2]: uri for uri in uris}
    wanted = [pattern.rstrip("/").rpartition("/")[2].strip("*") for pattern in patterns]
    near = [match for name in wanted for match in difflib.get_close_matches(name, names, n=3)]
    if not near:
        return f"; it has {len(uris):,} others"
    return f"; did you mean {' or '.join(redact_uri(names[name]) for name in near[:3])}?"


def _addresses_of(store: OutputStore) -> Iterator[tuple[str, str]]:
    for rows in store.outcomes(_IDENTITY):
        yield from _pairs_of(rows)
    for rows in store.recordings(_IDENTITY):
        yield from _pairs_of(rows)
    for name in store.names(PLANS_FOLDER):
        if "/listing/" in name:
            for rows in store.batches(name, columns=_IDENTITY):
                yield from _pairs_of(rows)


def _pairs_of(rows: pa.RecordBatch | pa.Table) -> Iterator[tuple[str, str]]:
    return zip(*(rows.column(name).to_pylist() for name in _IDENTITY), strict=True)


def finish_killed(store: OutputStore, *, at_the_end: AtTheEnd | None = None) -> None:
    """Resume commands that were killed in a folder."""
    noted = read_change(store)
    if noted is not None:
        by_command: dict[str, Callable[..., object]] = {
            FORGET: forget, FORGET_VOICES: forget_voices, PRUNE: prune
        }  # fmt: skip
        by_command[noted.command](store, at_the_end=at_the_end, **noted.arguments)
    sweep_late_saves(store)


def sweep_late_saves(store: OutputStore) -> None:
    """Remove corrections of recordings that were forgotten, saved while these were removed."""
    # A viewer shows an outdated state, and may be killed before it takes its save back.
    forgotten = Forgotten.read(store)
    if not forgotten.entries:
        return
    remove_corrections(store, set(filter(forgotten.has_id, corrected_ids(store))))
    remove_names(store, lambda uri, recording, _: forgotten.has(uri) or forgotten.has_id(recording))


def forget(
    store: OutputStore,
    recordings: Mapping[str, str],
    uris: Iterable[str] = (),
    *,
    at_the_end: AtTheEnd | None = None,
) -> list[str]:
    """Remove everything the folder holds of recordings, and block them in later runs.

    The caller holds the folder's lock.

    Args:
        recordings: URI by `recording_id`.
        uris: what a killed command noted of these and their earlier URIs.
        at_the_end: called with the changed folder.

    Returns:
        URIs of files that were not looked into and may name a recording, or of their folders.
    """
    # Noted: once some tables are without them, the others do not tell.
    uris = [*uris] or _known_addresses(store, recordings)
    with changing(store, FORGET, at_the_end, recordings=dict(recordings), uris=uris):
        forgotten = Forgotten.read(store)
        for name, contents in _contents(store, recordings).items():
            forgotten.add(recordings[name], name, sorted(contents))
        forgotten.write(store)
        spellings = _Spellings(recordings, uris)
        store.remove_temporary()
        # The page is made again of what is left; packs are of runs that ended.
        packs = (name for name in store.all_names(PLANS_FOLDER) if "/packs/" in name)
        store.remove_all([PAGE_NAME, failures_name(PAGE_NAME), *packs])
        nights = summaries_of(store)
        _scrub(nights, filter(_SUMMARY.fullmatch, nights.all_names("")), spellings)
        other_names = remove_recordings(store, recordings)
        own_names, names_within = walk(store)
        other_names += [*names_within, *_scrub(store, own_names, spellings)]
        forget_sources(store, spellings.without)
        recount(store)
        sweep_late_saves(store)
    tops = (name.partition("/") for name in other_names)
    return sorted({store.address(top) + slash for top, slash, _ in tops})


def _known_addresses(store: OutputStore, recordings: Mapping[str, str]) -> list[str]:
    """Return the present and earlier URIs of recordings."""
    identities = Identities.read(store)
    pairs = itertools.chain(_addresses_of(store), identities.pairs())
    uris = list({uri: None for recording, uri in pairs if recording in recordings})
    # Where another recording has come to an address since, it is not named here.
    last_ids = zip(uris, identities.ids_of(uris), strict=True)
    return sorted({*recordings.values(), *(uri for uri, name in last_ids if name in recordings)})


def forget_returned(store: OutputStore) -> int:
    """Remove recordings whose sound was erased before, which a run found on reading them.

    Of another name and size, they were not known when the run was planned. The caller holds the
    folder's lock. Returns their number.
    """
    forgotten = Forgotten.read(store)
    commits = filter(is_commit, store.commit_names())
    returned = {
        recording: uri
        for _, rows in store.committed((*_IDENTITY, "content_digest"), commits)
        for recording, uri, digest in zip(*(column.to_pylist() for column in rows), strict=True)
        if digest is not None and forgotten.has_content(digest)
    }
    if returned:
        forget(store, returned | Identities.read(store).addresses_of(returned))
    return len(returned)


def allow_again(store: OutputStore, uris: Sequence[str]) -> None:
    """Allow later runs to process recordings again.

    Raises:
        ConfigError: some are not blocked; nothing is changed.
    """
    forgotten = Forgotten.read(store)
    missing = [uri for uri in uris if not forgotten.allow(normalize(uri))]
    if missing:
        raise ConfigError(
            f"allowing recordings again in {redact_uri(store.uri)}: found "
            f"{', '.join(map(redact_uri, missing))} not among erased recordings, expected whole "
            "URIs, since only their hashes are kept; correct them"
        )
    forgotten.write(store)


def _contents(store: OutputStore, recordings: Collection[str]) -> dict[str, set[tuple[str, int]]]:
    """Return the digests and sizes of recordings' contents that no other recording has."""
    contents = {recording: set[tuple[str, int]]() for recording in recordings}
    for recording, content in _all_contents(store):
        if recording in contents:
            contents[recording].add(content)
    wanted = set().union(*contents.values())
    shared = {
        content
        for recording, content in _all_contents(store)
        if recording not in contents and content in wanted
    }
    return {recording: of_recording - shared for recording, of_recording in contents.items()}


def _all_contents(store: OutputStore) -> Iterator[tuple[str, tuple[str, int]]]:
    for rows in store.outcomes(("recording_id", "content_digest", "size_bytes")):
        columns = (column.to_pylist() for column in rows.drop_null().columns)
        for recording, digest, size_bytes in zip(*columns, strict=True):
            yield recording, (digest, size_bytes)


class _Spellings:
    """Addresses of recordings, and their `recording_id`, in values of JSON."""

    def __init__(self, ids: Iterable[str], uris: Iterable[str]) -> None:
        self._uris = set(uris)
        self._last_names = {uri.rpartition("/")[2] for uri in self._uris}
        # Messages contain them as `redact_uri` and `repr` write them.
        spellings = {*ids, *self._uris, *map(redact_uri, self._uris)}
        spellings |= {repr(uri)[1:-1] for uri in self._uris}
        longest_first = sorted(spellings, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first))
        self._pattern = re.compile(rf"(?<![\w.-])(?:{pattern})(?![\w-]|\.\w)")

    def is_named_alike(self, name: str) -> bool:
        """Return whether a file has the name of a recording, up to its first dot."""
        stem = name.rpartition("/")[2].partition(".")[0]
        return any(stem == last_name.partition(".")[0] for last_name in self._last_names)

    def without(self, value: Any, *, is_of: bool = False) -> Any:
        """Return a JSON value without parts that name a recording; if it `is_of` one, no texts."""
        if isinstance(value, str):
            return _PLACEHOLDER if is_of or self._named_in(value) else value
        if isinstance(value, list):
            kept = [self.without(item, is_of=is_of) for item in value if not self._is_of(item)]
            # An empty list of URIs would be a different setting.
            return [_PLACEHOLDER] if value and not kept and isinstance(value[0], str) else kept
        if isinstance(value, dict):
            is_of = is_of or self._is_of(value)
            return {key: self.without(item, is_of=is_of) for key, item in value.items()
                    if not self._named_in(key)}  # fmt: skip
        return value

    def without_in(self, document: bytes, *, of_lines: bool) -> bytes:
        """Return a JSON document, or one of lines, without these parts; nothing if it is of one."""
        text, kept = document.decode(), list[str]()
        for part in text.split("\n") if of_lines else [text]:
            value = json.loads(part) if part.strip() else None
            new = None if self._is_of(value) else self.without(value)
            if new == value:
                kept.append(part)
            elif new is not None:
                written = json.dumps(new, indent=None if of_lines else 2, ensure_ascii=False)
                kept.append(written if of_lines else f"{written}\n")
        return "\n".join(kept).encode(errors="backslashreplace")

    def _named_in(self, text: str) -> bool:
        return bool(self._pattern.search(text)) or self._is_name(text)

    def _is_name(self, text: str) -> bool:
        if self._pattern.fullmatch(text):
            return True
        # As given by the user, relative to the working directory of the command.
        may_be = "\0" not in text and any(name in text for name in self._last_names)
        return may_be and public(normalize(text)) in self._uris

    def _is_of(self, value: Any) -> bool:
        if isinstance(value, dict):
            return any(isinstance(item, str) and self._is_name(item) for item in value.values())
        return isinstance(value, str) and self._named_in(value)


def _scrub(folder: OutputStore, names: Iterable[str], spellings: _Spellings) -> list[str]:
    """Remove from JSON what names recordings; return the names of files not looked into.

    A page beside a document, of its name but for `.md`, says the same: it goes where this changes.
    """
    names = [name for name in names if name not in _KNOWN and not is_table(name)]
    documents = [name for name in names if name.endswith((".json", ".jsonl"))]
    pages = {name: f"{name.rpartition('.')[0]}.md" for name in documents}
    other_names = list({*names} - {*documents, *pages.values()})

    def read(name: str) -> Iterator[bytes]:
        try:
            yield filesystem.read_bytes(folder.address(name), folder.options)
        except FetchError as error:  # a viewer took its save back
            if error.kind != NOT_FOUND:
                raise

    for name, data in read_ahead(documents, read):
        try:
            new = spellings.without_in(data, of_lines=name.endswith(".jsonl"))
        except (ValueError, RecursionError):
            other_names.append(name)
            continue
        if b'"text"' in new and spellings.is_named_alike(name):
            other_names.append(name)
        if new != data:
            folder.remove(pages[name])
            if new:
                folder.write_bytes(name, new)
            else:
                folder.remove(name)
    return other_names


def note_dataset(store: OutputStore, uri: str) -> None:
    """Record in an output folder that a dataset was built from it."""
    stem = re.sub(r"\W+", "-", uri).strip("-")[-100:]
    store.write_json(f"{DATASETS_FOLDER}/{stem}.json", {"uri": uri})


def forget_voices(
    store: OutputStore,
    speakers: Collection[Speaker],
    names: Collection[str],
    *,
    at_the_end: AtTheEnd | None = None,
) -> None:
    """Remove the embeddings, voices and names of speakers; the caller holds the folder's lock.

    `names` are the names by which the user selected them.
    """
    speakers = {(recording, speaker) for recording, speaker in speakers}  # JSON notes hold lists
    noted = sorted(speakers)
    with changing(store, FORGET_VOICES, at_the_end, speakers=noted, names=sorted(names)):
        named_speakers = {pair for pair in speakers if not SPEAKER_LABEL.fullmatch(pair[1])}
        ids = {recording for recording, _ in speakers - named_speakers}
        turns = {
            recording: [turn for turn in recording_turns if (recording, turn.speaker) in speakers]
            for recording, recording_turns in (read_turns(store, ids) or {}).items()
        }
        rewrite_tables(
            store, (SPEAKERS_FOLDER, VOICES_FOLDER), ids, partial(_without_voices, turns)
        )
        rewrite_said_speakers(store, named_speakers)
        # Leftovers of killed writes may hold names.
        store.remove_temporary()
        remove_names(store, lambda _, recording, who: (recording, who) in speakers)
        store.note_tables()


def _without_voices(turns: _Turns, rows: pa.Table) -> pa.Table:
    """Return rows of any table without the voices in these turns."""
    if "voice_spans" in rows.schema.names:
        return _without_windows(turns, rows)
    if "speaker" not in rows.schema.names:
        return rows
    gone = {(recording, turn.speaker) for recording, of_it in turns.items() for turn in of_it}
    keys = zip(*(rows[name].to_pylist() for name in ("recording_id", "speaker")), strict=True)
    is_gone = pa.array([key in gone for key in keys], pa.bool_())
    if "embedding" not in rows.schema.names:
        return rows.filter(pc.invert(is_gone))
    none = pa.scalar(None, rows["embedding"].type)
    return with_column(rows, "embedding", pc.if_else(is_gone, none, rows["embedding"]))


def _without_windows(turns: _Turns, rows: pa.Table) -> pa.Table:
    """Return outcomes without the voice windows in these turns."""
    columns = (rows[name].to_pylist() for name in ("recording_id", "channel"))
    spans, data = rows["voice_spans"].to_pylist(), rows["voices"].to_pylist()
    for at, (recording, channel) in enumerate(zip(*columns, strict=True)):
        gone = [turn for turn in turns.get(recording, ()) if turn.channel == channel]
        if gone and spans[at]:
            width = len(data[at]) // len(spans[at])
            kept = [number for number, span in enumerate(spans[at])
                    if not any(turn.start_s < span["end_s"] and turn.end_s > span["start_s"]
                               for turn in gone)]  # fmt: skip
            data[at] = b"".join(data[at][number * width :][:width] for number in kept)
            spans[at] = [spans[at][number] for number in kept]
    return with_column(with_column(rows, "voice_spans", spans), "voices", data)
