"""A run's recordings with their segments, read from its tables in bounded memory.

Parts of a recording may lie in different objects: the database of the run's tables, in memory and
beyond it on local disk, sorts the segments that count and are selected.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr import confidence
from corpus_asr.edits.corrected_segments import PLACED_COLUMNS, SeenSegments
from corpus_asr.errors import ConfigError
from corpus_asr.languages import resolve_language
from corpus_asr.schemas import SEGMENTS, SOUND_COLUMNS
from corpus_asr.segments import MissingWord, Segment, SpeakerTurn, Word
from corpus_asr.speakers.turns import with_speakers
from corpus_asr.storage.run_state.part_rows import kind_of
from corpus_asr.storage.run_state.run_files import CONFIG_NAME, FINGERPRINT_NAME, outcomes_names
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.table_names import LABEL_ROWS
from corpus_asr.storage.run_state.tables import OutputStore, projected
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import joined_names

TEXT_COLUMNS = (
    "recording_id", "part", "channel", "segment", "start_s", "end_s", "text", "language",
    "confidence", "known_hallucination", "snr_db",
)  # fmt: skip
WORD_COLUMNS = (*TEXT_COLUMNS, "words")
SCORE_COLUMNS = (
    *WORD_COLUMNS, "tokens", "task", "avg_logprob", "no_speech_prob", "compression_ratio",
    "temperature", "speech_fraction",
)  # fmt: skip
EVIDENCE_COLUMNS = (*TEXT_COLUMNS, *confidence.EVIDENCE_COLUMNS)
_ROWS_AT_A_TIME = 2_048  # as Python values, with their words


_OF_RECORDING = (
    "recording_id", "uri", "duration_s", "language", "etag", "size_bytes", "failed",
    "audio_track", "audio_tracks",
)  # fmt: skip

Turns = Mapping[str, Sequence[SpeakerTurn]]
"""Turns of speakers by `recording_id`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A recording and its transcript."""

    recording_id: str
    uri: str
    duration_s: float
    """Duration of the decoded audio."""
    language: str | None
    """Language of most seconds of speech."""
    etag: str | None = None
    """ETag of the transcribed content, as is the size."""
    size_bytes: int | None = None
    audio_track: int | None = None
    """The audio track that was transcribed, from 1; None where there is one, or each was."""
    audio_tracks: tuple[str, ...] | None = None
    """Languages and titles of its audio tracks; None where there is one."""
    failed: bool = False
    """Wholly or in part."""
    segments: tuple[Segment, ...] = ()
    """Sorted by time."""
    channels: tuple[int | None, ...] = ()
    """Channel of each segment; None where channels were mixed."""
    model: str | None = None
    """Checkpoint that wrote the segments, as configured; several are joined by commas."""
    model_revision: str | None = None
    turns: tuple[SpeakerTurn, ...] | None = None
    """Turns of speakers; None if the run did not detect speakers."""
    missing: tuple[MissingWord, ...] | None = None
    """Words of a given text that are not in the audio; None: no text was given, or not known."""

    @classmethod
    def of(
        cls,
        row: Mapping[str, Any],
        segments: Sequence[Mapping[str, Any]],
    ) -> "Recording":
        """Return a recording from its row and the rows of its segments."""
        return cls(
            model=joined_names(segment.get("model") for segment in segments),
            model_revision=joined_names(segment.get("model_revision") for segment in segments),
            **{name: row[name] for name in _OF_RECORDING},
            segments=tuple(segment_from(segment) for segment in segments),
            channels=tuple(segment["channel"] for segment in segments),
        )

    def spoken_by(self, turns: Sequence[SpeakerTurn]) -> "Recording":
        """Return the recording with speakers of segments and words, from the turns of all channels.

        Segments with words are split at speaker changes.
        """
        names = {turn.label or turn.speaker: turn.speaker for turn in turns}
        pairs = [
            (segment, channel)
            for channel, segments in self.by_channel().items()
            for segment in with_speakers(
                [called(segment, names) for segment in segments],
                [turn for turn in turns if turn.channel == channel],
            )
        ]
        pairs.sort(key=lambda pair: pair[0].start_s)
        return replace(self.saying(pairs), turns=tuple(turns))

    def only(self, speakers: Collection[str]) -> "Recording":
        """Return the recording with only the speech of these speakers."""
        pairs = [pair for pair in self.pairs if pair[0].speaker in speakers]
        turns = tuple(turn for turn in self.turns or () if turn.speaker in speakers)
        return replace(self.saying(pairs), turns=turns)

    @property
    def pairs(self) -> list[tuple[Segment, int | None]]:
        """Pairs of segment and channel."""
        return list(zip(self.segments, self.channels, strict=True))

    def saying(self, pairs: Sequence[tuple[Segment, int | None]]) -> "Recording":
        """Return the recording with these pairs of segment and channel."""
        return replace(
            self,
            segments=tuple(segment for segment, _ in pairs),
            channels=tuple(channel for _, channel in pairs),
        )

    @property
    def text(self) -> str:
        """Texts of the segments joined and stripped."""
        return "".join(segment.text for segment in self.segments).strip()

    def by_channel(self) -> dict[int | None, list[Segment]]:
        """Return the segments of each channel, sorted by time."""
        channels: dict[int | None, list[Segment]] = {}
        for segment, channel in self.pairs:
            channels.setdefault(channel, []).append(segment)
        return channels


def called(segment: Segment, names: Mapping[str, str]) -> Segment:
    """Return a segment with its speaker, if set by a person, renamed from label to name."""
    speaker = segment.speaker
    return segment if speaker is None else replace(segment, speaker=names.get(speaker, speaker))


def segment_from(row: Mapping[str, Any]) -> Segment:
    """Return a segment from a table row; columns that were not read are empty."""
    words = row.get("words")
    optional = (
        "language", "language_probability", "no_speech_prob", "speech_fraction", "text_logprob",
        *SOUND_COLUMNS,
    )  # fmt: skip
    numbers = ("confidence", "avg_logprob", "compression_ratio", "temperature")
    values: dict[str, Any] = {name: row.get(name) for name in optional}
    values |= {name: row.get(name) or 0.0 for name in numbers}
    return Segment(
        start_s=row["start_s"],
        end_s=row["end_s"],
        text=row["text"] or "",
        tokens=tuple(row.get("tokens") or ()),
        task=row.get("task") or "transcribe",
        known_hallucination=bool(row.get("known_hallucination")),
        corrected=bool(row.get("corrected")),
        speaker=row.get("speaker"),
        words=None if words is None else tuple(map(_word, words)),
        **values,
    )


def _word(row: Mapping[str, Any]) -> Word:
    return Word(
        word=row["word"] or "",
        start_s=row["start_s"],
        end_s=row["end_s"],
        probability=row["probability"] or 0.0,
    )


def settings_of(store: OutputStore, *, doing: str) -> tuple[dict[str, Any], str]:
    """Return a run's configuration and fingerprint; `doing` is for messages.

    Raises:
        ConfigError: one of them is missing.
    """
    config, fingerprint = (store.read_json(name) for name in (CONFIG_NAME, FINGERPRINT_NAME))
    if config is None or fingerprint is None:
        missing = CONFIG_NAME if config is None else FINGERPRINT_NAME
        raise ConfigError(
            f"{doing} {redact_uri(store.uri)}: found no {missing}, expected that of the run; "
            "restore it, or run again"
        )
    return config, fingerprint["fingerprint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Selection of recordings and segments to read."""

    languages: tuple[str, ...] = ()
    """Codes or names of those of segments; recordings without such segments are skipped."""
    uris: tuple[str, ...] = ()
    """Shell patterns, one of which has to match."""
    min_confidence: float = 0.0
    min_snr_db: float | None = None
    drop_known_hallucinations: bool = False
    partial: bool = False
    """Also unfinished recordings."""
    removed: bool = False
    """Also segments whose whole text a person removed."""
    speakers: tuple[str, ...] = ()
    """Names of those whose segments are meant, where speakers are known."""

    def __post_init__(self) -> None:
        try:
            codes = tuple(resolve_language(language) for language in self.languages)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        object.__setattr__(self, "languages", codes)
        if not 0.0 <= self.min_confidence <= 1.0:
            raise ConfigError(
                f"selecting segments: found a minimum confidence of {self.min_confidence:g}, "
                "expected a fraction from 0 to 1; correct it"
            )

    @property
    def of_segments(self) -> bool:
        """Whether segments of a recording may be excluded."""
        criteria = (
            self.languages,
            self.min_confidence,
            self.drop_known_hallucinations,
            self.speakers,
        )
        return any(criteria) or self.min_snr_db is not None

    def matches(self, uri: str) -> bool:
        """Return whether recordings of this URI are selected."""
        return not self.uris or any(fnmatchcase(uri, pattern) for pattern in self.uris)

    def segments(self, rows: pa.Table) -> np.ndarray:
        """Return a mask of the selected segments."""
        keep = np.ones(rows.num_rows, dtype=bool)
        if self.languages:
            codes = pa.array(self.languages, pa.string())
            keep &= pc.is_in(rows["language"], value_set=codes).to_numpy()
        if self.min_confidence:
            confident = pc.greater_equal(rows["confidence"], self.min_confidence)
            keep &= pc.fill_null(confident, False).to_numpy()
        if self.min_snr_db is not None:
            clear = pc.greater_equal(rows["snr_db"], self.min_snr_db)
            keep &= pc.fill_null(clear, True).to_numpy()  # unmeasured segments are kept
        if self.drop_known_hallucinations:
            keep &= ~pc.fill_null(rows["known_hallucination"], False).to_numpy()
        if "corrected" in rows.schema.names and not self.removed:
            keep &= ~pc.and_(rows["corrected"], pc.equal(rows["text"], "")).to_numpy()
        return keep


