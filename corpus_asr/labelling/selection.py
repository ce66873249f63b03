"""Selection: measures the segments of a run and applies rules, one recording at a time.

Two passes are needed, since the number of copies of a text is known only after the first; in
between, rows are stored on local disk. Memory holds one recording, some 30 bytes per segment, and
the existing transcripts.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.run import Select, SelectionSettings
from corpus_asr.edits.corrected_segments import SeenSegments
from corpus_asr.edits.corrections import Corrections
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
from corpus_asr.export.speakers import speakers_of
from corpus_asr.labelling.fusion import Choice, chosen
from corpus_asr.labelling.rules import Rule, decide
from corpus_asr.report.scoring import (
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
from corpus_asr.storage.run_state.duplicates import Copy, copied_fraction, originals, read_copies
from corpus_asr.storage.run_state.identities import Identities
from corpus_asr.storage.run_state.run_files import open_run
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri

MAX_REPEATED_WORDS = 5
_MIN_WORDS = 10  # the fraction of distinct words is meaningless with fewer
# The probability of any collision of 8-byte hashes among a billion texts is 3 %; harmless.
_HASH_BYTES = 8
_KINDS = ("equal", "substitute", "delete", "insert")  # order of counts in `Errors`
_COPIED = (
    "start_s", "end_s", "text", "language_probability", "task", "confidence", "avg_logprob",
    "no_speech_prob", "compression_ratio", "temperature", "speech_fraction", "known_hallucination",
    "corrected", "speaker", *SOUND_COLUMNS,
)  # fmt: skip
# Scores of the model's own text; null for text that a person wrote or confirmed.
_SCORES = ("avg_logprob", "no_speech_prob", "compression_ratio", "temperature")


def errors_by_piece(pieces: Sequence[Sequence[str]], said: Sequence[str]) -> list[Errors]:
    """Return the errors of each piece, with the other text as the reference.

    Words between two pieces that neither contains count as errors of both: either may lack them,
    and audio that spans both contains them.
    """
    words = [word for piece in pieces for word in piece]
    piece_of_word = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    counts = np.zeros((len(pieces), 4), dtype=np.int64)  # (piece, kind of `Errors`)
    if not said:
        counts[:, 3] = [len(piece) for piece in pieces]
    elif words:
        for chunk in aligned(said, words).alignments[0]:
            owners = piece_of_word[chunk.hyp_start_idx : chunk.hyp_end_idx]
            if chunk.type == "delete":
                beside = piece_of_word[max(0, chunk.hyp_start_idx - 1) : chunk.hyp_start_idx + 1]
                counts[np.unique(beside), 2] += chunk.ref_end_idx - chunk.ref_start_idx
            else:
                np.add.at(counts[:, _KINDS.index(chunk.type)], owners, 1)
    return [Errors(*row) for row in counts.tolist()]


def rate(errors: Errors) -> float:
    """Return errors per reference word; with an empty reference, 1 for any error."""
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
    """Yield each segment's row, and a hash of its text, equal for equivalent texts.

    `other` is the transcript of another run, `reference` an existing transcript, `copies` the audio
    that earlier recordings also have.
    """
    # If the model did not report a language, that of the other run is used.
    spoken = recording.language or (other.language if other else None)
    language = (reference.language if reference else None) or spoken
    other_channels = other.by_channel() if other else {}
    reference_text = reference.text if reference else None
    for channel, choices in _choices(recording, other, select, spoken):
        texts = [segment.text for segment in other_channels.get(channel, [])] if other else None
        # Text of the other run only differs completely; adjacent segments do not count it.
        ours = [choice.segment.text if choice.own is None else choice.own for choice in choices]
        disagreements = _rates(ours, texts, spoken)
        texts = [reference.text] if reference else None
        wers = _rates([choice.segment.text for choice in choices], texts, language)
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
            reference_text = None  # only in the first row of a recording
            yield row, text_hash


def _choices(
    recording: Recording, other: Recording | None, select: Select, language: str | None
) -> Iterator[tuple[int | None, list[Choice]]]:
    """Yield the segments of each channel with the selected texts."""
    # Missing text of a failed recording is no evidence against the other run's.
    if other is None or other.failed:
        select = "own"
    ours, other_channels = recording.by_channel(), other.by_channel() if other else {}
    channels = ours if select == "own" else ours | other_channels
    # Fixed order of channels, so that datasets are reproducible.
    for channel in sorted(channels, key=lambda channel: -1 if channel is None else channel):
        choices = chosen(ours.get(channel, []), other_channels.get(channel, []), select, language)
        yield (
            channel,
            [piece for choice in choices for piece in _spoken(choice, recording, channel)],
        )


def _spoken(choice: Choice, recording: Recording, channel: int | None) -> Iterator[Choice]:
    """Split segments of the other run only by speaker; those of this run are split already."""
    if choice.own is not None or recording.turns is None:
        yield choice
        return
    turns = [turn for turn in recording.turns if turn.channel == channel]
    for piece in with_speakers([choice.segment], turns):
        yield replace(choice, segment=piece)


def hash_of(words: str) -> int:
    """Return a hash of a normalized text."""
    data = words.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=_HASH_BYTES).digest())


def listed_hashes(texts: Iterable[str]) -> frozenset[int]:
    """Return the hashes of texts under all normalizations, for matching in any language."""
    return frozenset(
        # Normalized as English, by characters, and as other languages.
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
    """Return the maximum number of consecutive repetitions of one to five words."""
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
    # Both sides are normalized as one language.
    if texts is None:
        return [None] * len(found)
    pieces = [_words(text, language) for text in found]
    return [rate(errors) for errors in errors_by_piece(pieces, _words(" ".join(texts), language))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Identity of the run from which a dataset is made."""

    transcripts: str
    """Its output folder."""
    fingerprint: str
    """Fingerprint of its settings and weights."""
    checkpoint: str
    channels: Literal["mix", "each"] | int
    by_language: dict[str, str] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)

    @property
    def revision(self) -> str:
        """Weights part of the fingerprint."""
        return self.fingerprint.partition("-")[2]

    def as_data(self, model: str | None, revision: str | None) -> dict[str, Any]:
        """Return the card's data on the run and the model of its texts, without nulls."""
        facts = {
            "checkpoint": model or self.checkpoint,
            "revision": revision or self.revision,
            "by_language": self.by_language or None,
            "transcripts": self.transcripts,
            "extract.channels": self.channels,
            **{f"decoding.{key}": value for key, value in self.decoding.items()},
        }
        return {key: value for key, value in facts.items() if value is not None}


