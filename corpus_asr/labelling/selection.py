"""Selection: the segments of a run measured, and decided by rules, recording after recording.

There are two passes, since how often a text occurs is known at the end of the first only; between
them rows wait on this machine's disk. In memory are one recording, some 30 bytes per segment, and
the existing transcripts.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.run import Select, SelectionSettings
from corpus_asr.errors import ConfigError
from corpus_asr.export.recordings import (
    SCORE_COLUMNS,
    Recording,
    Selection,
    Turns,
    open_selection,
    recordings,
    settings_of,
)
from corpus_asr.export.speakers import persons_of
from corpus_asr.labelling.fusion import Choice, chosen
from corpus_asr.labelling.rules import Rule, decide
from corpus_asr.report.accuracy.scoring import (
    WITHOUT_BLANKS,
    Errors,
    Reference,
    aligned,
    normalized,
    read_references,
    units,
)
from corpus_asr.schemas import SELECTION, SOUND_COLUMNS
from corpus_asr.segments import Segment, place_of
from corpus_asr.speakers.turns import with_speakers
from corpus_asr.storage.parquet import parquet_batches, parquet_writer
from corpus_asr.storage.run_state.corrections import Corrections
from corpus_asr.storage.run_state.duplicates import Copy, copied_fraction, originals, read_copies
from corpus_asr.storage.run_state.identities import Identities
from corpus_asr.storage.run_state.run_files import open_run
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.seen_segments import SeenSegments
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri

MAX_REPEATED_WORDS = 5
_MIN_WORDS = 10  # the share of different words among fewer says nothing
# Two of a billion texts share a hash of 8 bytes with a probability of 3 %: one more copy counted.
_HASH_BYTES = 8
_KINDS = ("equal", "substitute", "delete", "insert")  # as `Errors` counts them
_COPIED = (
    "start_s", "end_s", "text", "language_probability", "task", "confidence", "avg_logprob",
    "no_speech_prob", "compression_ratio", "temperature", "speech_fraction", "known_hallucination",
    "corrected", "speaker", *SOUND_COLUMNS,
)  # fmt: skip
# Of the model's own text; unknown for a text that a person wrote or vouches for.
_SCORES = ("avg_logprob", "no_speech_prob", "compression_ratio", "temperature")


def errors_by_piece(pieces: Sequence[Sequence[str]], said: Sequence[str]) -> list[Errors]:
    """Return the errors of each piece, taking the other text for what was said.

    What was said between two pieces and is in neither counts against both: either may be the one
    that lacks it, and audio that reaches from one into the other holds it.
    """
    found = [word for piece in pieces for word in piece]
    piece_of_word = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    counts = np.zeros((len(pieces), 4), dtype=np.int64)  # (piece, kind of `Errors`)
    if not said:
        counts[:, 3] = [len(piece) for piece in pieces]
    elif found:
        for chunk in aligned(said, found).alignments[0]:
            theirs = piece_of_word[chunk.hyp_start_idx : chunk.hyp_end_idx]
            if chunk.type == "delete":
                beside = piece_of_word[max(0, chunk.hyp_start_idx - 1) : chunk.hyp_start_idx + 1]
                counts[np.unique(beside), 2] += chunk.ref_end_idx - chunk.ref_start_idx
            else:
                np.add.at(counts[:, _KINDS.index(chunk.type)], theirs, 1)
    return [Errors(*each) for each in counts.tolist()]


def rate(errors: Errors) -> float:
    """Return errors per word said; where nothing was said, 1 for any error."""
    return float(errors.errors > 0) if errors.rate is None else errors.rate


def measured(
    recording: Recording,
    *,
    other: Recording | None = None,
    reference: Reference | None = None,
    listed: frozenset[int] = frozenset(),
    select: Select = "own",
    copies: Sequence[Copy] | None = None,
) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the row of each segment and a number of its text: equal for texts that say the same.

    `other` is what another run made of the recording, `reference` its existing transcript, `copies`
    its audio that earlier ones have.
    """
    # A model that does not detect languages may name none: that of the other run is the same.
    spoken = recording.language or (other.language if other else None)
    language = (reference.language if reference else None) or spoken
    others = other.by_channel() if other else {}
    reference_text = reference.text if reference else None
    for channel, choices in _choices(recording, other, select, spoken):
        texts = [each.text for each in others.get(channel, [])] if other else None
        # What only the other run has differs wholly; what is around it does not.
        ours = [each.segment.text if each.own is None else each.own for each in choices]
        disagreements = _rates(ours, texts, spoken)
        texts = [reference.text] if reference else None
        wers = _rates([each.segment.text for each in choices], texts, language)
        for choice, disagreement, wer in zip(choices, disagreements, wers, strict=True):
            segment = choice.segment
            words = _words(segment.text, segment.language or spoken)
            text_hash = hash_of(" ".join(words))
            row = _row(recording, segment, words, segment.language or spoken) | {
                "size_bytes": recording.size_bytes,
                "etag": recording.etag,
                "channel": channel,
                "audio_track": place_of(channel, recording.audio_track, recording.audio_tracks)[1],
                "listed": text_hash in listed,
                "duplicate_fraction": None
                if copies is None
                else copied_fraction(
                    copies, channel=channel, start_s=segment.start_s, end_s=segment.end_s
                ),
                "disagreement": disagreement if choice.own is not None else 1.0,
                "from_other": choice.from_other,
                "wer": wer,
                "reference_language": reference.language if reference else None,
                "reference": reference_text,
            }
            reference_text = None  # in the first row of a recording only
            yield row, text_hash


