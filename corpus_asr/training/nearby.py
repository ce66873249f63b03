"""Attention that looks nearby from the first step on: weights of an encoder in, changed ones out.

Positions of Whisper's encoder are waves, sines in the first half of its channels and cosines in
the second. Queries and keys that read the same waves meet where positions are near each other, and
keys that turn them meet at a distance: a head begins as a window around a place ahead or behind.
Networks that start from nothing otherwise take long to find out which frames are neighbours. In the
spirit of Trockman and Kolter 2023 (mimetic initialisation). Knows no training.
"""

import math
from typing import Any

import torch
from torch import Tensor

from corpus_asr.models.whisper.encoder import WhisperEncoder

_LONGEST_WAVE = 10_000.0  # of the slowest wave, as positions of the encoder have it
_OCTAVES = 3  # of waves that one head reads
_WIDTH = 8  # positions of the narrowest window
_SHARP = 1.4
_KEPT = 0.3  # of the weights drawn before, beside the waves
_FREE_HEADS = 1  # of each layer: they find their own use


def look_nearby(encoder: WhisperEncoder) -> None:
    """Let heads of each layer start with windows around several places, further off in higher ones.

    Layer by layer, heads look at 0, -s, +s, -2s, +2s ... positions from their own, where s is 2, 4,
    6 and so on.
    """
    for number, layer in enumerate(encoder.layers):
        attention: Any = layer.self_attn
        width = attention.q_proj.in_features
        heads = encoder.config.encoder_attention_heads
        size = width // heads
        for head in range(heads - _FREE_HEADS):
            steps = (head + 1) // 2 * (-1 if head % 2 else 1)
            asked, told = _meeting(steps * 2 * (number + 1), size=size, width=width)
            rows = slice(head * size, (head + 1) * size)
            with torch.no_grad():
                for product, waves in ((attention.q_proj, asked), (attention.k_proj, told)):
                    product.weight[rows] = _KEPT * product.weight[rows] + waves


def _meeting(offset: int, *, size: int, width: int) -> tuple[Tensor, Tensor]:
    """Return weights of queries and keys that meet `offset` positions apart, (size, width) each."""
    half = width // 2
    speeds = [_LONGEST_WAVE ** (-channel / (half - 1)) for channel in range(half)]
    slowest = 1 / (_WIDTH + abs(offset))
    near = [c for c in range(half) if slowest < speeds[c] < slowest * 2**_OCTAVES]
    pairs = min(size // 2, len(near))
    asked, told = torch.zeros(size, width), torch.zeros(size, width)
    for row in range(pairs):
        sine = near[row * len(near) // pairs]
        cosine = sine + half
        turned = offset * speeds[sine]
        asked[2 * row, sine] = asked[2 * row + 1, cosine] = 1.0
        told[2 * row, sine] = told[2 * row + 1, cosine] = math.cos(turned)
        told[2 * row, cosine], told[2 * row + 1, sine] = -math.sin(turned), math.sin(turned)
    scale = _SHARP * math.sqrt(size / 2 / max(1, pairs))
    return asked * scale, told * scale
