"""Answers to the requests of the pages, as values that are written as JSON.

A recording is named by its ID and looked up in the tables, never by a path. Texts are `visible`:
with signs for characters that would hide or reorder others.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.confidence import HIGH_CONFIDENCE, LOW_CONFIDENCE
from corpus_asr.errors import ConfigError, FetchError, ItemError
from corpus_asr.export.formats import ExportFormat, file_texts
from corpus_asr.export.write import Names, common_folder
from corpus_asr.failure_kinds import failure_kind
from corpus_asr.report.html.formatting import visible
from corpus_asr.storage.stores.uri import without_secrets
from corpus_asr.units import SAMPLE_RATE_HZ
from corpus_asr.view.catalogue import BLOCK_ROWS, Catalogue, Library, Transcripts
from corpus_asr.view.query import Query, parse_query
from corpus_asr.view.search import (
    MAX_PAGE,
    PAGE_ROWS,
    Filters,
    Hit,
    Order,
    RecordingOrder,
    State,
    find,
    recordings_page,
    states,
)
from corpus_asr.view.sound import MAX_SAMPLES, Playable, Sounds

# What openai-whisper writes, too; the rest is for data sets, not for one recording.
_SAVED = tuple(ExportFormat(name) for name in ("srt", "vtt", "txt", "tsv", "json"))
_ELSEWHERE = "; if it was moved, name its new location: corpus-asr view ... --audio BEFORE=NOW"
MAX_CHARS = 2_000


class NotFoundError(LookupError):
    """There is no such recording, format or page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Filters):
    """The parameters of a request."""

    q: str = ""
    """A query, to search for or to mark."""
    whole_words: bool = False
    order: Order = Order.recording
    recording_order: RecordingOrder = RecordingOrder.name
    page: int = 0
    block: int = 0
    from_s: float = 0.0
    back: bool = False
    decode: bool = False
    """Also what browsers play."""
    channel: int | None = None
    format: str = ""

    @property
    def query(self) -> Query:
        """The parsed query."""
        return parse_query(self.q, whole_words=self.whole_words)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 2**31:
        raise ValueError(text)
    return value


# Parsers of parameters that are no text, and what these have to be.
_READ: Mapping[str, tuple[Callable[[str], Any], str]] = {
    **dict.fromkeys(("whole_words", "back", "decode"), ("1".__eq__, "1")),
    **dict.fromkeys(("from_s", "min_confidence", "max_confidence"), (_number, "a number")),
    **dict.fromkeys(("page", "block", "channel"), (_count, "a whole number from 0")),
    "state": (State, ", ".join(State)),
    "order": (Order, ", ".join(Order)),
    "recording_order": (RecordingOrder, ", ".join(RecordingOrder)),
}