@contextmanager
def open_selection(
    store: OutputStore, selection: Selection, *, among: pa.Array | None = None
) -> Iterator[RunTables]:
    """Open the tables of a run that wrote segments, finished or not.

    Its table `meant` has the recordings that are asked for, `wanted` those of them that are
    exported, as far as outcomes tell. `among` are IDs of recordings, all by default.

    Raises:
        ConfigError: no output folder of a run, or that of a classification.
        FetchError: an object of segments is gone.
    """
    with RunTables(store, names=outcomes_names(store)) as tables:
        _refuse_labels(store, tables)
        meant = tables.table("select recording_id, uri from recordings")
        if among is not None:
            meant = meant.filter(pc.is_in(meant["recording_id"], value_set=among))
        if selection.uris:
            matches = [selection.matches(uri) for uri in meant["uri"].to_pylist()]
            meant = meant.filter(pa.array(matches, pa.bool_()))
        tables.add("meant", meant.select(["recording_id"]))
        tables.execute(_WANTED, partial=selection.partial)
        yield tables


_WANTED = """
create table wanted as
select recording_id, uri, size_bytes, etag, coalesce(end_s, 0.0) as duration_s,
       languages[1] as main_language, failed, complete, audio_track, audio_tracks
from recordings semi join meant using (recording_id)
where succeeded and (complete or $partial)
"""


