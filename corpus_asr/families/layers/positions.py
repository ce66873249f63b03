"""Sinusoidal positions.

In: how many positions, how wide. Out: a fixed table. Knows no model and learns nothing.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

# Wavelengths run from 2 pi to 10,000 * 2 pi positions (Vaswani et al. 2017, section 3.5).
_LONGEST = 10_000.0


def sinusoids(length: int, width: int) -> Float[Tensor, "pos width"]:
    """Return sines in the first half of the width and cosines in the second.

    Raises:
        ValueError: `width` is odd or below 4, so there are no two halves of several waves.

    Source: whisper/model.py:62; equal to transformers' `sinusoids` exactly.
    """
    if width % 2 or width < 4:
        raise ValueError(f"sinusoidal positions of width {width}: expected an even number above 2")
    waves = width // 2
    step = math.log(_LONGEST) / (waves - 1)
    rates = torch.exp(-step * torch.arange(waves))
    angles = torch.arange(length).view(-1, 1) * rates.view(1, -1)  # (pos, wave)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
