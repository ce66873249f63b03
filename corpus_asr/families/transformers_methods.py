"""What programs for transformers ask any of its networks, beyond loading, saving and running."""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class TransformersMethods:
    """Methods of transformers' networks that say something of a network, or prepare it."""

    base_model_prefix: ClassVar[str]
    config: Any
    model_tags: list[str] | None = None
    """What a page about the network on a hub is found by."""
    _input_gradients: RemovableHandle | None = None

    @property
    def base_model(self) -> Any:
        """The network without what stands on top of it; itself where nothing does."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """The smallest inputs that the network runs with: silence, and the first token."""
        weight = next(self.parameters())  # type: ignore[attr-defined]
        start = [[self.config.decoder_start_token_id]]
        return {
            "input_features": weight.new_zeros(self._smallest_features),
            "decoder_input_ids": torch.tensor(start, device=weight.device),
        }

    @property
    def _smallest_features(self) -> tuple[int, int, int]:
        raise NotImplementedError  # a family's

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Return how many bytes the weights take, and the buffers if asked for."""
        tensors = list(self.parameters())  # type: ignore[attr-defined]
        tensors += list(self.buffers()) if return_buffers else []  # type: ignore[attr-defined]
        return sum(tensor.nelement() * tensor.element_size() for tensor in tensors)

    def get_input_embeddings(self) -> nn.Module:
        """Return the module that the inputs meet first."""
        raise NotImplementedError(
            f"a {type(self).__name__} names no module that its inputs meet first; look at its "
            f"submodules"
        )

    def get_output_embeddings(self) -> nn.Linear | None:
        """Return the projection to the vocabulary; None where there is none."""
        return None

    def enable_input_require_grads(self) -> None:
        """Let what the first module returns require gradients, though its weights are frozen.

        Reentrant checkpointing around adapters needs that; what is here does not.
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
        """Draw all weights, as a new network has them; those of `to_empty` among them."""
        self._draw_weights()  # type: ignore[attr-defined]
        self.post_init()

    def post_init(self) -> None:
        """Finish a network of a subclass: nothing is left to do but to tie its weights."""
        self.tie_weights()  # type: ignore[attr-defined]

    def add_model_tags(self, tags: str | Iterable[str]) -> None:
        """Add to `model_tags`."""
        new = [tags] if isinstance(tags, str) else list(tags)
        held = self.model_tags or []
        self.model_tags = [*held, *(tag for tag in new if tag not in held)]
