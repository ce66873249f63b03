"""What the pages ask for, as values that are written as JSON.

In: the parameters of a request. Out: plain values, in which texts show what they would hide. A
recording is named by its identity and looked up in the tables, never by a path. Knows nothing of
HTTP, and nothing of how pages look.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.confidence import HIGH_CONFIDENCE, LOW_CONFIDENCE
from corpus_asr.errors import FetchError, ItemError
from corpus_asr.export.formats import ExportFormat, file_texts
from corpus_asr.export.names import Names, common_folder
from corpus_asr.pages.html import visible
from corpus_asr.report.advice import advice
from corpus_asr.storage.addresses import without_secrets
from corpus_asr.storage.results import LABEL_ROWS
from corpus_asr.units import SAMPLE_RATE_HZ
from corpus_asr.view.catalogue import Catalogue, Library
from corpus_asr.view.parameters import Parameters
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
from corpus_asr.view.sound import MAX_SAMPLES, Readable, Sounds
from corpus_asr.view.transcripts import BLOCK_ROWS, Transcripts, recording_of

# Formats that can be saved.
_SAVED = tuple(ExportFormat(name) for name in ("srt", "vtt", "txt", "tsv", "json"))
_ELSEWHERE = "; if it lies elsewhere now, say where: corpus-asr view ... --audio BEFORE=NOW"


class NotFoundError(LookupError):
    """There is no such recording, format or page."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers requests; each method is one that pages make, by its name."""

    library: Library
    transcripts: Transcripts
    sounds: Sounds

    def run(self, _: Parameters) -> dict[str, Any]:
        """Tell what is in the output folder."""
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
            "passages": pc.sum(table["segments"]).as_py() or 0,
            "duration_s": pc.sum(table["duration_s"]).as_py() or 0.0,
            "states": {state.value: counts.get(state.value, 0) for state in State},
            "languages": _counted(table["language"]),
            "labels": _counted(table["label"]),
            "classified": view.catalogue.rows is LABEL_ROWS,
        }

    def recordings(self, parameters: Parameters) -> dict[str, Any]:
        """List recordings."""
        catalogue = self.library.current().catalogue
        total, positions = recordings_page(
            catalogue,
            _filters(parameters),
            order=parameters.choice("order", RecordingOrder, RecordingOrder.name),
            page=parameters.page(),
        )
        return _page(total) | {"recordings": _rows(catalogue, positions)}

    def search(self, parameters: Parameters) -> dict[str, Any]:
        """Find passages."""
        view = self.library.current()
        if view.texts is None:
            return {"ready": False, "rows_read": view.rows_read, "problem": view.problem}
        query = _query(parameters)
        found = find(
            view.catalogue,
            view.texts,
            query,
            _filters(parameters),
            order=parameters.choice("order", Order, Order.recording),
            page=parameters.page(),
        )
        rows = _rows(view.catalogue, [hit.position for hit in found.hits])
        hits = [_told(hit, row, query) for hit, row in zip(found.hits, rows, strict=True)]
        return _page(found.total) | {"ready": True, "in": found.recordings, "hits": hits}

    def recording(self, parameters: Parameters) -> dict[str, Any]:
        """Tell all about a recording but what was said."""
        catalogue, position = self._named(parameters)
        row = catalogue.recordings.slice(position, 1).to_pylist()[0]
        transcript = self.transcripts.read(catalogue, position)
        told = _rows(catalogue, [position])[0] | {
            "address": visible(without_secrets(row["uri"])),
            "finished": catalogue.finished,
            "codec": row["codec"],
            "sample_rate_hz": row["sample_rate_hz"],
            "channels": row["channels"],
            "speech_s": row["speech_s"],
            "languages": row["languages"],
            "decode_errors": row["decode_errors"] or 0,
            "passages": transcript.rows.num_rows,
            "block_rows": BLOCK_ROWS,
            "block_starts_s": transcript.block_starts_s,
            "has_words": transcript.has_words,
            "low_confidence": LOW_CONFIDENCE,
            "high_confidence": HIGH_CONFIDENCE,
            "apart": transcript.has_channels,
            "saved_as": [] if catalogue.rows is LABEL_ROWS else list(_SAVED),
        }
        if row["error_kind"] is not None:
            told["error"] = {
                "kind": row["error_kind"],
                "stage": row["error_stage"],
                "message": visible(row["error_message"] or ""),
                "advice": advice(row["error_kind"], retryable=bool(row["retryable"])),
            }
        return told

    def passages(self, parameters: Parameters) -> dict[str, Any]:
        """Tell what was said in a block of a recording."""
        catalogue, position = self._named(parameters)
        query = _query(parameters)
        block = self.transcripts.read(catalogue, position).block(parameters.count("block"))
        return {"passages": [_passage(row, query) for row in block]}

    def unsure(self, parameters: Parameters) -> dict[str, Any]:
        """Find the next word that the model was not sure of, or the one before."""
        catalogue, position = self._named(parameters)
        at_s = self.transcripts.read(catalogue, position).unsure(
            parameters.number("from") or 0.0,
            below=LOW_CONFIDENCE,
            forward=not parameters.flag("back"),
        )
        return {"at_s": at_s}

    def sound(self, parameters: Parameters) -> dict[str, Any]:
        """Tell whether and how a recording can be heard."""
        catalogue, position = self._named(parameters)
        sound = self.sounds.of(catalogue.recordings.slice(position, 1).to_pylist()[0])
        told = {
            "address": visible(without_secrets(sound.uri)),
            "as_it_is": sound.browser_type is not None,
            "longest_s": MAX_SAMPLES / SAMPLE_RATE_HZ,
        }
        if not sound.duration_s:
            return told | {"state": "nothing", "message": "nothing of it could be decoded"}
        try:
            changed = self.sounds.changed(sound)
            if parameters.flag("decode"):
                next(self.sounds.decoded(sound, channel=parameters.channel()).read(44, 46))
        except ItemError as error:
            fetched = not isinstance(error, FetchError)
            hint = "" if fetched else _ELSEWHERE
            return told | {
                "state": "unplayable" if fetched else "missing",
                "message": visible(f"{error}{hint}"),
            }
        return told | {"state": "changed" if changed else "ok", "message": ""}

    def audio(self, parameters: Parameters) -> Readable:
        """Return the sound of a recording, as it is or decoded.

        Raises:
            ItemError: it cannot be read.
        """
        catalogue, position = self._named(parameters)
        sound = self.sounds.of(catalogue.recordings.slice(position, 1).to_pylist()[0])
        if parameters.flag("decode"):
            return self.sounds.decoded(sound, channel=parameters.channel())
        return self.sounds.as_it_is(sound)

    def saved(self, parameters: Parameters) -> tuple[str, str]:
        """Return a name for a file, and what is in it: a recording in one of the formats."""
        catalogue, position = self._named(parameters)
        suffix = parameters.text("format")
        if suffix not in _SAVED or catalogue.rows is LABEL_ROWS:
            raise NotFoundError(f"no format {suffix!r}; there are {', '.join(_SAVED)}")
        transcript = self.transcripts.read(catalogue, position)
        recording = recording_of(catalogue, position, transcript)
        ((_, text),) = file_texts(recording, [ExportFormat(suffix)])
        name = Names(catalogue.recordings.slice(position, 1), [f".{suffix}"])[0]
        return f"{name.rpartition('/')[2]}.{suffix}", text

    def _named(self, parameters: Parameters) -> tuple[Catalogue, int]:
        catalogue = self.library.current().catalogue
        recording_id = parameters.text("id")
        position = catalogue.position_of(recording_id)
        if position is None:
            raise NotFoundError(f"this run has no recording {recording_id!r}")
        return catalogue, position