def read_origin(store: OutputStore) -> Origin:
    """Read a run's settings and fingerprint."""
    config, fingerprint = settings_of(store, doing="selecting from")
    return Origin(
        transcripts=redact_uri(store.uri),
        fingerprint=fingerprint,
        checkpoint=config["model"]["checkpoint"],
        channels=config["extract"]["channels"],
        by_language=config["model"].get("by_language") or {},
        decoding=config["decoding"],
    )


# Words and tokens are most of the bytes, and are not measured; words are read only to split
# segments between speakers and to choose between two runs.
_COLUMNS = tuple(
    name
    for name in (*SCORE_COLUMNS, "language_probability", "model", "model_revision", *SOUND_COLUMNS)
    if name not in ("words", "tokens")
)  # fmt: skip
# Values that change when a recording is transcribed again.
_VERSIONS = """
select recording_id, etag, segments::bigint as segments, complete, failed
from recordings order by uri, recording_id
"""
_ROWS_AT_A_TIME = 10_000
# Removed texts are dropped by a rule, since examples are named by segment numbers.
_EVERYTHING = Selection(removed=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Inputs of a selection."""

    store: OutputStore
    tables: RunTables
    other: tuple[OutputStore, RunTables] | None = None
    references: Mapping[str, Reference] | None = None
    corrections: Corrections | None = None
    turns: Turns | None = None
    """Speaker turns, with names unique to a person; None if unknown."""
    copies: Mapping[str, Sequence[Copy]] | None = None
    """Audio shared with earlier recordings; None if recordings were not compared."""
    originals: Mapping[str, str] = field(default_factory=dict)
    """Originals of recordings that are mostly copies; both are in the same split."""

    def digest(self) -> str:
        """Return a digest of all inputs, which determines the dataset."""
        digest = hashlib.blake2b(digest_size=8)
        for _, tables in filter(None, ((self.store, self.tables), self.other)):
            versions = tables.table(_VERSIONS).combine_chunks()
            for rows in versions.to_batches(max_chunksize=_ROWS_AT_A_TIME):
                digest.update(repr(rows.to_pylist()).encode())
        for identity, reference in sorted((self.references or {}).items()):
            digest.update(repr((identity, reference.text, reference.language)).encode())
        if self.corrections is not None:
            digest.update(self.corrections.digest().encode())
        for recording_id, turns in sorted((self.turns or {}).items()):
            spans = [(turn.channel, turn.start_s, turn.end_s, turn.speaker) for turn in turns]
            digest.update(repr((recording_id, spans)).encode("utf-8", "surrogatepass"))
        for recording_id, copies in sorted((self.copies or {}).items()):
            copied = sorted((copy.start_s, copy.end_s) for copy in copies)
            digest.update(repr((recording_id, copied)).encode())
        if self.originals:
            digest.update(repr(sorted(self.originals.items())).encode())
        return digest.hexdigest()


@contextmanager
def open_sources(store: OutputStore, settings: SelectionSettings) -> Iterator[Sources]:
    """Open the inputs of a selection."""
    with ExitStack() as opened:
        tables = opened.enter_context(open_selection(store, _EVERYTHING))
        other_run = references = None
        if settings.against is not None:
            other_store = open_run(settings.against, options=store.options)
            if other_store.uri == store.uri:
                raise ConfigError(
                    f"reading selection.against: found {redact_uri(other_store.uri)}, which is "
                    "output.uri, expected another run over the same recordings; change it"
                )
            uris = tables.table("select uri from wanted")["uri"].to_pylist()
            among = pa.array(Identities.read(other_store).ids_of(uris), pa.string())
            other_tables = opened.enter_context(
                open_selection(other_store, _EVERYTHING, among=among)
            )
            other_run = (other_store, other_tables)
            # A recording may have moved in only one of the runs.
            uris = other_tables.table("select uri from wanted")["uri"].to_pylist()
            shared = pa.array(tables.identities.ids_of(uris), pa.string())
            _check_shared(tables, shared, other_store.uri)
            if settings.select != "own":
                _check_alike(store, other_store)
        if settings.references is not None:
            by_address = read_references(settings.references, store.options).values()
            ids = tables.identities.ids_of([reference.uri for reference in by_address])
            references = dict(zip(ids, by_address, strict=True))
            _check_shared(tables, pa.array(references, pa.string()), settings.references)
        copies = read_copies(store)
        if settings.max_duplicate_fraction is not None and copies is None:
            raise ConfigError(
                f"dropping copies of earlier recordings in {redact_uri(store.uri)}: found no "
                "duplicates/, expected it; add fingerprint to extract.measures, or unset "
                "selection.max_duplicate_fraction"
            )
        yield Sources(
            store=store,
            tables=tables,
            other=other_run,
            references=references,
            corrections=Corrections.load(store) if settings.corrections else None,
            turns=speakers_of(store, is_unique=True),
            copies=copies,
            originals=originals(
                store, dict(tables.rows("select recording_id, duration_s from wanted"))
            ),
        )


def check_words(decoding: Mapping[str, Any], where: str) -> None:
    """Raise an error for selecting between texts of two runs without word times."""
    if not decoding.get("word_timestamps"):
        raise ConfigError(
            "choosing between the texts of two runs: found decoding.word_timestamps: false in "
            f"{where}, expected true in both; transcribe again with it, or set selection.select: "
            "own"
        )


def _check_alike(store: OutputStore, other: OutputStore) -> None:
    """Raise an error for two runs whose words cannot be aligned."""
    run_settings = []
    for run in (store, other):
        doing = "choosing between the texts of two runs in"
        config, _ = settings_of(run, doing=doing)
        check_words(config["decoding"], redact_uri(run.uri))
        run_settings.append(
            {name: config[section].get(name)
             for section, name in (("extract", "channels"), ("extract", "track"),
                                   ("decoding", "task"))}
        )  # fmt: skip
    if run_settings[0] != run_settings[1]:
        raise ConfigError(
            f"choosing between the texts of two runs: found {run_settings[0]} in "
            f"{redact_uri(store.uri)} and {run_settings[1]} in {redact_uri(other.uri)}, expected "
            "equal channels, track and task; transcribe one again, or set select: own"
        )


def _check_timed(sources: Sources, *pair: Recording | None) -> None:
    """Raise an error for selecting between texts without words."""
    stores = [sources.store, *(sources.other or ())[:1]]
    for store, recording in zip(stores, pair, strict=True):
        segments = () if recording is None else recording.segments
        spoken_segments = [
            segment for segment in segments if segment.text.strip() and not segment.corrected
        ]
        if spoken_segments and not any(segment.words for segment in spoken_segments):
            raise ConfigError(
                "choosing between the texts of two runs: found segments without words in "
                f"{redact_uri(store.uri)}, expected words with times; set selection.select: own"
            )


def _check_shared(tables: RunTables, ids: pa.Array, uri: str) -> None:
    ours = tables.ids("true")
    if len(ours) and not pc.any(pc.is_in(ours, value_set=ids)).as_py():
        [(example,)] = tables.rows("select min(uri) from recordings")
        raise ConfigError(
            f"selecting by {redact_uri(uri)}: found none of this run's recordings, expected the "
            f"same URIs (such as {redact_uri(example)}); correct it"
        )


@contextmanager
def selection_file(path: str) -> Iterator[Callable[[Sequence[dict[str, Any]]], None]]:
    """Yield a function that adds rows of the SELECTION table to a local file."""
    waiting: list[dict[str, Any]] = []
    with parquet_writer(path, SELECTION) as file:

        def add(rows: Sequence[dict[str, Any]], *, least: int = _ROWS_AT_A_TIME) -> None:
            waiting.extend(rows)
            if len(waiting) >= least:
                file.write_table(pa.Table.from_pylist(waiting, schema=SELECTION))
                waiting.clear()

        yield add
        add((), least=1)


def measure(sources: Sources, settings: SelectionSettings, path: str) -> np.ndarray:
    """Write the measured segments of all completed recordings to a local file.

    Returns:
        Hash of each segment's text, in the order of the file.
    """
    listed = listed_hashes(settings.drop_texts)
    references = sources.references or {}
    # 8 bytes each, since hashes of all segments are held in memory.
    hashes = array("Q")
    with selection_file(path) as add:
        for recording, other_recording in _beside_the_other(
            sources, words=settings.select != "own"
        ):
            reference = references.get(recording.recording_id)
            copies = None
            if sources.copies is not None:
                copies = sources.copies.get(recording.recording_id)
            for row, text_hash in measured(
                recording, other=other_recording, reference=reference, listed=listed,
                select=settings.select, copies=copies,
            ):  # fmt: skip
                add([row])
                hashes.append(text_hash)
    # numpy rejects empty buffers.
    return np.frombuffer(hashes, dtype=np.uint64) if hashes else np.zeros(0, dtype=np.uint64)


def _beside_the_other(
    sources: Sources, *, words: bool
) -> Iterator[tuple[Recording, Recording | None]]:
    # Both are sorted by URI: one pass over each finds the pairs.
    columns = (*_COLUMNS, "words") if words else _COLUMNS
    other_recordings: Iterator[Recording] = iter(())
    if sources.other:
        store, tables = sources.other
        other_recordings = recordings(
            SeenSegments(store, tables), tables, _EVERYTHING, columns=columns
        )
    candidate = next(other_recordings, None)
    seen = SeenSegments(sources.store, sources.tables, sources.corrections)
    columns = (*_COLUMNS, "words") if words or sources.turns is not None else _COLUMNS
    for recording in recordings(
        seen, sources.tables, _EVERYTHING, columns=columns, turns=sources.turns
    ):
        while candidate is not None and _place(candidate) < _place(recording):
            candidate = next(other_recordings, None)
        same = candidate is not None and candidate.uri == recording.uri
        pair = recording, candidate if same else None
        if words:
            _check_timed(sources, *pair)
        yield pair


def _place(recording: Recording) -> bytes:
    return recording.uri.encode("utf-8", "surrogatepass")


def decided(path: str, hashes: np.ndarray, rules: Sequence[Rule]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each recording with the decisions of the rules."""
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
