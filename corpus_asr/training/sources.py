"""Where utterances come from: manifests, data sets with audio in them, and the tables of runs.

In: addresses. Out: utterances. Knows no samples and no tokens.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from corpus_asr.config.finetune import DataSettings
from corpus_asr.export.recordings import SCORE_COLUMNS, Selection, chosen, read_index, recordings
from corpus_asr.storage.tables import OutputStore
from corpus_asr.training.datasets import files_of_dataset, holds_audio, read_dataset
from corpus_asr.training.utterances import Utterance, read_utterances

_PARQUET = ".parquet"
_MANIFESTS = (".jsonl", ".csv", _PARQUET)


def utterances_in(data: DataSettings, split: str) -> Iterator[Utterance]:
    """Yield the utterances of a split: `train` or `validation`.

    Raises:
        ConfigError: as `utterances_of` has it.
        CorpusAsrError: as there.
        FetchError: as there.
    """
    sources: tuple[str, ...] = getattr(data, split)
    held_out = data.held_out_speakers if split == "train" else ()
    for source in sources:
        for utterance in utterances_of(
            source,
            split=split,
            endpoint_url=data.endpoint_url,
            language=data.language,
            min_confidence=data.min_confidence,
        ):
            if not any(fnmatchcase(utterance.speaker or "", pattern) for pattern in held_out):
                yield utterance


def utterances_of(
    uri: str,
    *,
    split: str,
    endpoint_url: str | None,
    language: str | None,
    min_confidence: float,
) -> Iterator[Utterance]:
    """Yield the utterances of a manifest or a data set, or the segments of a run.

    Args:
        uri: a manifest or a Parquet file with audio by its suffix; else the folder of a data set,
            or the output folder of a run.
        split: of a data set: `train` or `validation`.
        endpoint_url: the S3 endpoint, where it is not Amazon's.
        language: of rows that say none.
        min_confidence: segments of runs below are left out.

    Raises:
        ConfigError: a manifest cannot be used, or the folder holds no run.
        CorpusAsrError: tables do not hold what they say.
        FetchError: it cannot be read.
    """
    place: dict[str, str | None] = {"endpoint_url": endpoint_url, "language": language}
    if uri.lower().endswith(_MANIFESTS):
        with_audio = uri.lower().endswith(_PARQUET) and holds_audio(uri, endpoint_url=endpoint_url)
        yield from (read_dataset if with_audio else read_utterances)(uri, **place)
        return
    store = OutputStore(uri, endpoint_url=endpoint_url)
    files = files_of_dataset(store, split)
    if files is not None:
        for file in files:
            yield from read_dataset(file, **place)
        return
    index = read_index(store)
    selection = Selection(min_confidence=min_confidence, drop_known_hallucinations=True)
    wanted = chosen(index, selection)
    for _, recording in recordings(store, index, wanted, selection, columns=SCORE_COLUMNS):
        for segment, channel in zip(recording.segments, recording.channels, strict=True):
            yield Utterance(
                channel=channel,
                uri=recording.uri,
                text=segment.text,
                start_s=segment.start_s,
                end_s=segment.end_s,
                language=segment.language or language,
            )
