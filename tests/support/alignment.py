"""Answers to alignment jobs from openai-whisper's network, without caches and slots."""

from collections.abc import Generator, Iterable, Sequence
from typing import Any

import torch
import whisper
from whisper.model import disable_sdpa

from corpus_asr.decoding.protocols import AlignJob, AlignResult


def align(model: whisper.Whisper, job: AlignJob) -> AlignResult:
    """Run prompt and text at once, and keep the cross-attention of the job's heads."""
    scores: dict[int, torch.Tensor] = {}
    hooks = [
        block.cross_attn.register_forward_hook(
            lambda _, __, outputs, at=at: scores.__setitem__(at, outputs[-1][0])
        )
        for at, block in enumerate(model.decoder.blocks)
    ]
    tokens = torch.tensor(job.tokens)
    with torch.no_grad(), disable_sdpa():
        logits = model(torch.tensor(job.features).float()[None], tokens[None])[0]
    for hook in hooks:
        hook.remove()
    weights = torch.stack([scores[layer][head] for layer, head in job.heads]).softmax(dim=-1)
    logprobs = logits[:-1, : job.choices].log_softmax(dim=-1)
    known = tokens[1:].clamp(max=logprobs.shape[1] - 1)
    found = logprobs.gather(1, known[:, None])[:, 0]
    found[known != tokens[1:]] = -torch.inf
    return AlignResult(weights=weights.numpy(), logprobs=tuple(found.tolist()))


def align_with(model: whisper.Whisper, heads: Iterable[Sequence[int]]) -> None:
    """Let openai-whisper time words by these (layer, head) pairs."""
    mask = torch.zeros(model.dims.n_text_layer, model.dims.n_text_head, dtype=torch.bool)
    for layer, head in heads:
        mask[layer, head] = True
    model.register_buffer("alignment_heads", mask.to_sparse(), persistent=False)


def run(task: Generator[AlignJob, AlignResult, Any], model: whisper.Whisper) -> Any:
    """Drive a generator of alignment jobs to its end; returns what it returns."""
    try:
        job = next(task)
        while True:
            job = task.send(align(model, job))
    except StopIteration as stop:
        return stop.value
