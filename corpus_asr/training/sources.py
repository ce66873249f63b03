"""Where passages come from: manifests, and the tables of runs.

In: addresses. Out: passages. Knows no samples and no tokens.
"""

from collections.abc import Iterator

from corpus_asr.export.index import read_index
from corpus_asr.export.load import SCORE_COLUMNS, Selection, chosen, recordings
from corpus_asr.storage.tables import OutputStore
from corpus_asr.training.passages import Passage, read_passages

_MANIFESTS = (".jsonl", ".csv", ".parquet")


def passages_of(
    uri: str,
    *,
    endpoint_url: str | None,
    language: str | None,
    min_confidence: float,
) -> Iterator[Passage]:
    """Yield the passages of a manifest, or the segments of a run.

    Args:
        uri: a manifest by its suffix, else the output folder of a run.
        endpoint_url: the S3 endpoint, where it is not Amazon's.
        language: of rows that say none.
        min_confidence: segments of runs below are left out.

    Raises:
        ConfigError: a manifest cannot be used, or the folder holds no run.
        CorpusAsrError: tables do not hold what they say.
        FetchError: it cannot be read.
    """
    if uri.lower().endswith(_MANIFESTS):
        yield from read_passages(uri, endpoint_url=endpoint_url, language=language)
        return
    store = OutputStore(uri, endpoint_url=endpoint_url)
    index = read_index(store)
    selection = Selection(min_confidence=min_confidence)
    wanted = chosen(index, selection)
    for _, recording in recordings(store, index, wanted, selection, columns=SCORE_COLUMNS):
        for segment in recording.segments:
            yield Passage(
                uri=recording.uri,
                text=segment.text,
                start_s=segment.start_s,
                end_s=segment.end_s,
                language=segment.language or language,
            )
