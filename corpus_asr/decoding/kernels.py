"""Triton kernels for a GPU; each has a plain equal in torch, which is used where it cannot be had.

A kernel is compared with its equal at its first use in a process: one that cannot be compiled, or
gives something else, is never used again. None has run on a GPU yet; Triton's interpreter runs them
in tests.
"""

import importlib.util
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from corpus_asr.array_types import Float

logger = logging.getLogger(__name__)

# Builds of torch for CUDA come with Triton; elsewhere importing it would be in vain.
_IS_OF_USE = torch.version.cuda is not None or os.environ.get("TRITON_INTERPRET") == "1"
_HAS_TRITON = _IS_OF_USE and importlib.util.find_spec("triton") is not None
# A block has the token indices of one window; a decoder holds no more.
_MOST_TOKENS = 1024


class Checked:
    """A kernel that fills its last argument, and the plain function that does the same."""

    def __init__(self, kernel: Callable[..., None], plain: Callable[..., None]) -> None:
        self._kernel = kernel
        self._plain = plain
        self._right: bool | None = None if _HAS_TRITON else False

    def __call__(self, *arguments: Tensor) -> None:
        """Fill the last argument."""
        if self._right is None:
            self._right = self._is_right(*arguments)
        (self._kernel if self._right else self._plain)(*arguments)

    def _is_right(self, *arguments: Tensor) -> bool:
        name = self._kernel.__name__
        *given, filled = arguments
        expected = filled.clone()
        self._plain(*given, expected)
        try:
            found = filled.clone()
            self._kernel(*given, found)
            right = torch.equal(found, expected)
        except Exception as error:  # whatever a compiler or a driver may raise
            logger.warning("trying the Triton kernel %s: %r; continuing without", name, error)
            return False
        if not right:
            logger.warning(
                "trying the Triton kernel %s: its result differs; continuing without", name
            )
        return right


if _HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def _diagonals(  # type: ignore[no-untyped-def]
        costs,
        sums,
        diagonals,
        stride,
        width,
        BLOCK: tl.constexpr,  # noqa: N803
    ):
        # One program per window, as no two windows meet.
        token = tl.program_id(0) * width + tl.arange(0, BLOCK) + 1
        inside = tl.arange(0, BLOCK) + 1 < width
        infinite = float("inf")
        for diagonal in range(2, diagonals):
            before = sums + (diagonal - 2) * stride + token
            last = sums + (diagonal - 1) * stride + token
            both = tl.load(before - 1, mask=inside, other=infinite)
            text = tl.load(last - 1, mask=inside, other=infinite)
            along = tl.load(last, mask=inside, other=infinite)
            here = tl.load(costs + diagonal * stride + token, mask=inside, other=infinite)
            cheapest = tl.where(both == text, infinite, tl.minimum(both, text))
            cheapest = tl.minimum(cheapest, along) + here
            tl.store(sums + diagonal * stride + token, cheapest, mask=inside)
            # Other threads of the block read it in the next round.
            tl.debug_barrier()


def sum_diagonals(
    costs: Float[Tensor, "diagonal batch token_1"], sums: Float[Tensor, "diagonal batch token_1"]
) -> None:
    """Add up the cheapest ways in one launch, in place; see `alignment`."""
    diagonals, batch, width = costs.shape
    if width > _MOST_TOKENS:
        raise ValueError(f"aligning {width - 1} tokens: a block has {_MOST_TOKENS}; align fewer")
    launch: Any = _diagonals[(batch,)]
    launch(costs, sums, diagonals, batch * width, width, BLOCK=triton.next_power_of_2(width))
