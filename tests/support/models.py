"""A network that says what it is told to, to test search and scheduling without weights."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

VOCAB = 50
END = 0
LENGTH = 24


class ScriptedModel:
    """Says the script its window names, token by token, whatever the slot.

    A window's first value is the number of its script. Hidden states carry (script, position), so
    that the token to say is found from them alone, as in a real decoder.
    """

    device = torch.device("cpu")
    dtype = torch.float32
    vocab_size = VOCAB
    max_target_positions = LENGTH

    def __init__(self, scripts: Sequence[Sequence[int]]) -> None:
        self.scripts = [list(script) for script in scripts]
        self.encoded: list[int] = []
        self.aligned: list[tuple[int, tuple[tuple[int, int], ...]]] = []
        self.steps: list[int] = []

    def new_state(self, slots: int, *, beams: int = 1) -> dict[str, Tensor]:
        return {"script": torch.full((slots,), -1), "prompt": torch.zeros(slots, dtype=torch.long)}

    def encode(self, features: Tensor, *, num_frames: Sequence[int] | None = None) -> Tensor:
        numbers = features[:, 0, 0]
        self.encoded.extend(int(number) for number in numbers)
        return numbers.reshape(-1, 1, 1)

    def fill(
        self,
        state: dict[str, Tensor],
        slots: Sequence[int],
        encoded: Tensor,
        *,
        num_frames: Sequence[int] | None = None,
    ) -> None:
        state["script"][list(slots)] = encoded[:, 0, 0].long()

    def prefill(
        self, state: dict[str, Tensor], slots: Sequence[int], tokens: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        state["prompt"][list(slots)] = torch.tensor(lengths)
        script = state["script"][list(slots)]
        position = torch.arange(tokens.shape[1]).expand(len(lengths), -1)
        said = position - torch.tensor(lengths).unsqueeze(1) + 1
        return torch.stack([script.unsqueeze(1).expand_as(said), said], dim=2).float()

    def step(self, state: dict[str, Tensor], tokens: Tensor, positions: Tensor) -> Tensor:
        count = len(tokens)
        assert int(positions.max()) < LENGTH, "a step past the cache"
        self.steps.append(count)
        said = positions - state["prompt"][:count] + 1
        return self.logits(torch.stack([state["script"][:count], said], dim=1).float())

    def extend(
        self, state: dict[str, Tensor], slots: Sequence[int], tokens: Tensor, positions: Tensor
    ) -> Tensor:
        rows = list(slots)
        at = positions.unsqueeze(1) + torch.arange(tokens.shape[1])
        assert int(at.max()) < LENGTH, "an extension past the cache"
        said = at - state["prompt"][rows].unsqueeze(1) + 1
        script = state["script"][rows].unsqueeze(1).expand_as(said)
        return self.logits(torch.stack([script, said], dim=2).float())

    def align(
        self,
        state: dict[str, Tensor],
        slot: int,
        tokens: Tensor,
        heads: Sequence[tuple[int, int]],
    ) -> tuple[Tensor, Tensor]:
        """Token number n listens at position n alone; the script starts after the first token."""
        self.aligned.append((int(state["script"][slot]), tuple(heads)))
        weights = torch.eye(len(tokens), LENGTH).expand(len(heads), -1, -1).clone()
        said = torch.arange(len(tokens))
        return weights, self.logits(
            torch.stack([state["script"][slot].expand_as(said), said], dim=1).float()
        )

    def reorder(self, state: dict[str, Tensor], slots: Sequence[int], sources: Tensor) -> None:
        state["prompt"][list(slots)] = state["prompt"][sources]

    def share(self, state: dict[str, Tensor], source: int, targets: Sequence[int]) -> None:
        for tensor in state.values():
            tensor[list(targets)] = tensor[source].clone()

    def logits(self, hidden: Tensor) -> Tensor:
        logits = torch.zeros(*hidden.shape[:-1], VOCAB)
        for row, (script, said) in zip(
            logits.reshape(-1, VOCAB), hidden.reshape(-1, 2).long().tolist(), strict=True
        ):
            words = self.scripts[script]
            row[words[said] if 0 <= said < len(words) else END] = 10.0
        return logits

    def move(self, state: dict[str, Tensor], source: int, target: int) -> None:
        for tensor in state.values():
            tensor[target] = tensor[source]


def window(script: int) -> np.ndarray:
    """Features that make `ScriptedModel` say script number `script`."""
    return np.full((2, 4), script, dtype=np.float32)
