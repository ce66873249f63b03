"""Answers to the requests of the pages, as values that are written as JSON.

A recording is named by its ID and looked up in the tables, never by a path. Texts are `visible`:
with signs for characters that would hide or reorder others.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from corpus_asr.confidence import (
    HIGH_CONFIDENCE,
    LOW_CONFIDENCE,
    LOW_WORD_CONFIDENCE,
    word_confidences,
)
from corpus_asr.edits.corrections import Correction, key_of
from corpus_asr.errors import ConfigError, FetchError, ItemError
from corpus_asr.export.write import distinct_names
from corpus_asr.failure_kinds import REFUSED_FILE, REFUSED_HOST, failure_kind
from corpus_asr.formats.options import ExportFormat
from corpus_asr.formats.writers import file_contents
from corpus_asr.report.formatting import visible
from corpus_asr.segments import SpeakerTurn, channel_name
from corpus_asr.speakers.turns import Timeline
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.stores.uri import without_secrets
from corpus_asr.units import SAMPLE_RATE_HZ, counted
from corpus_asr.view.catalogue import (
    BLOCK_ROWS,
    Catalogue,
    Library,
    Transcript,
    Transcripts,
    View,
)
from corpus_asr.view.editing import (
    Change,
    ConflictError,
    Naming,
    Undo,
    parse_change,
    save_change,
    save_name,
)
from corpus_asr.view.request import RefusedError, Request
from corpus_asr.view.search import (
    MAX_PAGE,
    PAGE_ROWS,
    Hit,
    Page,
    Query,
    State,
    find,
    recordings_page,
)
from corpus_asr.view.sound import (
    LONGEST_S,
    MAX_SAMPLES,
    Playable,
    Sound,
    Sounds,
)
from corpus_asr.view.texts import said_of

# Formats that openai-whisper writes, too; the rest is for data sets, not for one recording.
_SAVED = tuple(map(ExportFormat, ("srt", "vtt", "lrc", "txt", "md", "tsv", "csv", "json")))
_ELSEWHERE = "; if it was moved, name its new location: corpus-asr view ... --audio BEFORE=NOW"
_HINTS = {
    REFUSED_FILE: "",  # its advice says it
    REFUSED_HOST: ", or start corpus-asr view ... --audio-folder http://HOST/",
}


class NotFoundError(LookupError):
    """There is no such recording, format or page."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers requests: one method for each kind, by its name."""

    library: Library
    transcripts: Transcripts
    sounds: Sounds
    editable: bool = True
    """Whether segments may be corrected."""

    def run(self, _: Request) -> dict[str, Any]:
        """Return the state and counts of the output folder."""
        view = self.library.current()
        tables = view.catalogue.tables
        counts = {state["name"]: state["count"] for state in _counted(tables, "state")}
        [(recordings, segments, duration_s)] = tables.rows(_TOTALS)
        return {
            "address": visible(without_secrets(self.library.store.uri)),
            "version": view.version,
            "finished": view.catalogue.finished,
            "problem": view.problem,
            "ready": view.searchable,
            "rows_read": view.rows_read,
            "recordings": recordings,
            "segments": segments,
            "duration_s": duration_s,
            "states": {state.value: counts.get(state.value, 0) for state in State},
            "languages": _counted(tables, "language"),
            "corrections": len(view.corrections),
        }

    def recordings(self, request: Request) -> dict[str, Any]:
        """List recordings."""
        catalogue = self.library.current().catalogue
        page = recordings_page(
            catalogue.tables, request, order=request.recording_order, page=request.page
        )
        return _page(page) | {"recordings": [_row(row, catalogue) for row in page.rows]}

    def search(self, request: Request) -> dict[str, Any]:
        """Search segments."""
        view = self.library.current()
        if not view.searchable:
            return {"ready": False, "rows_read": view.rows_read, "problem": view.problem}
        query = request.query
        catalogue = view.catalogue
        page = find(catalogue.tables, query, request, order=request.order, page=request.page)
        hits = [_hit(hit, catalogue, query) for hit in page.rows]
        return _page(page) | {
            "ready": True, "recordings": page.recordings, "hits": hits,
        }  # fmt: skip

    def recording(self, request: Request) -> dict[str, Any]:
        """Return a recording, without its segments."""
        view, row = self._named(request.id)
        catalogue, transcript = view.catalogue, self.transcripts.read(view, row)
        same = ("codec", "sample_rate_hz", "channels", "speech_s", "languages")
        answer = _row(row, catalogue) | {name: row[name] for name in same}
        answer |= {
            "address": visible(without_secrets(row["uri"])),
            "finished": catalogue.finished,
            "decode_errors": row["decode_errors"] or 0,
            "from_start": self.sounds.of(row).needs_decoding,
            "segments": transcript.rows.num_rows,
            "block_rows": BLOCK_ROWS,
            "block_starts_s": transcript.block_starts_s,
            "has_words": transcript.has_words,
            "low_word_confidence": LOW_WORD_CONFIDENCE,
            "low_confidence": LOW_CONFIDENCE,
            "high_confidence": HIGH_CONFIDENCE,
            "apart": transcript.channels,
            "apart_as": "track" if row["audio_tracks"] else "channel",
            "tracks": _tracks(row),
            **_turns(request.id, self.transcripts.turns(view, request.id), view),
            "editable": self.editable,
            "corrected": len(transcript.edits),
            "stale": [_stale(correction, transcript) for correction in transcript.unplaced],
            # Another one after each save, here or elsewhere.
            "edition": view.corrections.edition(request.id),
            "saved_as": list(_SAVED),
        }
        if row["error_kind"] is not None:
            answer["error"] = {
                "kind": row["error_kind"],
                "stage": row["error_stage"],
                "message": visible(row["error_message"] or ""),
                "advice": failure_kind(row["error_kind"], retryable=bool(row["retryable"])).advice,
            }
        return answer

    def segments(self, request: Request) -> dict[str, Any]:
        """Return a block of a recording's segments."""
        view, row = self._named(request.id)
        shown = self.transcripts.read(view, row)
        turns = self.transcripts.turns(view, request.id)
        return {
            "segments": [
                _segment(segment, request.query, turns) for segment in shown.block(request.block)
            ]
        }

    def unsure(self, request: Request) -> dict[str, Any]:
        """Find the next or previous low-confidence word, or the next unchecked segment."""
        transcript = self.transcripts.read(*self._named(request.id))
        if request.unchecked:
            return {"at_s": transcript.next_unchecked(request.from_s)}
        below = LOW_WORD_CONFIDENCE if transcript.has_words else LOW_CONFIDENCE
        at_s = transcript.low_confidence(request.from_s, below=below, forward=not request.back)
        return {"at_s": at_s}

    def sound(self, request: Request) -> dict[str, Any]:
        """Return whether and how a recording can be played."""
        sound = self._sound(request)
        answer = {
            "address": visible(without_secrets(sound.uri)),
            "as_it_is": sound.browser_type is not None,
            "may_be_video": (sound.browser_type or "").startswith("video/"),
            "longest_s": MAX_SAMPLES / SAMPLE_RATE_HZ,
        }
        if not sound.duration_s:
            return answer | {"state": "nothing", "message": "it has no decodable audio"}
        try:
            changed = self.sounds.changed(sound)
            if request.decode:
                # Decoding one sample after the WAV header shows whether the file is decodable.
                next(self.sounds.decoded(sound, channel=request.channel).read(44, 46))
        except FetchError as error:
            hint = _HINTS.get(error.kind, _ELSEWHERE)
            return answer | {"state": "missing", "message": visible(f"{error}{hint}")}
        except ItemError as error:
            return answer | {"state": "unplayable", "message": visible(str(error))}
        return answer | {"state": "changed" if changed else "ok", "message": ""}

    def audio(self, request: Request) -> Playable:
        """Return the audio of a recording, original or decoded."""
        sound = self._sound(request)
        if request.decode:
            return self.sounds.decoded(sound, channel=request.channel)
        return self.sounds.as_it_is(sound)

    def clip(self, request: Request) -> tuple[str, Playable]:
        """Return the name and audio of a time span of a recording."""
        _, row = self._named(request.id)
        start_s, end_s = request.from_s, request.to_s or 0.0
        if not row["duration_s"]:
            raise NotFoundError("this recording has no decodable audio")
        # Pages round times.
        if not 0 <= start_s < end_s <= row["duration_s"] + 0.01 or end_s - start_s > LONGEST_S:
            raise ConfigError(
                f"cutting {start_s:g} to {end_s:g} s: expected a span within the "
                f"{row['duration_s']:g} s of the recording, of at most {LONGEST_S:g} s"
            )
        audio = self.sounds.clip(self._sound(request), start_s, end_s, channel=request.channel)
        return f"{self._stem(row)}-{start_s:.2f}-{end_s:.2f}.wav", audio

    def correct(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Save a correction; return the keys of removed segments, and the new segments.

        Raises:
            RefusedError: the server was started with --read-only.
            NotFoundError: the recording does not exist.
            ConfigError, ConflictError, GoneError, FetchError: see `save_change`.
        """
        return self._change(Change, body, "saving a correction")

    def undo(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Revert the correction that made a segment; return value and errors as in `correct`."""
        return self._change(Undo, body, "undoing a correction")

    def _change(
        self, kind: type[Change] | type[Undo], body: Mapping[str, Any], doing: str
    ) -> dict[str, Any]:
        self._check_editable()
        change: Change | Undo = parse_change(kind, body, doing=doing)
        _, row = self._to_change(change.id)
        try:
            made = save_change(self.library, self.transcripts, row, change)
        except ConflictError as error:
            error.answer = self._state(change.id, error)
            raise
        return {"removed": made.removed} | self._state(change.id, made.rows)

    def _state(
        self, recording_id: str, of: ConflictError | Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        view, row = self._named(recording_id)
        shown = self.transcripts.read(view, row)
        rows: Sequence[Mapping[str, Any]] = ()
        if not isinstance(of, ConflictError):
            rows = of
        elif of.span:
            rows = shown.between(*of.span)
        turns = self.transcripts.turns(view, recording_id)
        return {
            "segments": [_segment(row, Query(), turns) for row in rows],
            "edition": view.corrections.edition(recording_id),
        }

    def name(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Name a speaker; return the speakers of the recording with their new names.

        Raises:
            RefusedError: the server was started with --read-only.
            NotFoundError: the recording or the speaker does not exist.
            ConfigError, ConflictError, GoneError, FetchError: see `save_name`.
        """
        self._check_editable()
        naming = parse_change(Naming, body, doing="naming a speaker")
        view, row = self._to_change(naming.id)
        turns = self.transcripts.turns(view, naming.id)
        if naming.speaker not in {turn.speaker for turn in turns}:
            raise NotFoundError(f"this recording has no speaker {naming.speaker!r:.100}")
        save_name(self.library, row, naming)
        return {"speakers": _turns(naming.id, turns, self.library.current())["speakers"]}

    def _check_editable(self) -> None:
        if not self.editable:
            raise RefusedError(403, "this server was started with --read-only")

    def saved(self, request: Request) -> tuple[str, bytes]:
        """Return name and content of a file: a recording in one of the formats."""
        view, row = self._named(request.id)
        if request.format not in _SAVED:
            raise NotFoundError(f"no format {request.format!r}; there are {', '.join(_SAVED)}")
        recording = self.transcripts.recording(view, row)
        ((suffix, content),) = file_contents(recording, [ExportFormat(request.format)])
        return self._stem(row, suffix) + suffix, content

    def _stem(self, row: Mapping[str, Any], suffix: str = ".wav") -> str:
        table = pa.table({name: [row[name]] for name in ("recording_id", "uri")})
        return distinct_names(table, [suffix])[0].rpartition("/")[2]

    def _named(self, recording_id: str) -> tuple[View, dict[str, Any]]:
        view = self.library.current()
        row = view.catalogue.recording(recording_id)
        if row is None:
            raise NotFoundError(f"this run has no recording {recording_id!r:.100}")
        return view, row

    def _to_change(self, recording_id: str) -> tuple[View, dict[str, Any]]:
        view, row = self._named(recording_id)
        self.library.check_there(row)
        if self.library.store.missing(view.catalogue.objects(recording_id)):
            self.library.look_again()
            return self._named(recording_id)
        return view, row

    def _sound(self, request: Request) -> Sound:
        _, row = self._named(request.id)
        tracks = row["audio_tracks"] if row["audio_track"] is None else None
        numbers = range(1, len(tracks) + 1) if tracks else range(row["channels"] or 0)
        if numbers and request.channel is not None and request.channel not in numbers:
            raise NotFoundError(f"this recording has no channel or track {request.channel}")
        return self.sounds.of(row)


def _stale(correction: Correction, shown: Transcript) -> dict[str, Any]:
    """Return an unplaced correction with the text that it replaced and the present text."""
    rows = shown.between(correction.channel, correction.start_s, correction.end_s)
    return {
        "id": correction.id,
        "start_s": correction.start_s,
        "end_s": correction.end_s,
        "channel": correction.channel,
        "original": visible(correction.original),
        "text": visible(correction.text),
        "now": visible(" ".join((row["text"] or "").strip() for row in rows)),
        "changed": correction.text != correction.original,
        "checked": all(segment.checked for segment in correction.segments),
        "name": visible(correction.name),
        "saved_at": correction.saved_at,
    }


def _page(page: Page[Any]) -> dict[str, Any]:
    pages = min(MAX_PAGE, -(-page.total // PAGE_ROWS))
    return {"total": page.total, "pages": pages}


_TOTALS = """
select count(*), coalesce(sum(segments), 0)::bigint, coalesce(exact_sum(duration_s), 0.0)
from described
"""


def _counted(tables: RunTables, column: str) -> list[dict[str, Any]]:
    counts = tables.rows(
        f"select {column}, count(*) from shown where {column} is not null group by all "
        f"order by count(*) desc, {column}"
    )
    return [{"name": name, "count": count} for name, count in counts]


def _tracks(row: Mapping[str, Any]) -> str:
    names, number = row["audio_tracks"], row["audio_track"]
    if not names:
        return ""
    if number is None:
        return counted(len(names), "audio track")
    return f"{channel_name(number, None, names)} of {len(names)}"


def _row(row: Mapping[str, Any], catalogue: Catalogue) -> dict[str, Any]:
    same = ("state", "segments", "duration_s", "language", "error_kind")
    named = {"id": row["recording_id"], "name": _name(row["uri"], catalogue)}
    return named | {name: row[name] for name in same}


def _name(uri: str, catalogue: Catalogue) -> str:
    return visible(without_secrets(uri.removeprefix(catalogue.folder)))


def _hit(hit: Hit, catalogue: Catalogue, query: Query) -> dict[str, Any]:
    same = ("start_s", "end_s", "confidence", "language", "channel")
    return {name: getattr(hit, name) for name in same} | {
        "id": hit.recording_id,
        "key": hit.correction["key"] if hit.correction else key_of(asdict(hit)),
        "name": _name(hit.uri, catalogue),
        "text": visible(hit.text.strip()),
        "before": visible(hit.before),
        "after": visible(hit.after),
        "pieces": _visible(query.pieces(hit.text)),
        "correction": hit.correction,
    }


def _visible(pieces: list[tuple[str, bool]]) -> list[list[Any]]:
    return [[visible(piece), matches] for piece, matches in pieces]


def _turns(recording_id: str, turns: Sequence[SpeakerTurn], view: View) -> dict[str, Any]:
    """Return speakers by first turn, with fractions of all speech, and turns by speaker number."""
    spoken_s: dict[str, float] = {}
    for turn in sorted(turns, key=lambda turn: turn.start_s):
        spoken_s[turn.speaker] = spoken_s.get(turn.speaker, 0.0) + turn.end_s - turn.start_s
    numbers = {speaker: number for number, speaker in enumerate(spoken_s)}
    total_s = sum(spoken_s.values()) or 1.0
    return {
        "speakers": [
            {
                "speaker": speaker,
                # Raw name, for editing; the other one is displayed.
                "given": view.given.get((recording_id, speaker), ""),
                "name": visible(view.names.get((recording_id, speaker), speaker)),
                "share": lasts_s / total_s,
            }
            for speaker, lasts_s in spoken_s.items()
        ],
        "turns": [[turn.start_s, turn.end_s, numbers[turn.speaker]] for turn in turns],
    }


def _segment(row: Mapping[str, Any], query: Query, turns: Sequence[SpeakerTurn]) -> dict[str, Any]:
    text = row["text"] or ""
    same = ("key", "version", "start_s", "end_s", "language", "confidence", "channel")
    values = {name: row[name] for name in same}
    pieces = query.pieces(text) if query.wanted else [(text, False)]
    # Raw text, for editing; all other values are displayed.
    values |= {"text": text.strip(), "pieces": _visible(pieces)}
    edit = row["edit"]
    values["correction"] = said_of(edit) if edit else None
    channel_turns = [turn for turn in turns if turn.channel == row["channel"]]
    by_turns = Timeline(channel_turns).speaker(row["start_s"], row["end_s"])
    values["by_turns"] = by_turns
    values["said_by"] = edit.segment.speaker if edit else None
    values["speaker"] = visible(values["said_by"] or "") or by_turns
    if row["words"] is not None:
        values["words"] = list(_words(row, pieces))
    return values


def _words(row: Mapping[str, Any], pieces: list[tuple[str, bool]]) -> Iterator[list[Any]]:
    # Word, start, end, confidence, and whether it is part of a match.
    words = row["words"]
    marked = "".join(("x" if matches else " ") * len(piece) for piece, matches in pieces)
    # Concatenated words equal the segment's text; in tables where they do not, none is marked.
    fits = sum(len(word["word"]) for word in words) == len(marked)
    at = 0
    for word, confidence in zip(words, word_confidences(row), strict=True):
        end = at + len(word["word"])
        matches = fits and "x" in marked[at:end]
        yield [visible(word["word"]), word["start_s"], word["end_s"], confidence, matches]
        at = end