def _choices(
    recording: Recording, other: Recording | None, select: Select, language: str | None
) -> Iterator[tuple[int | None, list[Choice]]]:
    """Yield the segments of each channel with the texts that are chosen."""
    # That a run has no text where it failed does not speak against the other's.
    if other is None or other.failed:
        select = "own"
    ours, theirs = recording.by_channel(), other.by_channel() if other else {}
    channels = ours if select == "own" else ours | theirs
    # Channels in a fixed order, so that the same run gives the same data set.
    for channel in sorted(channels, key=lambda channel: -1 if channel is None else channel):
        choices = chosen(ours.get(channel, []), theirs.get(channel, []), select, language)
        yield channel, [piece for each in choices for piece in _spoken(each, recording, channel)]


def _spoken(choice: Choice, recording: Recording, channel: int | None) -> Iterator[Choice]:
    """Divide by speakers what only the other run has: its own segments are divided already."""
    if choice.own is not None or recording.turns is None:
        yield choice
        return
    turns = [turn for turn in recording.turns if turn.channel == channel]
    for piece in with_speakers([choice.segment], turns):
        yield replace(choice, segment=piece)


def hash_of(words: str) -> int:
    """Return a number for a normalized text."""
    data = words.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=_HASH_BYTES).digest())


def listed_hashes(texts: Iterable[str]) -> frozenset[int]:
    """Return the hashes of texts to be distinguished, whatever language they are found in."""
    return frozenset(
        # Normalized as English, by characters, and as any other language.
        hash_of(" ".join(_words(text, language)))
        for text in texts
        for language in ("en", "zh", "")
    )


def _words(text: str, language: str | None) -> list[str]:
    return units(normalized(text, language), language)


def _row(
    recording: Recording, segment: Segment, words: Sequence[str], language: str | None
) -> dict[str, Any]:
    has_blanks = language not in WITHOUT_BLANKS
    enough = has_blanks and len(words) >= _MIN_WORDS
    return {
        "recording_id": recording.recording_id,
        "uri": recording.uri,
        "recording_s": recording.duration_s,
        "language": language,
        "model": recording.model,
        "model_revision": recording.model_revision,
        **{name: getattr(segment, name) for name in _COPIED},
        **(dict.fromkeys(_SCORES) if segment.corrected else {}),
        "num_words": len(words),
        "num_letters": _letters(segment.text),
        "unique_words": len(set(words)) / len(words) if enough else None,
        "repeats": most_repeats(words),
        "longest_word": max(map(_letters, segment.text.split()), default=0) if has_blanks else None,
    }


def _letters(text: str) -> int:
    return sum(map(str.isalnum, text))


