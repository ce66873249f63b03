"""Words of known texts that are not in the audio, from the outcomes of a run that aligned them.

Outcomes hold the text itself among the manifest's columns, the lengths of its words, and which of
them each part says.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.export.recordings import Index
from corpus_asr.segments import MissingWord
from corpus_asr.storage.manifest import aligned_text
from corpus_asr.storage.run_state.ledger import Ledger, counted
from corpus_asr.storage.run_state.run_files import CONFIG_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.transcription.joined_text import missing_words, words_of_lengths

MissingWords = Mapping[str, tuple[MissingWord, ...]]
"""Words that are not in the audio, by `recording_id`."""

_Row = dict[str, Any]
_COLUMNS = (
    "recording_id", "uri", "part", "last_part", "metadata", "text_lengths", "text_spans",
)  # fmt: skip


def missing_words_of(store: OutputStore, index: Index, wanted: np.ndarray) -> MissingWords | None:
    """Return the missing words of the recordings of a mask; None where the run aligned no texts.

    Of a recording of which a part failed or is not committed, and of one without speech, they are
    not known. In memory are the recordings whose parts are not all read, and the words found to be
    missing.
    """
    config = store.read_json(CONFIG_NAME) or {}
    if not config.get("decoding", {}).get("align"):
        return None
    table = index.recordings
    whole = pc.and_(table["complete"], pc.invert(table["failed"])).to_numpy() & wanted
    ids = table["recording_id"].filter(pa.array(whole)).combine_chunks()
    found: dict[str, tuple[MissingWord, ...]] = {}
    for parts in _recordings(_rows(store, ids)):
        lengths = next((row["text_lengths"] for row in parts if row["text_lengths"]), None)
        if lengths is not None:
            found[parts[0]["recording_id"]] = _missing(parts, lengths)
    return found


def _rows(store: OutputStore, ids: pa.Array) -> Iterator[_Row]:
    masks = Ledger.load(store).resolve(()).counts
    for batch, counts in counted(store, masks, _COLUMNS):
        ours = pc.is_in(batch["recording_id"], value_set=ids)
        yield from batch.filter(pc.and_(ours, pa.array(counts))).to_pylist()


def _recordings(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    waiting: dict[str, list[_Row]] = {}
    for row in rows:
        parts = waiting.setdefault(row["recording_id"], [])
        parts.append(row)
        last = next((each["part"] for each in parts if each["last_part"]), None)
        if last is not None and len(parts) > last:
            yield sorted(waiting.pop(row["recording_id"]), key=lambda each: each["part"])


def _missing(parts: Sequence[_Row], lengths: Sequence[int]) -> tuple[MissingWord, ...]:
    row = parts[0]
    words = words_of_lengths(aligned_text(row["uri"], row["metadata"]).text, lengths)
    spans = [span for part in parts for span in part["text_spans"] or ()]
    ends_s = {at: span["end_s"] for span in spans for at in range(span["first"], span["stop"])}
    return missing_words(words, ends_s)
