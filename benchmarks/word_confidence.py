"""The curve from probabilities to confidences of words, `WHISPER_WORDS`, fitted to runs again.

    python -m benchmarks.word_confidence OUTPUT... --references MANIFEST

Runs of Whisper, with word timestamps, of the recordings of one manifest of references.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from corpus_asr.confidence import WHISPER_WORDS, WordEvidence, WordModel, word_features
from corpus_asr.export.recordings import WORD_COLUMNS
from corpus_asr.pipelines.evaluate import compared
from corpus_asr.report.calibration import fitted, word_outcomes
from corpus_asr.report.scoring import normalized, units
from corpus_asr.segments import Segment
from corpus_asr.storage.run_state.run_files import open_run


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedWordOutcome:
    """A word with times, compared with its reference."""

    evidence: WordEvidence
    right: bool


def timed_word_outcomes(
    segments: Sequence[Segment], reference: str, language: str | None
) -> list[TimedWordOutcome]:
    """Compare the words of a recording's segments with its reference.

    A word is right if all normalized units that it spells are; words without units are omitted.
    """
    outcomes = []
    rights, _ = word_outcomes([segment.text for segment in segments], reference, language)
    for segment, right in zip(segments, rights, strict=True):
        words = segment.words or ()
        spelled = [units(normalized(word.word, language), language) for word in words]
        text_units = units(normalized(segment.text, language), language)
        for word, marks in zip(words, _marks(spelled, text_units, right), strict=True):
            evidence = WordEvidence(
                probability=word.probability, segment_confidence=segment.confidence
            )
            if marks:
                outcomes.append(TimedWordOutcome(evidence=evidence, right=all(marks)))
    return outcomes


def _marks(
    spelled: Sequence[Sequence[str]], text_units: Sequence[str], right: Sequence[bool]
) -> list[list[bool]]:
    """Return which units of each word are right, given those of the whole text."""
    marks: list[list[bool]] = [[] for _ in spelled]
    owners = [index for index, word in enumerate(spelled) for _ in word]
    units_of_words = [unit for word in spelled for unit in word]
    # A text is not normalized word by word: numbers are joined, and brackets are removed.
    matcher = SequenceMatcher(None, text_units, units_of_words, autojunk=False)
    for tag, first, stop, begin, end in matcher.get_opcodes():
        values, members = list(right[first:stop]), owners[begin:end]
        if tag == "replace":
            values = [all(values)] * len(members)
        for owner, value in zip(members, values, strict=False):
            marks[owner].append(value)
    return marks


def fit_words(outcomes: Sequence[TimedWordOutcome], start: WordModel = WHISPER_WORDS) -> WordModel:
    """Fit a logistic regression to whether words are right, as `fit` does for segments."""
    return fitted(
        start,
        [word_features(outcome.evidence) for outcome in outcomes],
        right=[outcome.right for outcome in outcomes],
        words=[1] * len(outcomes),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the curve of the given runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("outputs", nargs="+")
    parser.add_argument("--references", required=True)
    parser.add_argument("--language")
    chosen = parser.parse_args(arguments)
    outcomes: list[TimedWordOutcome] = []
    for output in chosen.outputs:
        pairs = compared(
            open_run(output), chosen.references, language=chosen.language, columns=WORD_COLUMNS
        )
        for recording, reference in pairs:
            outcomes += timed_word_outcomes(recording.segments, reference.text, reference.language)
    wrong = sum(not outcome.right for outcome in outcomes)
    print(f"{len(outcomes):,} words, {wrong:,} wrong: {fit_words(outcomes)}")


if __name__ == "__main__":
    main()