def most_repeats(words: Sequence[str]) -> int:
    """Return how often the same one to five words stand in a row, at most."""
    most = 1 if words else 0
    for size in range(1, MAX_REPEATED_WORDS + 1):
        run = 0
        for at in range(size, len(words)):
            run = run + 1 if words[at] == words[at - size] else 0
            most = max(most, run // size + 1)
    return most


def _rates(
    found: Sequence[str], texts: Sequence[str] | None, language: str | None
) -> Sequence[float | None]:
    # All as if in one language, so that both sides are normalized alike.
    if texts is None:
        return [None] * len(found)
    pieces = [_words(text, language) for text in found]
    return [rate(errors) for errors in errors_by_piece(pieces, _words(" ".join(texts), language))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A run, as a data set made of it knows it."""

    transcripts: str
    """Its output folder."""
    fingerprint: str
    """Of its settings and weights."""
    checkpoint: str
    channels: Literal["mix", "each"] | int
    by_language: dict[str, str] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)

    @property
    def revision(self) -> str:
        """The weights' part of the fingerprint."""
        return self.fingerprint.partition("-")[2]

    def as_data(self, model: str | None, revision: str | None) -> dict[str, Any]:
        """Return what the card says of the run and of what wrote its texts, without nulls."""
        found = {
            "checkpoint": model or self.checkpoint,
            "revision": revision or self.revision,
            "by_language": self.by_language or None,
            "transcripts": self.transcripts,
            "extract.channels": self.channels,
            **{f"decoding.{key}": value for key, value in self.decoding.items()},
        }
        return {key: value for key, value in found.items() if value is not None}


def read_origin(store: OutputStore) -> Origin:
    """Read what a run notes of itself."""
    config, fingerprint = settings_of(
        store, doing="selecting from", which="says how its audio was read"
    )
    return Origin(
        transcripts=redact_uri(store.uri),
        fingerprint=fingerprint,
        checkpoint=config["model"]["checkpoint"],
        channels=config["extract"]["channels"],
        by_language=config["model"].get("by_language") or {},
        decoding=config["decoding"],
    )


# Words and tokens are most of the bytes, and nothing here measures them; words say where a segment
# that two speakers share is split, and which of two runs is likelier.
_COLUMNS = tuple(
    name
    for name in (*SCORE_COLUMNS, "language_probability", "model", "model_revision", *SOUND_COLUMNS)
    if name not in ("words", "tokens")
)  # fmt: skip
# What changes whenever a recording is transcribed again.
_VERSIONS = """
select recording_id, etag, segments::bigint as segments, complete, failed
from recordings order by uri, recording_id
"""
_ROWS_AT_A_TIME = 10_000
# Removed texts are dropped by a rule: examples are named by the numbers of segments.
_EVERYTHING = Selection(removed=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a selection reads."""

    store: OutputStore
    tables: RunTables
    other: tuple[OutputStore, RunTables] | None = None
    references: Mapping[str, Reference] | None = None
    corrections: Corrections | None = None
    turns: Turns | None = None
    """Who speaks when, by names that are one person's alone; None where it is not known."""
    copies: Mapping[str, Sequence[Copy]] | None = None
    """Audio of earlier recordings; None where recordings were not compared."""
    originals: Mapping[str, str] = field(default_factory=dict)
    """Of recordings that are mostly a copy: the recording whose split is theirs, too."""

    def digest(self) -> str:
        """Name everything that is read: another digest, another data set."""
        digest = hashlib.blake2b(digest_size=8)
        for _, tables in filter(None, ((self.store, self.tables), self.other)):
            versions = tables.table(_VERSIONS).combine_chunks()
            for rows in versions.to_batches(max_chunksize=_ROWS_AT_A_TIME):
                digest.update(repr(rows.to_pylist()).encode())
        for identity, reference in sorted((self.references or {}).items()):
            digest.update(repr((identity, reference.text, reference.language)).encode())
        if self.corrections is not None:
            digest.update(self.corrections.digest().encode())
        for each, turns in sorted((self.turns or {}).items()):
            spans = [(turn.channel, turn.start_s, turn.end_s, turn.speaker) for turn in turns]
            digest.update(repr((each, spans)).encode("utf-8", "surrogatepass"))
        for each, copies in sorted((self.copies or {}).items()):
            copied = sorted((copy.start_s, copy.end_s) for copy in copies)
            digest.update(repr((each, copied)).encode())
        if self.originals:
            digest.update(repr(sorted(self.originals.items())).encode())
        return digest.hexdigest()


@contextmanager
def open_sources(store: OutputStore, settings: SelectionSettings) -> Iterator[Sources]:
    """Open what is there to select from."""
    with ExitStack() as opened:
        tables = opened.enter_context(open_selection(store, _EVERYTHING))
        other = references = None
        if settings.against is not None:
            there = open_run(settings.against, options=store.options)
            if there.uri == store.uri:
                raise ConfigError(
                    f"reading selection.against: found {redact_uri(there.uri)}, which is "
                    "output.uri itself, expected another run over the same recordings; it always "
                    "agrees with itself"
                )
            uris = tables.table("select uri from wanted")["uri"].to_pylist()
            among = pa.array(Identities.read(there).ids_of(uris), pa.string())
            other_tables = opened.enter_context(open_selection(there, _EVERYTHING, among=among))
            other = (there, other_tables)
            # A recording may have moved in one of them alone.
            uris = other_tables.table("select uri from wanted")["uri"].to_pylist()
            shared = pa.array(tables.identities.ids_of(uris), pa.string())
            _check_shared(tables, shared, there.uri)
            if settings.select != "own":
                _check_alike(store, there)
        if settings.references is not None:
            by_address = read_references(settings.references, store.options).values()
            ids = tables.identities.ids_of([reference.uri for reference in by_address])
            references = dict(zip(ids, by_address, strict=True))
            _check_shared(tables, pa.array(references, pa.string()), settings.references)
        copies = read_copies(store)
        if settings.max_duplicate_fraction is not None and copies is None:
            raise ConfigError(
                f"dropping copies of earlier recordings in {redact_uri(store.uri)}: found no table "
                "of duplicates, expected one; transcribe with fingerprint in extract.measures, or "
                "set selection.max_duplicate_fraction to null"
            )
        yield Sources(
            store=store,
            tables=tables,
            other=other,
            references=references,
            corrections=Corrections.load(store) if settings.corrections else None,
            turns=persons_of(store),
            copies=copies,
            originals=originals(
                store, dict(tables.rows("select recording_id, duration_s from wanted"))
            ),
        )


def check_words(decoding: Mapping[str, Any], where: str) -> None:
    """Refuse to choose between the texts of two runs where words have no times."""
    if not decoding.get("word_timestamps"):
        raise ConfigError(
            f"choosing between the texts of two runs: found decoding.word_timestamps: false in "
            f"{where}, expected true in both, since words are aligned by their times; transcribe "
            "again with it, or set selection.select: own"
        )


def _check_alike(store: OutputStore, other: OutputStore) -> None:
    """Refuse two runs whose words cannot be aligned."""
    asked = []
    for each in (store, other):
        doing = "choosing between the texts of two runs in"
        config, _ = settings_of(each, doing=doing, which="says whether words have times")
        check_words(config["decoding"], redact_uri(each.uri))
        asked.append(
            {name: config[section].get(name)
             for section, name in (("extract", "channels"), ("extract", "track"),
                                   ("decoding", "task"))}
        )  # fmt: skip
    if asked[0] != asked[1]:
        raise ConfigError(
            f"choosing between the texts of two runs: found {asked[0]} in "
            f"{redact_uri(store.uri)} and {asked[1]} in {redact_uri(other.uri)}, expected the same "
            "channels, track and task in both; transcribe one of them again, or set "
            "selection.select: own"
        )


def _check_timed(sources: Sources, *pair: Recording | None) -> None:
    """Refuse to choose between texts that have no words."""
    stores = [sources.store, *(sources.other or ())[:1]]
    for store, recording in zip(stores, pair, strict=True):
        segments = () if recording is None else recording.segments
        said = [each for each in segments if each.text.strip() and not each.corrected]
        if said and not any(each.words for each in said):
            raise ConfigError(
                f"choosing between the texts of two runs: found segments without words in "
                f"{redact_uri(store.uri)}, expected words with times; texts of a recognizer that "
                "gives no words can be compared, not chosen: set selection.select: own"
            )


def _check_shared(tables: RunTables, ids: pa.Array, uri: str) -> None:
    ours = tables.ids("true")
    if len(ours) and not pc.any(pc.is_in(ours, value_set=ids)).as_py():
        [(example,)] = tables.rows("select min(uri) from recordings")
        raise ConfigError(
            f"selecting by {redact_uri(uri)}: found none of this run's recordings there, expected "
            f"them under the same URIs (such as {redact_uri(example)}); correct it, or everything "
            "is dropped"
        )


def measure(sources: Sources, settings: SelectionSettings, path: str) -> np.ndarray:
    """Write the measured segments of all recordings that are done to a local file.

    Returns:
        The number of each segment's text, in the order of the file.
    """
    listed = listed_hashes(settings.drop_texts)
    references = sources.references or {}
    # 8 bytes each, since those of all segments are in memory.
    hashes = array("Q")
    waiting: list[dict[str, Any]] = []
    file = parquet_writer(path, SELECTION)
    try:
        for recording, other in _beside_the_other(sources, words=settings.select != "own"):
            reference = references.get(recording.recording_id)
            copies = None
            if sources.copies is not None:
                copies = sources.copies.get(recording.recording_id)
            for row, text_hash in measured(
                recording, other=other, reference=reference, listed=listed, select=settings.select,
                copies=copies,
            ):  # fmt: skip
                waiting.append(row)
                hashes.append(text_hash)
            if len(waiting) >= _ROWS_AT_A_TIME:
                file.write_table(pa.Table.from_pylist(waiting, schema=SELECTION))
                waiting = []
        if waiting:
            file.write_table(pa.Table.from_pylist(waiting, schema=SELECTION))
    finally:
        file.close()
    # numpy reads no empty buffer.
    return np.frombuffer(hashes, dtype=np.uint64) if hashes else np.zeros(0, dtype=np.uint64)


def _beside_the_other(
    sources: Sources, *, words: bool
) -> Iterator[tuple[Recording, Recording | None]]:
    # Both are sorted by URI, so that one pass over each finds the pairs.
    columns = (*_COLUMNS, "words") if words else _COLUMNS
    theirs: Iterator[Recording] = iter(())
    if sources.other:
        store, tables = sources.other
        theirs = recordings(SeenSegments(store, tables), tables, _EVERYTHING, columns=columns)
    candidate = next(theirs, None)
    seen = SeenSegments(sources.store, sources.tables, sources.corrections)
    columns = (*_COLUMNS, "words") if words or sources.turns is not None else _COLUMNS
    for recording in recordings(
        seen, sources.tables, _EVERYTHING, columns=columns, turns=sources.turns
    ):
        while candidate is not None and _place(candidate) < _place(recording):
            candidate = next(theirs, None)
        same = candidate is not None and candidate.uri == recording.uri
        pair = recording, candidate if same else None
        if words:
            _check_timed(sources, *pair)
        yield pair


def _place(recording: Recording) -> bytes:
    return recording.uri.encode("utf-8", "surrogatepass")


def decided(path: str, hashes: np.ndarray, rules: Sequence[Rule]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of one recording after the other, with what the rules say of each."""
    _, number, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    rows = _counted_rows(path, counts[number])
    for _, group in groupby(rows, key=lambda row: row["recording_id"]):
        of_recording = list(group)
        for row in of_recording:
            decide(row, rules)
        yield of_recording


def _counted_rows(path: str, copies: np.ndarray) -> Iterator[dict[str, Any]]:
    at = 0
    for batch in parquet_batches(path, batch_rows=_ROWS_AT_A_TIME):
        rows = batch.to_pylist()
        for row, count in zip(rows, copies[at : at + len(rows)].tolist(), strict=True):
            yield row | {"copies": count}
        at += len(rows)
