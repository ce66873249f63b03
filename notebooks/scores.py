"""Transcripts compared with references: recordings, segments, words, and a diff.

In: the output of a finished run and a manifest of references. Out: values of
`corpus_asr.report.scoring` and pandas tables. Texts are compared as `corpus-asr evaluate` compares
them: after Whisper's normalizers.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from corpus_asr.errors import ConfigError
from corpus_asr.report.scoring import (
    Errors,
    Hypothesis,
    Reference,
    Score,
    TimedWord,
    aligned,
    normalized,
    read_references,
    score,
    units,
)
from corpus_asr.storage.run_state.run_files import open_run

NUM_RESAMPLES = 2_000

_STRUCK = "background:#fbd9c0;color:#6b2600;text-decoration:line-through"
_ADDED = "background:#cfe5f5;color:#00344f;text-decoration:underline"


class StopHereError(Exception):
    """What follows cannot be shown; the message says why and what to do."""

    def _render_traceback_(self) -> list[str]:
        # IPython asks for this: a reader needs the message, not where it was raised.
        return [f"Stopped here: {self}"]


def name_of(uri: str) -> str:
    """Return the file name of a URI."""
    return uri.rsplit("/", 1)[-1]


def read_run(
    output: str, table: str, *, variable: str = "CORPUS_ASR_OUTPUT", **options: Any
) -> pd.DataFrame:
    """Read a table of a finished run, such as `segments`.

    Args:
        output: the run's `output.uri`, or the folder of `transcribe -o`: a path, or a URI like
            s3://bucket/folder.
        table: segments, outcomes or recordings.
        variable: of the environment, which names the folder.
        options: for `pandas.read_parquet`, such as `columns` or `filters`.

    Raises:
        StopHereError: there is no such table.
    """
    try:
        return pd.read_parquet(f"{open_run(output).uri}/{table}", **options)
    except FileNotFoundError as error:
        raise StopHereError(
            f"found no {table}/ in {output}, expected the output folder of a finished run. Make "
            f"one with `make demo`, or set {variable} to yours before Jupyter is started."
        ) from error


def references_for(manifest: str, recordings: pd.DataFrame) -> dict[str, Reference]:
    """Read the references of a run's recordings, by recording_id.

    Raises:
        StopHereError: there are none.
    """
    what_to_do = (
        "Set CORPUS_ASR_REFERENCES to a manifest of recordings with `text`, and for word times "
        "`words` (docs/how-to/manifests.md); the sections above need none."
    )
    if "://" not in manifest and not Path(manifest).exists():
        raise StopHereError(f"there are no references at {manifest}. {what_to_do}")
    try:
        found = read_references(manifest)
    except ConfigError as error:
        raise StopHereError(f"{error}. {what_to_do}") from error
    known = {each: found[each] for each in recordings.recording_id if each in found}
    if not known:
        example = recordings.uri.iloc[0] if len(recordings) else "none"
        raise StopHereError(
            f"none of the {len(found)} references in {manifest} is of a recording of this run, "
            f"such as {example}. {what_to_do}"
        )
    return known


def hypotheses_in(recordings: pd.DataFrame, segments: pd.DataFrame) -> dict[str, Hypothesis]:
    """Return the transcript of each recording of a run, by recording_id."""
    ordered = segments.sort_values(["recording_id", "start_s", "part", "segment"])
    by_recording = dict(iter(ordered.groupby("recording_id")))
    return {
        row.recording_id: _hypothesis(row, by_recording.get(row.recording_id))
        for row in recordings.itertuples()
    }


def _hypothesis(recording: Any, segments: pd.DataFrame | None) -> Hypothesis:
    failed = recording.status == "failed"
    duration_s = float(recording.duration_s or 0.0)
    if segments is None:
        return Hypothesis(text="", language=None, duration_s=duration_s, failed=failed)
    weights = segments.text.str.split().str.len()
    words = [word for found in segments.words if found is not None for word in found]
    return Hypothesis(
        text=" ".join(segments.text.str.strip()),
        language=segments.language.iloc[0],
        duration_s=duration_s,
        confidence=float(np.average(segments.confidence, weights=weights))
        if any(weights)
        else None,
        words=tuple(TimedWord(each["word"], each["start_s"], each["end_s"]) for each in words),
        failed=failed,
    )


def score_all(
    references: Mapping[str, Reference], hypotheses: Mapping[str, Hypothesis]
) -> dict[str, Score]:
    """Compare each recording that has a reference, by recording_id."""
    return {each: score(references[each], hypotheses[each]) for each in references}


def as_table(scores: Mapping[str, Score]) -> pd.DataFrame:
    """Return a row per recording: counts of words, error rates, confidence."""
    return pd.DataFrame(
        {
            "recording_id": identity,
            "recording": name_of(each.reference.uri),
            "set": each.reference.set or each.reference.language or "all",
            "duration_s": each.hypothesis.duration_s,
            "num_words": each.words.reference_length,
            "errors": each.words.errors,
            "wer": each.words.rate,
            "cer": each.characters.rate,
            "confidence": each.hypothesis.confidence,
        }
        for identity, each in scores.items()
    )


@dataclass(frozen=True, slots=True)
class Step:
    """A span of an alignment: equal in both texts, or not."""

    reference: list[str]
    hypothesis: list[str]
    equal: bool


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Step]:
    """Align words with the fewest errors."""
    if not reference or not hypothesis:
        either = reference or hypothesis
        return [Step(list(reference), list(hypothesis), False)] if either else []
    chunks = aligned(reference, hypothesis).alignments[0]
    return [
        Step(
            list(reference[chunk.ref_start_idx : chunk.ref_end_idx]),
            list(hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]),
            chunk.type == "equal",
        )
        for chunk in chunks
    ]


def by_word(scores: Mapping[str, Score], segments: pd.DataFrame) -> pd.DataFrame:
    """Return a row per recognized word: its segment, and whether it is correct.

    Deleted words are counted with the recognized word before them, or the first: `deleted`.
    """
    rows: list[tuple[str, int, bool, int]] = []
    for identity, group in segments.groupby("recording_id"):
        if identity not in scores:
            continue
        reference = scores[identity].reference
        owners: list[int] = []
        hypothesis: list[str] = []
        for at, text in group.sort_values(["start_s", "part", "segment"]).text.items():
            found = units(normalized(text, reference.language), reference.language)
            hypothesis += found
            owners += [at] * len(found)
        expected = units(normalized(reference.text, reference.language), reference.language)
        rows += _judged(identity, owners, align(expected, hypothesis))
    return pd.DataFrame(rows, columns=["recording_id", "at", "correct", "deleted"])


def _judged(
    identity: str, owners: Sequence[int], steps: Iterable[Step]
) -> list[tuple[str, int, bool, int]]:
    correct: list[bool] = []
    deleted = [0] * len(owners)
    for step in steps:
        correct += [step.equal] * len(step.hypothesis)
        if owners and not step.hypothesis:
            deleted[max(0, len(correct) - 1)] += len(step.reference)
    return [
        (identity, owner, good, missing)
        for owner, good, missing in zip(owners, correct, deleted, strict=True)
    ]


def by_segment(scores: Mapping[str, Score], segments: pd.DataFrame) -> pd.DataFrame:
    """Return the segments that have words and references, with counts of words and errors."""
    words = by_word(scores, segments)
    counts = words.groupby("at").agg(
        hypothesis_words=("correct", "size"),
        correct=("correct", "sum"),
        deleted=("deleted", "sum"),
    )
    found = segments.join(counts, how="inner")
    found["recording"] = found.uri.map(name_of)
    found["length_s"] = found.end_s - found.start_s
    found["wrong"] = found.hypothesis_words - found.correct
    found["errors"] = found.wrong + found.deleted
    return found


def difference(reference: str, hypothesis: str, language: str | None) -> str:
    """Return HTML of a diff: deleted words struck out, inserted words underlined.

    Both texts are escaped.
    """
    sides = (units(normalized(text, language), language) for text in (reference, hypothesis))
    return " ".join(_shown(step) for step in align(*sides))


def _shown(step: Step) -> str:
    sides = (html.escape(" ".join(side)) for side in (step.reference, step.hypothesis))
    reference, hypothesis = sides
    if step.equal:
        return reference
    struck = f'<del style="{_STRUCK}">{reference}</del>' if reference else ""
    added = f'<ins style="{_ADDED}">{hypothesis}</ins>' if hypothesis else ""
    return f"{struck} {added}".strip()


def resampled_rates(counts: Sequence[Errors], *, seed: int = 0) -> np.ndarray:
    """Return the error rates of test sets drawn from this one with replacement."""
    errors = np.array([each.errors for each in counts])
    lengths = np.array([each.reference_length for each in counts])
    draws = np.random.default_rng(seed).integers(len(counts), size=(NUM_RESAMPLES, len(counts)))
    words = lengths[draws].sum(axis=1)
    return np.asarray(errors[draws].sum(axis=1)[words > 0] / words[words > 0])
