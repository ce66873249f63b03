"""Results of beam search, of sequences that have been read to the host.

In: what `Beams` held of one place. Out: the best sequence, and beside it the next best. Knows no
model and no device.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from corpus_asr.decoding.protocols import WindowJob, WindowResult


def result_of(
    found: Sequence[Tensor],
    job: WindowJob,
    *,
    token_score: float | None,
    scores: Tensor | None,
    logits: Tensor | None,
) -> WindowResult:
    """Make a result of the finished sequences of one window, best first.

    Args:
        found: the tensors of `Beams`, in their order, without the axis of places.
        job: what was asked for.
        token_score: probability of its `score_token`.
        scores: kept of each beam and token, where asked for: (beam, token, vocab).
        logits: likewise.
    """
    score, length, text, logprob, parent, looped = found
    results = []
    for beam in range(job.search.num_return_sequences):
        new = slice(len(job.prompt), int(length[beam]))
        tokens: list[int] = text[beam, new].tolist()
        logprobs: list[float] = logprob[beam, new].tolist()
        # What a token was chosen from is what the beam saw that it was appended to.
        parents = parent[beam, new]
        steps = torch.arange(len(parents))
        end_logprob = logprobs.pop() if tokens and tokens[-1] == job.rules.end else None
        results.append(
            WindowResult(
                tokens=tuple(tokens[: len(logprobs)]),
                logprobs=tuple(logprobs),
                end_logprob=end_logprob,
                score=token_score,
                looped=bool(looped[beam]),
                scores=None if scores is None else scores[parents, steps],
                logits=None if logits is None else logits[parents, steps],
                sequence_score=float(score[beam]),
            )
        )
    return replace(results[0], others=tuple(results[1:]))
