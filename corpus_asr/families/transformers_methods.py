"""Additional methods of transformers' networks, beyond loading, saving and running."""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class TransformersMethods:
    """Methods of transformers' networks for inspection and preparation."""

    base_model_prefix: ClassVar[str]
    config: Any
    model_tags: list[str] | None = None
    """Tags of the network's page on a hub."""
    _input_gradients: RemovableHandle | None = None

    @property
    def base_model(self) -> Any:
        """The network without its head; itself if it has none."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Minimal valid inputs: silence, and the first token."""
        weight = next(self.parameters())  # type: ignore[attr-defined]
        start = [[self.config.decoder_start_token_id]]
        return {
            "input_features": weight.new_zeros(self._smallest_features),
            "decoder_input_ids": torch.tensor(start, device=weight.device),
        }

    @property
    def _smallest_features(self) -> tuple[int, int, int]:
        raise NotImplementedError  # defined by a family

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Return the bytes of the weights, optionally with buffers."""
        tensors = list(self.parameters())  # type: ignore[attr-defined]
        tensors += list(self.buffers()) if return_buffers else []  # type: ignore[attr-defined]
        return sum(tensor.nelement() * tensor.element_size() for tensor in tensors)

    def get_input_embeddings(self) -> nn.Module:
        """Return the input module."""
        raise NotImplementedError(
            f"a {type(self).__name__} has no single input module; use its submodules"
        )

    def get_output_embeddings(self) -> nn.Linear | None:
        """Return the output projection; None if there is none."""
        return None

    def enable_input_require_grads(self) -> None:
        """Make the input module's output require gradients although its weights are frozen.

        Needed for reentrant checkpointing around adapters, which is not used here.
        """
        self.disable_input_require_grads()
        self._input_gradients = self.get_input_embeddings().register_forward_hook(
            lambda module, inputs, output: output.requires_grad_(True)
        )

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        if self._input_gradients is not None:
            self._input_gradients.remove()
            self._input_gradients = None

    def init_weights(self) -> None:
        """Initialize all weights randomly, including those of `to_empty`."""
        self._draw_weights()  # type: ignore[attr-defined]
        self.post_init()

    def post_init(self) -> None:
        """Finish a subclass's initialization: tie its weights."""
        self.tie_weights()  # type: ignore[attr-defined]

    def add_model_tags(self, tags: str | Iterable[str]) -> None:
        """Add to `model_tags`."""
        new = [tags] if isinstance(tags, str) else list(tags)
        held = self.model_tags or []
        self.model_tags = [*held, *(tag for tag in new if tag not in held)]
