"""Many channels to the rows asked for, without losing what only one channel says.

In: blocks of finite float32 samples, one row per channel, all blocks of one stretch of audio having
the same channels. Out: blocks of the same length with one row per row asked for. Knows nothing of
files, codecs or sample rates. The result depends on the blocks' limits, so callers cut blocks by
count, never by how the bytes happened to arrive.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32

Channels = Literal["mix", "each"] | int
"""`mix`: one row for all channels; `each`: one row per channel; a number: that channel, from 0."""

Block = Float32[np.ndarray, "channel sample"]
Rows = Float32[np.ndarray, "row sample"]
RowMaker = Callable[[Block], Rows]

# Share of a loudspeaker in mono, as libswresample folds layouts down. Dialogue sits in the centre.
_FRONT = 0.5**0.5
_MONO_SHARES = {
    "FC": 1.0,
    **dict.fromkeys(("FL", "FR", "FLC", "FRC", "DL", "DR", "WL", "WR"), _FRONT),
    **dict.fromkeys(("BL", "BR", "BC", "SL", "SR"), 0.5),
    "LFE": 0.0,
    "LFE2": 0.0,
}

# The mix counts as cancelled when it is 30 dB below what unrelated channels would add up to, and
# as healthy again at 20 dB: two limits, so that a borderline recording does not flip every block.
_CANCELLED = 10.0 ** (-30 / 10)
_HEALTHY = 10.0 ** (-20 / 10)
# While cancelled, stay on the chosen channel unless another is 6 dB louder: antiphase channels
# differ in sign, and each change of channel would be a click.
_STAY = 10.0 ** (-6 / 10)


def mono_shares(names: Sequence[str]) -> Float32[np.ndarray, " channel"]:
    """Give each channel's share of the mono mix; the shares add up to one, so nothing clips.

    Args:
        names: the loudspeaker names of libav's channel layouts; unknown names share equally.

    Source: `build_matrix` of FFmpeg's libswresample/rematrix.c, mono output, normalised.
    """
    known = all(name in _MONO_SHARES for name in names)
    shares = np.array([_MONO_SHARES[name] if known else 1.0 for name in names], dtype=np.float32)
    if not shares.any():  # a lone subwoofer is still all there is to hear
        shares[:] = 1.0
    total: np.float32 = shares.sum()
    normalised: Float32[np.ndarray, " channel"] = shares / total
    return normalised


class MonoMixer:
    """Mix blocks to one row; where the channels cancel each other, take the loudest instead."""

    def __init__(self, names: Sequence[str]) -> None:
        self._shares = mono_shares(names)
        self._chosen: int | None = None  # the channel standing in for a cancelled mix

    def __call__(self, block: Block) -> Rows:
        """Mix one block, in order."""
        if len(block) == 1:
            return block
        mix: Float32[np.ndarray, " sample"] = self._shares @ block  # (sample,)
        powers = np.array([_power(row) for row in block]) * self._shares.astype(np.float64) ** 2
        limit = _CANCELLED if self._chosen is None else _HEALTHY
        if not _power(mix) < limit * powers.sum():
            self._chosen = None
            return mix[np.newaxis]
        if self._chosen is None or powers[self._chosen] < _STAY * powers.max():
            self._chosen = int(powers.argmax())
        return block[self._chosen : self._chosen + 1]


class OneChannel:
    """Take one channel; a stretch of audio that lacks it is mixed, so that nothing is lost."""

    def __init__(self, index: int, names: Sequence[str]) -> None:
        self._rows: RowMaker = MonoMixer(names)
        if index < len(names):
            self._rows = lambda block: block[index : index + 1]

    def __call__(self, block: Block) -> Rows:
        """Take the channel's row of one block."""
        return self._rows(block)


class EachChannel:
    """Keep every channel in its row, with as many rows as the recording began with.

    A later stretch may have other channels: missing ones are silent, and those beyond the last row
    are mixed into it.
    """

    def __init__(self, num_rows: int, names: Sequence[str]) -> None:
        self._num_rows = num_rows
        self._rest = MonoMixer(names[num_rows - 1 :]) if len(names) > num_rows else None

    def __call__(self, block: Block) -> Rows:
        """Arrange one block's channels in rows."""
        if len(block) == self._num_rows:
            return block
        if self._rest is not None:
            kept = block[: self._num_rows - 1]
            return np.concatenate([kept, self._rest(block[self._num_rows - 1 :])])
        missing = np.zeros((self._num_rows - len(block), block.shape[1]), dtype=np.float32)
        return np.concatenate([block, missing])


def row_maker(channels: Channels, names: Sequence[str], *, num_rows: int) -> RowMaker:
    """Choose how blocks with these channels become the rows asked for."""
    if channels == "mix":
        return MonoMixer(names)
    if channels == "each":
        return EachChannel(num_rows, names)
    return OneChannel(channels, names)


def _power(row: Float32[np.ndarray, " sample"]) -> float:
    """Mean square about the mean: a constant offset is nothing to hear."""
    if not row.size:
        return 0.0
    mean = float(row.mean(dtype=np.float64))
    with np.errstate(over="ignore", invalid="ignore"):
        return max(0.0, float(row @ row) / row.size - mean * mean)
