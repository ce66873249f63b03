"""Texts of `generate` as the tensors of a batch: prompt, text, end token, padding.

In: the texts of all rows. Out: what transformers returns for them, in its types. Knows no audio.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corpus_asr.decoding.protocols import WindowResult
from corpus_asr.families.outputs import ModelOutput
from corpus_asr.models.generation.call import CallSettings
from corpus_asr.models.generation.outputs import (
    GenerateBeamEncoderDecoderOutput,
    GenerateEncoderDecoderOutput,
    filled_steps,
    stacked,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One text that search found."""

    prompt: tuple[int, ...]
    said: tuple[int, ...]
    """New tokens, the end token included where it was said."""
    result: WindowResult

    @classmethod
    def of(cls, prompt: tuple[int, ...], result: WindowResult, *, end: int) -> Self:
        """Put the end token back where it was said."""
        ending = () if result.end_logprob is None else (end,)
        return cls(prompt=prompt, said=(*result.tokens, *ending), result=result)


def as_sequences(texts: Sequence[Text], *, pad: int) -> Int[Tensor, "batch token"]:
    """Stack texts, prompts included, padded at the end."""
    return stacked([torch.tensor([*text.prompt, *text.said]) for text in texts], pad)


def as_output(texts: Sequence[Text], settings: CallSettings, device: Any) -> ModelOutput:
    """Return everything that was found, by name."""
    found: dict[str, Any] = {"sequences": as_sequences(texts, pad=settings.pad).to(device)}
    longest = max(len(text.said) for text in texts)
    again = settings.config.renormalize_logits and settings.config.do_sample
    if settings.keep_scores:
        kept = [text.result.scores for text in texts]
        # What is sampled is normalised once more there, after temperature and `top_k`.
        scores = [one.log_softmax(-1) if again and one is not None else one for one in kept]
        found["scores"] = _by_step(scores, longest, settings.pad, device)
    if settings.keep_logits:
        logits = [text.result.logits for text in texts]
        found["logits"] = _by_step(logits, longest, settings.pad, device)
    if texts[0].result.sequence_score is None:
        return GenerateEncoderDecoderOutput(**found)
    if settings.keep_scores:
        of_beams = [text.result.sequence_score or 0.0 for text in texts]
        found["sequences_scores"] = torch.tensor(of_beams, device=device)
    return GenerateBeamEncoderDecoderOutput(**found)


def _by_step(
    kept: Sequence[Float[Tensor, "_ vocab"] | None], longest: int, pad: int, device: Any
) -> tuple[Float[Tensor, "batch vocab"], ...]:
    """Turn what was kept of each text into one tensor for each step."""
    rows = [filled_steps(list(one.cpu()), longest, pad) for one in kept if one is not None]
    return tuple(torch.stack(step).to(device) for step in zip(*rows, strict=True))
