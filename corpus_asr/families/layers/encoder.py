"""What the encoders of all families share: blocks over positions, and what is asked of them.

In: what a family's convolutions make of features, positions included. Out: one hidden state per
position. Knows no samples, no tokens and no convolutions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from corpus_asr.families.layers.blocks import Dropouts, EncoderBlock
from corpus_asr.families.layers.tower import Record, Tower, head_masks
from corpus_asr.families.outputs import BaseModelOutput


class FeatureEncoder(Tower):
    """Pre-norm blocks and a last norm; a family adds what comes before.

    Args:
        config: sizes and settings.
    """

    layers: nn.ModuleList
    layer_norm: nn.LayerNorm

    def __init__(self, config: Any) -> None:
        super().__init__(config.encoder_layerdrop)
        self.config = config

    def _add_blocks(self, *, key_bias: bool) -> None:
        """Make the blocks: last, since parameters are listed in this order."""
        config = self.config
        self.layers = nn.ModuleList(
            EncoderBlock(
                config.d_model,
                heads=config.encoder_attention_heads,
                ffn_dim=config.encoder_ffn_dim,
                activation_name=config.activation_function,
                key_bias=key_bias,
                dropouts=Dropouts.of(config),
                eager=config.attn_implementation == "eager",
            )
            for _ in range(config.encoder_layers)
        )
        self.layer_norm = nn.LayerNorm(config.d_model)

    def _run_blocks(
        self,
        hidden: Float[Tensor, "batch pos width"],
        *,
        mask: Float[Tensor, "batch 1 1 pos"] | None,
        head_mask: Tensor | None,
        record: Record,
    ) -> Float[Tensor, "batch pos width"]:
        """Run embedded positions; put what every layer gives into `record`."""
        config = self.config
        heads = config.encoder_attention_heads
        per_layer = head_masks(head_mask, layers=len(self.layers), heads=heads, name="head_mask")
        hidden = F.dropout(hidden, config.dropout, self.training)
        for layer, heard in zip(self.layers, per_layer, strict=True):
            record.add(hidden)
            hidden = self._through(
                layer, hidden, mask=mask, head_mask=heard, weights=record.weights
            )
        encoded: Tensor = self.layer_norm(hidden)
        record.add(encoded)
        return encoded

    def _output(
        self,
        last: Float[Tensor, "batch pos width"],
        record: Record,
        return_dict: bool | None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        output = BaseModelOutput(
            last_hidden_state=last,
            hidden_states=record.hidden_states,
            attentions=record.attentions,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


def check_values(features: Tensor, wanted: torch.dtype) -> None:
    """Check what convolutions would say badly or not at all.

    Raises:
        ValueError: features are of another type than the weights, or (on a CPU) not finite.
    """
    if features.dtype != wanted and not torch.is_autocast_enabled(features.device.type):
        raise ValueError(
            f"encoding a window: found features of {features.dtype}, expected {wanted} as the "
            f"weights are; convert with features.to(model.dtype)"
        )
    # Not on a GPU: the host would have to wait for it.
    if features.device.type == "cpu" and not bool(features.isfinite().all()):
        rows = (~features.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(
            f"encoding a window: found NaN or infinity in the features of rows {rows}, "
            f"expected finite numbers; look at the audio they were made of"
        )
