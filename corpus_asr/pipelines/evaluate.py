"""Compare a run's transcripts with references, and fit `confidence` to the comparison.

References are a manifest, of recordings or of parts of them: then these parts alone are compared,
with the model's own text. The comparison stays in the run's output folder as `evaluation.json`.
Nothing is transcribed, and rows already written keep their
confidences; runs that come after a calibration use it.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import mul

import pyarrow as pa

from corpus_asr.confidence import DEFAULT_MODEL, ConfidenceModel
from corpus_asr.config.decoding import PACKAGED_CHECKPOINT
from corpus_asr.edits.corrected_segments import SeenSegments
from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.export.recordings import (
    EVIDENCE_COLUMNS,
    WORD_COLUMNS,
    Recording,
    Selection,
    open_selection,
    recordings,
    settings_of,
)
from corpus_asr.export.speakers import speakers_of
from corpus_asr.logs import event
from corpus_asr.report.calibration import (
    Calibration,
    SegmentOutcome,
    calibration_data,
    calibration_of,
    check_enough,
    fit,
    segment_outcomes,
)
from corpus_asr.report.evaluation import Evaluation, as_data, compare, summarize
from corpus_asr.report.scoring import (
    Hypothesis,
    Reference,
    Score,
    SpokenSpan,
    TimedWord,
    read_references,
    score,
)
from corpus_asr.report.text import now
from corpus_asr.segments import Segment, Word
from corpus_asr.storage.run_state.identities import Identities
from corpus_asr.storage.run_state.run_files import (
    CALIBRATION_NAME,
    EVALUATION_NAME,
    FINGERPRINT_NAME,
    open_run,
    write_calibration,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import DEFAULT_STORE, StoreOptions
from corpus_asr.storage.stores.uri import public, redact_uri

_LOG = logging.getLogger(__name__)
Spans = Sequence[tuple[float, float]] | None


def evaluate(
    output_uri: str,
    references: str,
    *,
    against: str | None = None,
    language: str | None = None,
    options: StoreOptions = DEFAULT_STORE,
) -> Evaluation:
    """Compare the transcripts of a run with the references of a manifest.

    Raises:
        ConfigError: no such output, unusable references, none of which is of a recording here, or
            jiwer is not installed.
        CorpusAsrError: the tables do not hold what they say.
        FetchError: a store failed beyond its retries.
    """
    store = open_run(output_uri, options=options)
    expected = read_references(references, store.options, language=language)
    scores = _scores(store, expected, references)
    comparison = None
    if against is not None:
        other_store = open_run(against, options=options)
        shared = {identity: scores[identity] for identity in expected.keys() & scores.keys()}
        comparison = compare(
            shared, _scores(other_store, expected, references), other=redact_uri(other_store.uri)
        )
    evaluation = summarize(
        list(scores.values()),
        output=redact_uri(output_uri),
        references=redact_uri(references),
        missing=len(expected) - len(scores),
        comparison=comparison,
    )
    _keep(store, evaluation)
    return evaluation


def _keep(store: OutputStore, evaluation: Evaluation) -> None:
    """Save an evaluation in the output folder for the run's report."""
    try:
        store.write_json(EVALUATION_NAME, {"evaluated_at": now(), **as_data(evaluation)})
    except FetchError as error:  # results of others may be read-only
        event(
            _LOG, logging.WARNING, "evaluation_not_kept", uri=redact_uri(store.uri), why=str(error)
        )


def _read(store: OutputStore, ids: Iterable[str], columns: Sequence[str]) -> Iterator[Recording]:
    selection = Selection()
    with open_selection(store, selection, among=pa.array(ids, pa.string())) as tables:
        yield from recordings(SeenSegments(store, tables), tables, selection, columns=columns)


def _scores(
    store: OutputStore, expected: Mapping[str, Reference], manifest: str
) -> dict[str, Score]:
    selection, keys = Selection(), _keys_by_id(store, expected)
    with open_selection(store, selection, among=pa.array(keys, pa.string())) as tables:
        turns = speakers_of(store)
        seen = SeenSegments(store, tables)
        run_recordings = recordings(seen, tables, selection, columns=WORD_COLUMNS, turns=turns)
        scores = {}
        for recording in run_recordings:
            key = keys[recording.recording_id]
            hypothesis = _of(_within(recording, expected[key].spans))
            scores[key] = score(expected[key], hypothesis)
        # A failed recording counts as silence: skipping it would improve the score.
        silence = Hypothesis(text="", language=None, duration_s=0.0, failed=True)
        for (identity,) in tables.rows(_FAILED):
            scores[keys[identity]] = score(expected[keys[identity]], silence)
        [(example,)] = tables.rows("select min(uri) from recordings")
    if not scores:
        example = "none: it has no results" if example is None else redact_uri(example)
        raise ConfigError(
            f"comparing {redact_uri(store.uri)} with {redact_uri(manifest)}: found none of its "
            f"{len(expected):,} recordings, expected URIs of this run, such as {example}; correct "
            "the manifest, whose relative URIs start at its folder"
        )
    return scores