def _query(parameters: Parameters) -> Query:
    return parse_query(parameters.text("q"), whole_words=parameters.flag("whole_words"))


def _filters(parameters: Parameters) -> Filters:
    return Filters(
        recording_id=parameters.text("id"),
        name=parameters.text("name"),
        state=parameters.choice("state", State, None),
        language=parameters.text("language") or None,
        label=parameters.text("label") or None,
        min_confidence=parameters.number("min_confidence"),
        max_confidence=parameters.number("max_confidence"),
    )


def _page(total: int) -> dict[str, Any]:
    return {"total": total, "pages": min(MAX_PAGE, -(-total // PAGE_ROWS))}


def _counted(column: pa.ChunkedArray) -> list[dict[str, Any]]:
    counts = [each for each in pc.value_counts(column).to_pylist() if each["values"] is not None]
    counts.sort(key=lambda each: (-each["counts"], each["values"]))
    return [{"name": each["values"], "count": each["counts"]} for each in counts]


def _rows(catalogue: Catalogue, positions: list[int]) -> list[dict[str, Any]]:
    folder = common_folder(catalogue.recordings["uri"])
    rows = catalogue.recordings.take(positions) if positions else catalogue.recordings.slice(0, 0)
    return [
        {
            "id": row["recording_id"],
            "name": visible(without_secrets(row["uri"].removeprefix(folder))),
            "duration_s": row["duration_s"],
            "state": state,
            "language": row["language"],
            "passages": row["segments"],
            "label": row["label"],
            "label_probability": row["label_probability"],
            "error_kind": row["error_kind"],
        }
        for row, state in zip(rows.to_pylist(), states(rows).to_pylist(), strict=True)
    ]


def _told(hit: Hit, row: Mapping[str, Any], query: Query) -> dict[str, Any]:
    values = asdict(hit) | {"id": row["id"], "name": row["name"]}
    del values["position"], values["text"]
    return values | {
        "before": visible(hit.before),
        "after": visible(hit.after),
        "pieces": [[visible(piece), found] for piece, found in query.pieces(hit.text)],
    }


def _passage(row: Mapping[str, Any], query: Query) -> dict[str, Any]:
    """Return a passage with its words, or its pieces; each says whether it was searched for."""
    text = row["text"] or ""
    pieces = query.pieces(text) if query.wanted else [(text, False)]
    values = {name: row[name] for name in ("start_s", "end_s", "language", "confidence", "channel")}
    values["pieces"] = [[visible(piece), found] for piece, found in pieces]
    if row["words"] is not None:
        values["words"] = list(_words(row["words"], pieces))
    return values


def _words(words: list[dict[str, Any]], pieces: list[tuple[str, bool]]) -> Iterator[list[Any]]:
    """Yield word, start, end, probability and whether it is part of what was searched for."""
    marked = "".join(("x" if found else " ") * len(piece) for piece, found in pieces)
    # Words joined are their passage; if somebody has written others, none of them is marked.
    fits = sum(len(word["word"]) for word in words) == len(marked)
    at = 0
    for word in words:
        end = at + len(word["word"])
        found = fits and "x" in marked[at:end]
        yield [visible(word["word"]), word["start_s"], word["end_s"], word["probability"], found]
        at = end
