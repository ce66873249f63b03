"""Speech2Text's positions: sinusoids counted over what is no padding.

In: what is padding and what is not. Out: a row of the table for each place. Knows no tokens and no
features; nothing of it is stored in checkpoints, and it has no greatest length.

Source: transformers/models/speech_to_text/modeling_speech_to_text.py, which follows fairseq's
`SinusoidalPositionalEmbedding`; equal to it exactly.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from corpus_asr.families.layers.positions import sinusoids


class Speech2TextPositions(nn.Module):
    """Counts from `padding_row` + 1 on; that row stands for padding, and holds zeros.

    Args:
        width: of the rows; an odd one ends in a zero.
        padding_row: the id of the padding token.
    """

    def __init__(self, width: int, padding_row: int) -> None:
        super().__init__()
        self.width = width
        self.padding_row = padding_row
        self._table: Tensor | None = None

    def forward(
        self,
        counted: Bool[Tensor, "batch pos"],
        *,
        start: int = 0,
        like: Tensor,
    ) -> Float[Tensor, "batch pos width"]:
        """Return a row for each place.

        Args:
            counted: places that are no padding.
            start: how many places were before these, all counted.
            like: has the type and the device of what is returned.
        """
        places = (counted.cumsum(dim=1) + start) * counted + self.padding_row
        return self.rows(start + counted.shape[1], like=like)[places]

    def rows(self, length: int, *, like: Tensor) -> Float[Tensor, "row width"]:
        """Return the table, long enough for `length` places.

        A place that is no padding, counted from 0, has the row `padding_row` + 1 + place.
        """
        needed = self.padding_row + 1 + length
        table = self._table
        alike = table is not None and (table.dtype, table.device) == (like.dtype, like.device)
        if table is None or not alike or len(table) < needed:
            # Twice as long each time: a transcript grows by one token at a time.
            table = self._made(max(needed, 2 * len(table) if table is not None else 0))
            table = self._table = table.to(like.device, like.dtype)
        return table

    @torch.no_grad()
    def _made(self, rows: int) -> Tensor:
        even = self.width - self.width % 2
        table = torch.nn.functional.pad(sinusoids(rows, even), (0, self.width - even))
        table[self.padding_row] = 0.0
        return table
