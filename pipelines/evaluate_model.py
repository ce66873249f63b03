"""Compare a run with references: python pipelines/evaluate_model.py OUTPUT_URI MANIFEST."""

import sys

from corpus_asr.cli.failures import script
from corpus_asr.pipelines.evaluate import evaluate
from corpus_asr.report.evaluation import render


def main(output_uri: str, references: str) -> None:
    """Read both, align the texts, and print error rates."""
    print(render(evaluate(output_uri, references)))


if __name__ == "__main__":
    with script():
        main(*sys.argv[1:])
