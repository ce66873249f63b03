"""What is left to sample from: the settings of transformers beyond `top_k` and `top_p`.

Each takes the tokens so far and scores (1, vocab), divided by the temperature, and makes those that
may not be sampled minus infinity; the likeliest token always stays.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from corpus_asr.array_types import Bool, Float
from corpus_asr.decoding.options import keep_likeliest
from corpus_asr.decoding.protocols import LogitsProcessor
from corpus_asr.families.generation_config import GenerationConfig

_FORBIDDEN = float("-inf")
_MOST_WEIGHED = 100
"""Tokens among which `top_h` chooses, as in the reference."""

Scores = Float[Tensor, "1 vocab"]


def warpers_of(
    config: GenerationConfig, *, narrow: bool = False, kept: int = 1
) -> tuple[LogitsProcessor, ...]:
    """Return the warpers in the order of transformers; those of `top_k` and `top_p` if `narrow`.

    `kept` of the likeliest tokens always stay.
    """
    warpers: list[Any] = []
    if config.top_h is not None:
        warpers.append(partial(_top_h, share=_positive("top_h", config.top_h)))
    if narrow:
        warpers.append(partial(_narrow, config=config, kept=kept))
    if config.min_p is not None:
        warpers.append(partial(_min_p, share=config.min_p, kept=kept))
    if config.typical_p is not None and config.typical_p < 1:
        mass = _positive("typical_p", config.typical_p)
        warpers.append(partial(_typical, mass=mass, kept=kept))
    if config.epsilon_cutoff is not None and 0 < config.epsilon_cutoff < 1:
        warpers.append(partial(_epsilon, least=config.epsilon_cutoff, kept=kept))
    if config.eta_cutoff is not None and 0 < config.eta_cutoff < 1:
        warpers.append(partial(_eta, epsilon=config.eta_cutoff, kept=kept))
    return tuple(warpers)


def _positive(name: str, share: float) -> float:
    if not share > 0:
        raise ValueError(f"generating text: {name} is {share!r}, expected above 0 and at most 1")
    return share


def _narrow(tokens: Tensor, scores: Scores, *, config: GenerationConfig, kept: int) -> Scores:
    top_p = scores.new_tensor([1.0 if config.top_p is None else config.top_p])
    one = torch.ones_like(top_p)
    top_k = max(config.top_k, kept) if config.top_k else None
    narrowed = keep_likeliest(scores, temperatures=one, top_k=top_k, top_p=top_p)
    return _without(scores, narrowed.isneginf(), kept)


def _top_h(tokens: Tensor, scores: Scores, *, share: float) -> Scores:
    """Keep the likeliest tokens whose entropy together is at most a share of all."""
    best = scores.topk(min(_MOST_WEIGHED, scores.shape[1]), dim=1)
    logprobs = best.values.log_softmax(dim=1)
    terms = -(logprobs.exp() * logprobs).nan_to_num(0.0)
    kept = terms.cumsum(dim=1) <= share * terms.sum(dim=1, keepdim=True)
    removed = torch.ones_like(scores, dtype=torch.bool).scatter(1, best.indices, ~kept)
    return _without(scores, removed, 1)


def _min_p(tokens: Tensor, scores: Scores, *, share: float, kept: int) -> Scores:
    """Keep tokens that are at least so likely, compared with the likeliest."""
    probabilities = scores.softmax(dim=1)
    return _without(scores, probabilities < share * probabilities.amax(dim=1, keepdim=True), kept)


def _typical(tokens: Tensor, scores: Scores, *, mass: float, kept: int) -> Scores:
    """Keep the tokens whose surprise is nearest to the expected one, up to so much probability.

    Source: Meister et al. 2022, "Locally Typical Sampling", section 3.
    """
    logprobs = scores.log_softmax(dim=1)
    distance = (-logprobs - _entropy(logprobs)).abs()
    rising, order = distance.sort(dim=1)
    reached = logprobs.gather(1, order).exp().cumsum(dim=1)
    last = (reached < mass).sum(dim=1, keepdim=True).clamp(max=scores.shape[1] - 1)
    # The nearest stay, and not the likeliest, as in the reference.
    last = last.clamp(min=kept - 1)
    return scores.masked_fill(distance > rising.gather(1, last), _FORBIDDEN)


def _epsilon(tokens: Tensor, scores: Scores, *, least: float, kept: int) -> Scores:
    """Keep tokens of at least this probability."""
    return _without(scores, scores.softmax(dim=1) < least, kept)


def _eta(tokens: Tensor, scores: Scores, *, epsilon: float, kept: int) -> Scores:
    """Keep tokens of a probability that is lower where the distribution is flat.

    Source: Hewitt et al. 2022, "Truncation Sampling as Language Model Desmoothing", section 4.
    """
    logprobs = scores.log_softmax(dim=1)
    floor = scores.new_tensor(epsilon)
    least = torch.minimum(floor, floor.sqrt() * (-_entropy(logprobs)).exp())
    return _without(scores, logprobs.exp() < least, kept)


def _entropy(logprobs: Scores) -> Float[Tensor, "1 1"]:
    # Forbidden tokens have none.
    return -(logprobs.exp() * logprobs).nansum(dim=1, keepdim=True)


def _without(scores: Scores, removed: Bool[Tensor, "1 vocab"], kept: int) -> Scores:
    least = scores.topk(min(kept, scores.shape[1]), dim=1).values[:, -1:]
    return scores.masked_fill(removed & (scores < least), _FORBIDDEN)
