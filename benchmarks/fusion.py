"""Error rates of two runs, and of the texts that are chosen of both.

    python -m benchmarks.fusion --cache FOLDER --runs MODEL[+beams] MODEL[+beams]
        --data FOLDER... [--calibrate FOLDER...]

Each data folder holds recordings and a manifest.jsonl with their texts. They are transcribed with
word times, once: transcripts are kept below --cache. `+beams` searches with five beams. The
confidences of each run are fitted to its transcripts of --calibrate, which are not scored. The
oracle takes of both runs' phrases those with fewer errors, one after the other until none helps.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.calibration import Transcribed, transcribed
from corpus_asr.confidence import DEFAULT_MODEL, ConfidenceModel, with_confidence
from corpus_asr.config.run import Select
from corpus_asr.labelling.fusion import chosen, phrases, text_of
from corpus_asr.report.accuracy.calibration import fit, reliability
from corpus_asr.report.accuracy.scoring import Errors, Hypothesis, Reference, score, total
from corpus_asr.segments import Segment

Pair = tuple[Transcribed, Transcribed]


def main() -> None:
    arguments = _arguments()
    models = [_calibrated(run, arguments) for run in arguments.runs]
    every: list[Pair] = []
    print(f"set  recordings  words  {'  '.join(arguments.runs)}  best  fuse  oracle")
    for folder in arguments.data:
        sides = [
            [_confident(one, model) for one in _transcripts(run, [folder], arguments)]
            for run, model in zip(arguments.runs, models, strict=True)
        ]
        theirs = {(one.group, one.reference): one for one in sides[1]}
        pairs = [(one, theirs[one.group, one.reference]) for one in sides[0]]
        _print_line(folder.name, pairs)
        every += pairs
    _print_line("all", every)
    _print_confidences(every)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs=2, required=True)
    parser.add_argument("--data", nargs="+", required=True, type=Path)
    parser.add_argument("--calibrate", nargs="*", default=[], type=Path)
    parser.add_argument("--cache", required=True, type=Path)
    parser.add_argument("--threads", type=int, default=None)
    return parser.parse_args()


def _transcripts(
    run: str, folders: Sequence[Path], arguments: argparse.Namespace
) -> list[Transcribed]:
    model, _, kind = run.partition("+")
    return list(
        transcribed(Path(model), folders, arguments.cache, kind or "words", arguments.threads)
    )


def _calibrated(run: str, arguments: argparse.Namespace) -> ConfidenceModel:
    found = _transcripts(run, arguments.calibrate, arguments)
    return fit([each for one in found for each in one.outcomes()]) if found else DEFAULT_MODEL


def _confident(one: Transcribed, model: ConfidenceModel) -> Transcribed:
    return replace(one, segments=tuple(with_confidence(each, model) for each in one.segments))


def _print_line(name: str, pairs: Sequence[Pair]) -> None:
    columns = [
        [_errors(one, _text(one.segments)) for one, _ in pairs],
        [_errors(other, _text(other.segments)) for _, other in pairs],
        *([_errors(one, _text(_chosen(one, other, select))) for one, other in pairs]
          for select in ("best", "fuse")),
        [_oracle(*pair) for pair in pairs],
    ]  # fmt: skip
    rates = "  ".join(f"{100 * (total(each).rate or 0.0):.2f}" for each in columns)
    print(f"{name}  {len(pairs)}  {total(columns[0]).reference_length}  {rates}", flush=True)


def _chosen(one: Transcribed, other: Transcribed, select: Select) -> list[Segment]:
    choices = chosen(one.segments, other.segments, select, one.language)
    return [choice.segment for choice in choices]


def _text(segments: Sequence[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def _errors(one: Transcribed, text: str) -> Errors:
    reference = Reference(uri=one.group, text=one.reference, language=one.language)
    return score(reference, Hypothesis(text=text, language=one.language, duration_s=0.0)).words


def _oracle(one: Transcribed, other: Transcribed) -> Errors:
    found = [
        [text_of(tokens, one.language) for tokens in (phrase.own, phrase.other)]
        for phrase in phrases(one.segments, other.segments, one.language)
    ]

    def errors(sides: Sequence[int]) -> Errors:
        return _errors(one, "".join(texts[side] for texts, side in zip(found, sides, strict=True)))

    every = []
    for first in (0, 1):
        sides = [first] * len(found)
        least, before = errors(sides), None
        while before != least:
            before = least
            for at, (own, others) in enumerate(found):
                if own.split() == others.split():
                    continue
                sides[at] ^= 1
                if (trial := errors(sides)).errors < least.errors:
                    least = trial
                else:
                    sides[at] ^= 1
        every.append(least)
    return min(every, key=lambda each: each.errors)


def _print_confidences(pairs: Sequence[Pair]) -> None:
    """Show which share of words is right by the confidence of their segment."""
    for select in ("own", "best", "fuse"):
        outcomes = [
            outcome
            for one, other in pairs
            for outcome in replace(one, segments=tuple(_chosen(one, other, select))).outcomes()
        ]
        found = reliability(outcomes, [each.confidence for each in outcomes])
        claimed = sum(band.confidence * band.words for band in found.bands) / found.words
        print(f"{select}: {found.words} words, {found.right:.3f} right, {claimed:.3f} claimed, "
              f"ECE {found.ece:.3f}, Brier {found.brier:.3f}, AUC {found.auc:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