def _refuse_labels(store: OutputStore, tables: RunTables) -> None:
    names = tables.rows("select name from objects order by object")
    if kind_of(store, (name for (name,) in names)) is LABEL_ROWS:
        raise found_labels(store)


def found_labels(store: OutputStore) -> ConfigError:
    """Return the error for reading segments of a run with labels."""
    return ConfigError(
        f"reading {redact_uri(store.uri)}: found {LABEL_ROWS.folder}/ of a classification, "
        f"expected segments of a transcription; read the table {LABEL_ROWS.folder}"
    )


def recordings(
    seen: SeenSegments,
    tables: RunTables,
    selection: Selection,
    *,
    columns: Sequence[str] = TEXT_COLUMNS,
    turns: Turns | None = None,
    missing: Mapping[str, tuple[MissingWord, ...]] | None = None,
) -> Iterator[Recording]:
    """Yield the recordings to export from `open_selection`, sorted by URI.

    `columns` of the segments table must include `TEXT_COLUMNS`. `turns` of speakers by recording
    set the speakers of segments; `missing` are words of a known text that are absent from them.
    """
    _add_segments(seen, tables, selection, columns)
    # Silent recordings have no segments.
    join = "join" if selection.languages else "left join"
    query = _SEGMENTS.format(join=join)
    last_uris = [uri for (uri,) in tables.rows(_LAST_URIS, rows=RECORDINGS_AT_ONCE)]
    rows = (
        row
        for after, until in pairwise(["", *last_uris])
        for batch in tables.batches(query, rows=_ROWS_AT_A_TIME, after=after, until=until)
        for row in batch.to_pylist()
    )
    for recording_id, group in groupby(rows, key=itemgetter("recording_id")):
        segments = list(group)
        row = segments[0] | {"language": segments[0]["main_language"]}
        recording = Recording.of(row, [] if row["part"] is None else segments)
        recording = replace(recording, missing=(missing or {}).get(recording_id))
        if turns is not None:
            recording = recording.spoken_by(turns.get(recording_id, ()))
        yield recording.only(selection.speakers) if selection.speakers else recording


# In slices: what is joined of a million recordings would leave no memory to sort their segments.
RECORDINGS_AT_ONCE = 100_000
_LAST_URIS = """
select max(uri) from (
  select uri, (row_number() over (order by uri) - 1) // $rows as slice from wanted)
group by slice order by all
"""
_SEGMENTS = """
select * from (from wanted where uri > $after and uri <= $until) {join} selected
using (recording_id) order by uri, recording_id, start_s, channel, part, segment
"""


WANTED_PARTS = "parts semi join wanted using (recording_id)"
"""The outcomes of what `open_selection` wants."""


def _add_segments(
    seen: SeenSegments, tables: RunTables, selection: Selection, columns: Sequence[str]
) -> None:
    """Create a table of the selected segments: DuckDB sorts more than fits into memory."""
    columns = tuple(dict.fromkeys(columns))
    added = ("corrected", "speaker")
    schema = pa.schema([*projected(SEGMENTS, columns), *map(PLACED_COLUMNS.field, added)])
    tables.sort_on_disk()
    tables.add("selected", schema.empty_table())
    for rows in seen.batches(columns, of=WANTED_PARTS):
        rows = rows.select(schema.names)
        kept = rows.filter(pa.array(selection.segments(rows)))
        tables.execute("insert into selected from arriving", kept)
