"""How much of each piece of a transcript another text of the same recording contradicts.

In: the words of each segment, and all words of the other text, which has no times. Out: errors by
segment. Both are aligned as wholes, so neither has to be cut where the other is. Knows nothing of
what the words mean.
"""

from collections.abc import Sequence

import numpy as np

from corpus_asr.report.accuracy.scoring import Errors, aligned


def errors_by_piece(pieces: Sequence[Sequence[str]], said: Sequence[str]) -> list[Errors]:
    """Return the errors of each piece, taking the other text for what was said.

    What was said between two pieces and is in neither counts against both: either may be the one
    that lacks it, and audio that reaches from one into the other holds it.

    Raises:
        ConfigError: jiwer is not installed.
    """
    found = [word for piece in pieces for word in piece]
    piece_of_word = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    hits, substitutions, deletions, insertions = (
        np.zeros(len(pieces), dtype=np.int64) for _ in range(4)
    )
    if found and not said:
        np.add.at(insertions, piece_of_word, 1)
    elif found:
        for chunk in aligned(said, found).alignments[0]:
            theirs = piece_of_word[chunk.hyp_start_idx : chunk.hyp_end_idx]
            if chunk.type == "delete":
                beside = piece_of_word[max(0, chunk.hyp_start_idx - 1) : chunk.hyp_start_idx + 1]
                deletions[np.unique(beside)] += chunk.ref_end_idx - chunk.ref_start_idx
            elif chunk.type == "insert":
                np.add.at(insertions, theirs, 1)
            else:
                np.add.at(hits if chunk.type == "equal" else substitutions, theirs, 1)
    counts = zip(hits, substitutions, deletions, insertions, strict=True)
    return [Errors(*map(int, each)) for each in counts]


def rate(errors: Errors) -> float:
    """Return errors per word said; where nothing was said, 1 for any error."""
    return float(errors.errors > 0) if errors.rate is None else errors.rate
