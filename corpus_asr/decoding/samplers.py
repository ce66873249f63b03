"""Choosing the next token: noise is a pure function of (seed, position, token).

So a choice never depends on a slot's neighbours, the batch size or the device.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_NOISE_BITS = 23  # plus one half stays exact in float32, so that 1.0 is never reached


def choose(
    logits: Float[Tensor, "slot vocab"],
    *,
    temperatures: Float[Tensor, " slot"],
    seeds: Int[Tensor, " slot"],
    positions: Int[Tensor, " slot"],
) -> Int[Tensor, " slot"]:
    """Take the likeliest token, or sample from softmax(logits / temperature) where it is above 0.

    Sampling is the maximum of logits plus Gumbel noise, which needs no normalised distribution.

    Source: Maddison et al. 2014, "A* Sampling", section 2.
    """
    noise = gumbel_noise(seeds, positions, logits.shape[1])
    # At temperature 0 the noise is multiplied away; forbidden tokens stay at minus infinity.
    return (logits + temperatures.unsqueeze(1) * noise).argmax(dim=1)


def keep_likeliest(
    logits: Float[Tensor, "slot vocab"],
    *,
    temperatures: Float[Tensor, " slot"],
    top_k: int | None,
    top_p: Float[Tensor, " slot"],
) -> Float[Tensor, "slot vocab"]:
    """Forbid all but the likeliest tokens; those as likely as the last one kept are kept too.

    Source: Fan et al. 2018, section 5.1; Holtzman et al. 2020, section 3.1. Equal to
    `transformers`' TopKLogitsWarper, then TopPLogitsWarper (tests/decoding/test_samplers.py).
    """
    scaled = logits / temperatures.unsqueeze(1)
    if top_k is None or top_k >= scaled.shape[1]:
        rising = scaled.sort(dim=1).values
    else:
        rising = scaled.topk(top_k, dim=1).values.flip(1)
    # What lies at or below a token, with it, is what would be lost by leaving it out.
    lost = rising.softmax(dim=1).cumsum(dim=1)
    kept = (lost > 1 - top_p.unsqueeze(1)) | (top_p == 1).unsqueeze(1)
    kept[:, -1] = True
    lowest = rising.masked_fill(~kept, float("inf")).amin(dim=1, keepdim=True)
    return logits.masked_fill(scaled < lowest, float("-inf"))


def gumbel_noise(
    seeds: Int[Tensor, " slot"], positions: Int[Tensor, " slot"], vocab_size: int
) -> Float[Tensor, "slot vocab"]:
    """Standard Gumbel noise, equal for equal (seed, position, token) everywhere."""
    stream = _mix(seeds + _mix(positions + 1)).unsqueeze(1)
    bits = _mix(stream + torch.arange(vocab_size, device=seeds.device))  # (slot, vocab)
    uniform = (_shift(bits, 64 - _NOISE_BITS).float() + 0.5) / (1 << _NOISE_BITS)
    return -torch.log(-torch.log(uniform))


def _mix(values: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Scramble 64-bit integers. Source: Steele et al. 2014, SplitMix64's finaliser."""
    values = values * -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
    values = (values ^ _shift(values, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    values = (values ^ _shift(values, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return values ^ _shift(values, 31)


def _shift(values: Int[Tensor, "*shape"], bits: int) -> Int[Tensor, "*shape"]:
    """Shift right filling with zeros, which torch's signed shift does not."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
