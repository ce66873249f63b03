"""Whisper's encoder.

In: log-mel features of whole windows. Out: one hidden state per 20 ms. Knows no samples, no
tokens and no decoder.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from corpus_asr.models.layers.blocks import EncoderBlock
from corpus_asr.models.whisper.config import WhisperConfig
from corpus_asr.units import FRAMES_PER_POSITION


class WhisperEncoder(nn.Module):
    """Two convolutions, sinusoidal positions, pre-norm blocks and a last norm.

    Source: Radford et al. 2022, section 2.2; parameter names of
    transformers/models/whisper/modeling_whisper.py, equal to it within 1e-5 in float32.
    """

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        width = config.d_model
        self.num_mel_bins = config.num_mel_bins
        self.num_frames = config.max_source_positions * FRAMES_PER_POSITION
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=FRAMES_PER_POSITION, padding=1)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        self.layers = nn.ModuleList(
            EncoderBlock(
                width,
                heads=config.encoder_attention_heads,
                ffn_dim=config.encoder_ffn_dim,
                activation_name=config.activation_function,
                key_bias=False,
            )
            for _ in range(config.encoder_layers)
        )
        self.layer_norm = nn.LayerNorm(width)

    def forward(
        self, input_features: Float[Tensor, "batch mel frame"]
    ) -> Float[Tensor, "batch pos width"]:
        """Encode whole windows; see `encode`."""
        return self.encode(input_features)

    def encode(
        self, input_features: Float[Tensor, "batch mel frame"]
    ) -> Float[Tensor, "batch pos width"]:
        """Encode whole windows.

        Raises:
            ValueError: the features have another number of mel bins or frames than the model.
        """
        found = tuple(input_features.shape[1:])
        if found != (self.num_mel_bins, self.num_frames):
            raise ValueError(
                f"encoding a window: found {found[0]} mel bins x {found[1]} frames, expected "
                f"{self.num_mel_bins} x {self.num_frames}; pad or cut the features to one window"
            )
        # GELU whatever `activation_function` says: that is for the blocks.
        hidden = F.gelu(self.conv1(input_features))
        hidden = F.gelu(self.conv2(hidden))
        hidden = hidden.transpose(1, 2) + self.embed_positions.weight  # (batch, pos, width)
        for layer in self.layers:
            hidden = layer(hidden)
        encoded: Tensor = self.layer_norm(hidden)
        return encoded
