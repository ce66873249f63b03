"""Words of known texts that are not in the audio, from the outcomes of a run that aligned them.

Outcomes hold the text itself among the manifest's columns, the lengths of its words, and which of
them each part says.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa

from corpus_asr.segments import MissingWord
from corpus_asr.storage.manifest import aligned_text
from corpus_asr.storage.run_state.run_files import CONFIG_NAME
from corpus_asr.storage.run_state.run_tables import VERSION_COLUMNS, RunTables
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.transcription.joined_text import missing_words, words_of_lengths

MissingWords = Mapping[str, tuple[MissingWord, ...]]
"""Words that are not in the audio, by `recording_id`."""

_Row = dict[str, Any]
_COLUMNS = ("uri", "metadata", "text_lengths", "text_spans")
_PARTS = f"""
select recording_id, {", ".join(_COLUMNS)} from parts semi join wanted using (recording_id)
order by recording_id, part
"""


def missing_words_of(store: OutputStore, ids: pa.Table) -> MissingWords | None:
    """Return the missing words of recordings; None where the run aligned no texts.

    Of those without speech they are not known. In memory are the words found to be missing.

    Args:
        ids: recording_id of recordings of which all parts are committed and none failed.
    """
    config = store.read_json(CONFIG_NAME) or {}
    if not config.get("decoding", {}).get("align"):
        return None
    found: dict[str, tuple[MissingWord, ...]] = {}
    with RunTables(store, columns=(*VERSION_COLUMNS, *_COLUMNS)) as tables:
        tables.add("wanted", ids)
        rows = (row for batch in tables.batches(_PARTS) for row in batch.to_pylist())
        for recording_id, theirs in groupby(rows, key=itemgetter("recording_id")):
            parts = list(theirs)
            lengths = next((row["text_lengths"] for row in parts if row["text_lengths"]), None)
            if lengths is not None:
                found[recording_id] = _missing(parts, lengths)
    return found


def _missing(parts: Sequence[_Row], lengths: Sequence[int]) -> tuple[MissingWord, ...]:
    row = parts[0]
    words = words_of_lengths(aligned_text(row["uri"], row["metadata"]).text, lengths)
    spans = [span for part in parts for span in part["text_spans"] or ()]
    ends_s = {at: span["end_s"] for span in spans for at in range(span["first"], span["stop"])}
    return missing_words(words, ends_s)
