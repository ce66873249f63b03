"""A classifier as a model of one word: so windows of many recordings share its batches.

In: log-mel windows. Out: one token each, the class, with the scores of all. It meets
`decoding.protocols.SlotModel`, and whatever batches, halves and counts there is true of it. Knows
no names of classes and no search.
"""

from collections.abc import Sequence
from os import PathLike
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corpus_asr.families.layers.side_by_side import run_side_by_side
from corpus_asr.families.whisper.classifier import WhisperForAudioClassification

_TOKENS = 2  # a prompt of one, and the class


class _Trained(WhisperForAudioClassification):
    """One whose head must have been stored: a drawn one would give labels at random."""

    _fresh: ClassVar[tuple[str, ...]] = ()


class WhisperClassifierSlots:
    """A `WhisperForAudioClassification` that says a window's class after any prompt of one token.

    Tokens 0 to n - 1 are the classes; n, which is never likely, is the end that rules ask for.
    What a slot keeps of its window are the classes' scores, in float32 whatever the weights are.
    """

    dtype = torch.float32
    """Of the scores."""
    max_target_positions = _TOKENS

    def __init__(self, model: WhisperForAudioClassification) -> None:
        self._model = model
        self._weights_dtype = next(model.parameters()).dtype
        self.device = next(model.parameters()).device
        self.num_labels = int(model.config.num_labels)
        self.vocab_size = self.num_labels + 1

    @classmethod
    def from_pretrained(
        cls, folder: str | PathLike[str], *, dtype: torch.dtype, device: torch.device
    ) -> "WhisperClassifierSlots":
        """Load a checkpoint folder.

        Raises:
            CheckpointError: it cannot be loaded, or has no head of a classifier.
        """
        return cls(_Trained.from_pretrained(folder, dtype=dtype, device=device))

    def new_state(self, slots: int, *, beams: int = 1) -> Float[Tensor, "slot label"]:
        """Allocate the scores of `slots` windows."""
        return torch.zeros(slots, self.num_labels, device=self.device)

    @torch.inference_mode()
    def encode(
        self,
        features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch 1 label"]:
        """Score the classes of whole windows.

        Raises:
            ValueError: the features are no whole windows, or only a part is to be heard: the mean
                over a window is what the classifier was trained on.
        """
        if num_frames is not None:
            raise ValueError(
                f"classifying {len(features)} windows: found parts of them to be heard, expected "
                "whole windows; leave num_frames out"
            )
        features = features.to(self.device, self._weights_dtype)
        if self.device.type != "cpu":
            return self._scores(features)
        # One per thread, which also makes each independent of the others to the last bit.
        return torch.cat(run_side_by_side(self._scores, [row.unsqueeze(0) for row in features]))

    def fill(
        self,
        state: Float[Tensor, "slot label"],
        slots: Sequence[int],
        encoded: Float[Tensor, "batch 1 label"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> None:
        """Keep the scores of windows in `slots`."""
        state[list(slots)] = encoded[:, 0]

    def prefill(
        self,
        state: Float[Tensor, "slot label"],
        slots: Sequence[int],
        tokens: Int[Tensor, "batch token"],
        lengths: Sequence[int],
    ) -> Float[Tensor, "batch token label"]:
        """Return the scores of `slots`, after whatever prompt."""
        return state[list(slots)].unsqueeze(1).expand(-1, tokens.shape[1], -1)

    def step(
        self,
        state: Float[Tensor, "slot label"],
        tokens: Int[Tensor, " batch"],
        positions: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch vocab"]:
        """Say the same again: only what was said first is read."""
        return self.logits(state[: len(tokens)])

    def extend(
        self,
        state: Float[Tensor, "slot label"],
        slots: Sequence[int],
        tokens: Int[Tensor, "batch token"],
        positions: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch token vocab"]:
        """Say the same after each of several tokens."""
        return self.logits(self.prefill(state, slots, tokens, [tokens.shape[1]] * len(tokens)))

    def align(
        self,
        state: Float[Tensor, "slot label"],
        slot: int,
        tokens: Int[Tensor, " token"],
        heads: Sequence[tuple[int, int]],
    ) -> tuple[Float[Tensor, "head token pos"], Float[Tensor, "token vocab"]]:
        """Refuse: there is no decoder that looks at the window.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"aligning {len(tokens)} tokens with a classifier: it says one class of a whole window "
            "and attends to no place in it; align with a checkpoint that transcribes"
        )

    def reorder(
        self,
        state: Float[Tensor, "slot label"],
        slots: Sequence[int],
        sources: Int[Tensor, " slot"],
    ) -> None:
        """Do nothing: what was said before changes nothing."""

    def share(
        self, state: Float[Tensor, "slot label"], source: int, targets: Sequence[int]
    ) -> None:
        """Give `targets` the window of `source`."""
        state[list(targets)] = state[source]

    def logits(self, hidden: Float[Tensor, "*batch label"]) -> Float[Tensor, "*batch vocab"]:
        """Add the end to the classes."""
        return torch.cat([hidden, hidden.new_full((*hidden.shape[:-1], 1), -torch.inf)], dim=-1)

    def move(self, state: Float[Tensor, "slot label"], source: int, target: int) -> None:
        """Copy what slot `source` holds into slot `target`."""
        state[target] = state[source]

    def _scores(self, features: Float[Tensor, "batch mel frame"]) -> Float[Tensor, "batch 1 label"]:
        scores: Tensor = self._model(features, return_dict=True).logits
        return scores.float().unsqueeze(1)