def parse_request(parameters: Mapping[str, str]) -> Request:
    """Parse the parameters of a request; unknown ones are ignored."""
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(Request)):
        text = parameters.get(name.removesuffix("_s"), "")
        if len(text) > MAX_CHARS:
            raise ConfigError(f"reading {name}: found {len(text)} characters, expected fewer")
        read, expected = _READ.get(name, (str, "text"))
        try:
            if text:
                values[name] = read(text)
        except ValueError:
            raise ConfigError(f"reading {name}: found {text!r}, expected {expected}") from None
    return Request(**values)


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers requests: one method for each kind, by its name."""

    library: Library
    transcripts: Transcripts
    sounds: Sounds

    def run(self, _: Request) -> dict[str, Any]:
        """Return the state and counts of the output folder."""
        view = self.library.current()
        table = view.catalogue.recordings
        counts = {each["name"]: each["count"] for each in _counted(states(table))}
        return {
            "address": visible(without_secrets(self.library.store.uri)),
            "version": view.version,
            "finished": view.catalogue.finished,
            "problem": view.problem,
            "ready": view.texts is not None,
            "rows_read": view.rows_read,
            "recordings": table.num_rows,
            "segments": pc.sum(table["segments"]).as_py() or 0,
            "duration_s": pc.sum(table["duration_s"]).as_py() or 0.0,
            "states": {state.value: counts.get(state.value, 0) for state in State},
            "languages": _counted(table["language"]),
            "labels": _counted(table["label"]),
            "classified": view.catalogue.classified,
        }

    def recordings(self, request: Request) -> dict[str, Any]:
        """List recordings."""
        table = self.library.current().catalogue.recordings
        total, positions = recordings_page(
            table, request, order=request.recording_order, page=request.page
        )
        return _page(total) | {"recordings": _rows(table, positions)}

    def search(self, request: Request) -> dict[str, Any]:
        """Find segments."""
        view = self.library.current()
        if view.texts is None:
            return {"ready": False, "rows_read": view.rows_read, "problem": view.problem}
        query, table = request.query, view.catalogue.recordings
        page = find(table, view.texts, query, request, order=request.order, page=request.page)
        rows = _rows(table, [hit.position for hit in page.hits])
        hits = [_hit(hit, row, query) for hit, row in zip(page.hits, rows, strict=True)]
        return _page(page.total) | {"ready": True, "in": page.recordings, "hits": hits}

    def recording(self, request: Request) -> dict[str, Any]:
        """Return a recording, without its segments."""
        catalogue, position = self._named(request)
        row = catalogue.row(position)
        transcript = self.transcripts.read(catalogue, position)
        same = ("codec", "sample_rate_hz", "channels", "speech_s", "languages")
        answer = _rows(catalogue.recordings, [position])[0] | {name: row[name] for name in same}
        answer |= {
            "address": visible(without_secrets(row["uri"])),
            "finished": catalogue.finished,
            "decode_errors": row["decode_errors"] or 0,
            "segments": transcript.rows.num_rows,
            "block_rows": BLOCK_ROWS,
            "block_starts_s": transcript.block_starts_s,
            "has_words": transcript.has_words,
            "low_confidence": LOW_CONFIDENCE,
            "high_confidence": HIGH_CONFIDENCE,
            "apart": transcript.channels,
            "saved_as": [] if catalogue.classified else list(_SAVED),
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
        block = self.transcripts.read(*self._named(request)).block(request.block)
        return {"segments": [_segment(row, request.query) for row in block]}

    def unsure(self, request: Request) -> dict[str, Any]:
        """Find the next or previous word of low confidence."""
        transcript = self.transcripts.read(*self._named(request))
        at_s = transcript.low_confidence(
            request.from_s, below=LOW_CONFIDENCE, forward=not request.back
        )
        return {"at_s": at_s}

    def sound(self, request: Request) -> dict[str, Any]:
        """Return whether and how a recording can be played."""
        catalogue, position = self._named(request)
        sound = self.sounds.of(catalogue.row(position))
        answer = {
            "address": visible(without_secrets(sound.uri)),
            "as_it_is": sound.browser_type is not None,
            "longest_s": MAX_SAMPLES / SAMPLE_RATE_HZ,
        }
        if not sound.duration_s:
            return answer | {"state": "nothing", "message": "nothing of it could be decoded"}
        try:
            changed = self.sounds.changed(sound)
            if request.decode:
                # One sample after the header of the WAV: whether it can be decoded shows here.
                next(self.sounds.decoded(sound, channel=request.channel).read(44, 46))
        except FetchError as error:
            return answer | {"state": "missing", "message": visible(f"{error}{_ELSEWHERE}")}
        except ItemError as error:
            return answer | {"state": "unplayable", "message": visible(str(error))}
        return answer | {"state": "changed" if changed else "ok", "message": ""}

    def audio(self, request: Request) -> Playable:
        """Return the audio of a recording, as it is or decoded."""
        catalogue, position = self._named(request)
        sound = self.sounds.of(catalogue.row(position))
        if request.decode:
            return self.sounds.decoded(sound, channel=request.channel)
        return self.sounds.as_it_is(sound)

    def saved(self, request: Request) -> tuple[str, str]:
        """Return name and text of a file: a recording in one of the formats."""
        catalogue, position = self._named(request)
        if request.format not in _SAVED or catalogue.classified:
            raise NotFoundError(f"no format {request.format!r}; there are {', '.join(_SAVED)}")
        recording = self.transcripts.recording(catalogue, position)
        ((suffix, text),) = file_texts(recording, [ExportFormat(request.format)])
        name = Names(catalogue.recordings.slice(position, 1), [suffix])[0]
        return name.rpartition("/")[2] + suffix, text

    def _named(self, request: Request) -> tuple[Catalogue, int]:
        catalogue = self.library.current().catalogue
        position = catalogue.position_of(request.id)
        if position is None:
            raise NotFoundError(f"this run has no recording {request.id!r}")
        return catalogue, position


def _page(total: int) -> dict[str, Any]:
    return {"total": total, "pages": min(MAX_PAGE, -(-total // PAGE_ROWS))}


def _counted(column: pa.ChunkedArray) -> list[dict[str, Any]]:
    counts = [each for each in pc.value_counts(column).to_pylist() if each["values"] is not None]
    counts.sort(key=lambda each: (-each["counts"], each["values"]))
    return [{"name": each["values"], "count": each["counts"]} for each in counts]


def _rows(recordings: pa.Table, positions: list[int]) -> list[dict[str, Any]]:
    folder = common_folder(recordings["uri"])
    rows = recordings.take(pa.array(positions, pa.int64()))
    same = ("duration_s", "language", "label", "label_probability", "error_kind")
    return [
        {
            "id": row["recording_id"],
            "name": visible(without_secrets(row["uri"].removeprefix(folder))),
            "state": state,
            "segments": row["segments"],
            **{name: row[name] for name in same},
        }
        for row, state in zip(rows.to_pylist(), states(rows).to_pylist(), strict=True)
    ]


def _hit(hit: Hit, row: Mapping[str, Any], query: Query) -> dict[str, Any]:
    values = asdict(hit) | {"id": row["id"], "name": row["name"]}
    del values["position"], values["text"]
    return values | {
        "before": visible(hit.before),
        "after": visible(hit.after),
        "pieces": [[visible(piece), matches] for piece, matches in query.pieces(hit.text)],
    }


def _segment(row: Mapping[str, Any], query: Query) -> dict[str, Any]:
    text = row["text"] or ""
    pieces = query.pieces(text) if query.wanted else [(text, False)]
    values = {name: row[name] for name in ("start_s", "end_s", "language", "confidence", "channel")}
    values["pieces"] = [[visible(piece), matches] for piece, matches in pieces]
    if row["words"] is not None:
        values["words"] = list(_words(row["words"], pieces))
    return values


def _words(words: list[dict[str, Any]], pieces: list[tuple[str, bool]]) -> Iterator[list[Any]]:
    # Word, start, end, probability, and whether it is part of a match.
    marked = "".join(("x" if matches else " ") * len(piece) for piece, matches in pieces)
    # Words joined are their segment; in tables where they are not, none of them is marked.
    fits = sum(len(word["word"]) for word in words) == len(marked)
    at = 0
    for word in words:
        end = at + len(word["word"])
        matches = fits and "x" in marked[at:end]
        yield [visible(word["word"]), word["start_s"], word["end_s"], word["probability"], matches]
        at = end