def _keys_by_id(store: OutputStore, expected: Mapping[str, Reference]) -> dict[str, str]:
    """Return the keys of references by recording ID in the run."""
    uris = [reference.uri for reference in expected.values()]
    return dict(zip(Identities.read(store).ids_of(uris), expected, strict=True))


_FAILED = """
select recording_id from recordings semi join meant using (recording_id)
where complete and not succeeded order by uri, recording_id
"""


def _within(recording: Recording, spans: Spans) -> Recording:
    """Return the transcript of some time spans of a recording; None: all of it."""
    if spans is None:
        return recording

    def is_within(one: Segment | Word) -> bool:
        # By midpoints: word boundaries are accurate to a tenth of a second.
        middle_s = (one.start_s + one.end_s) / 2
        return any(start_s <= middle_s < end_s for start_s, end_s in spans)

    kept = []
    for segment, channel in recording.pairs:
        if segment.words is not None:
            words = tuple(filter(is_within, segment.words))
            text = "".join(word.word for word in words)
            segment = replace(segment, text=text, words=words)
        elif not is_within(segment):
            continue
        if segment.text.strip():
            kept.append((segment, channel))
    return recording.saying(kept)


def _of(recording: Recording) -> Hypothesis:
    # Weighted by words, like the error rate: a long segment counts more.
    counts = [len(segment.text.split()) for segment in recording.segments]
    confidences = [segment.confidence for segment in recording.segments]
    texts: dict[str, str] = {}
    for segment in recording.segments:
        name = segment.speaker or ""
        texts[name] = f"{texts.get(name, '')} {segment.text}"
    return Hypothesis(
        # Not all model families start segments with a space.
        text=" ".join(segment.text.strip() for segment in recording.segments),
        language=recording.language,
        duration_s=recording.duration_s,
        confidence=sum(map(mul, counts, confidences)) / sum(counts) if sum(counts) else None,
        words=tuple(
            TimedWord(word.word, word.start_s, word.end_s)
            for segment in recording.segments
            for word in segment.words or ()
        ),
        failed=recording.failed,
        turns=None
        if recording.turns is None
        else tuple(SpokenSpan(turn.start_s, turn.end_s, turn.speaker) for turn in recording.turns),
        said=texts,
    )


def calibrate(
    output_uri: str,
    references: str,
    *,
    language: str | None = None,
    options: StoreOptions = DEFAULT_STORE,
) -> Calibration:
    """Fit confidences to a run's segments, and save the calibration in its output folder."""
    store = open_run(output_uri, options=options)
    start = _start(store)
    outcomes = _outcomes(store, references, language)
    check_enough(outcomes)
    address = store.address(CALIBRATION_NAME)
    calibration = calibration_of(outcomes, fit(outcomes, start), address=address)
    fitted = {"date": now(), "references": redact_uri(references)} | calibration_data(calibration)
    write_calibration(store, calibration.model, fitted=fitted)
    return calibration


def _start(store: OutputStore) -> ConfidenceModel:
    """Return the initial model of a fit, with the name and revision of the run's model."""
    config, fingerprint = settings_of(store, doing="calibrating")
    if config["model"].get("by_language"):
        raise ConfigError(
            f"calibrating {redact_uri(store.uri)}: found a run of several models "
            "(model.by_language), expected one; calibrate each on its own run"
        )
    # The fingerprint lists the model's own weights first.
    model, revision = config["model"], fingerprint.partition("-")[2].partition(",")[0]
    names = [model.get("recognizer"), public(model["checkpoint"]), revision]
    if names[0] and names[1] == PACKAGED_CHECKPOINT:  # the default, used without loading it
        del names[1]
    return replace(
        DEFAULT_MODEL,
        name=" ".join(filter(None, names)),
        model_revision=revision,
        family=(store.read_json(FINGERPRINT_NAME) or {}).get("family"),
    )


def _outcomes(store: OutputStore, references: str, language: str | None) -> list[SegmentOutcome]:
    outcomes: list[SegmentOutcome] = []
    pairs = compared(store, references, language=language, columns=EVIDENCE_COLUMNS)
    for recording, reference in pairs:
        outcomes += segment_outcomes(
            recording.segments, reference.text, reference.language, group=recording.recording_id
        )
    return outcomes


def compared(
    store: OutputStore, references: str, *, language: str | None, columns: Sequence[str]
) -> Iterator[tuple[Recording, Reference]]:
    """Yield the recordings that have a reference, with the segments within its spans."""
    expected = read_references(references, store.options, language=language)
    keys = _keys_by_id(store, expected)
    for recording in _read(store, keys, columns):
        reference = expected[keys[recording.recording_id]]
        yield _within(recording, reference.spans), reference
