"""FastConformer: convolutions that shorten features, then blocks of attention and convolution.

Of each row only its valid frames count: a row gives what it would give alone, whatever follows it.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Bool, Float, Int
from corpus_asr.decoding.device import upload
from corpus_asr.families.layers.blocks import activation, merge_heads, split_heads
from corpus_asr.families.layers.stack import check_heard, within
from corpus_asr.families.parakeet.config import ParakeetEncoderConfig

_LONGEST = 10_000.0
Hidden = Float[Tensor, "batch pos width"]


class _FirstConvolution(nn.Conv2d):
    """A convolution of one channel, computed as a product of its patches.

    CPUs take 240 ms for what are 33 ms here: 35 s of audio, 256 channels, bfloat16, one thread.
    The result has its channels side by side, of which the next convolutions profit.
    """

    def forward(self, hidden: Float[Tensor, "batch 1 frame mel"]) -> Float[Tensor, "batch _ _ _"]:
        """Convolve features."""
        size, stride = self.kernel_size[0], self.stride[0]
        padded = F.pad(hidden[:, 0], (size // 2,) * 4)
        patches = padded.unfold(1, size, stride).unfold(2, size, stride)  # (batch, frame, mel, ...)
        convolved = F.linear(patches.flatten(3), self.weight.flatten(1), self.bias)
        return convolved.permute(0, 3, 1, 2)


class Subsampling(nn.Module):
    """Convolutions over frames and mel bins, each of which halves both, and a projection.

    Source: Rekesh et al. 2023, section 3.1.
    """

    def __init__(self, config: ParakeetEncoderConfig) -> None:
        super().__init__()
        channels, size = config.subsampling_conv_channels, config.subsampling_conv_kernel_size
        around = size // 2
        first = _FirstConvolution(1, channels, size, stride=2, padding=around)
        # In one list, by whose numbers checkpoints name them.
        layers: list[nn.Module] = [first, nn.ReLU(inplace=True)]
        for _ in range(1, config.num_convolutions):
            layers += [
                nn.Conv2d(channels, channels, size, stride=2, padding=around, groups=channels),
                nn.Conv2d(channels, channels, kernel_size=1),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.ModuleList(layers)
        bins = config.num_mel_bins // config.subsampling_factor
        self.linear = nn.Linear(channels * bins, config.hidden_size)

    def forward(
        self,
        features: Float[Tensor, "batch frame mel"],
        num_frames: Int[Tensor, " batch"] | None = None,
    ) -> Hidden:
        """Shorten features; of each row only `num_frames` are used, as if it were no longer."""
        if num_frames is not None:
            valid = within(num_frames, features.shape[1])
            features = features.masked_fill(~valid[:, :, None], 0.0)
        hidden = features[:, None]  # (batch, channel, frame, mel)
        for layer in self.layers:
            hidden = layer(hidden)
            if num_frames is not None and isinstance(layer, nn.Conv2d):
                # What a convolution makes of the zeros behind a row is no zero to the next one.
                num_frames = -(-num_frames // layer.stride[0])
                valid = within(num_frames, hidden.shape[2])
                hidden = hidden.masked_fill_(~valid[:, None, :, None], 0.0)
        shortened: Tensor = self.linear(hidden.transpose(1, 2).flatten(2))
        return shortened


class RelativeAttention(nn.Module):
    """Multi-head attention whose scores depend on the distance between positions, too.

    Source: Dai et al. 2019, section 3.3.
    """

    def __init__(self, config: ParakeetEncoderConfig) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.attention_bias
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, width, bias=bias)
        self.v_proj = nn.Linear(width, width, bias=bias)
        self.o_proj = nn.Linear(width, width, bias=bias)
        self.relative_k_proj = nn.Linear(width, width, bias=False)
        self.bias_u = nn.Parameter(torch.zeros(self.heads, width // self.heads))
        self.bias_v = nn.Parameter(torch.zeros(self.heads, width // self.heads))

    def forward(
        self,
        hidden: Hidden,
        *,
        positions: Float[Tensor, "1 distance width"],
        valid: Bool[Tensor, "batch pos"] | None,
    ) -> Hidden:
        """Let each position see those `valid`; `positions` are sinusoids of all `distances`."""
        query, key, value = (
            split_heads(projection(hidden), self.heads)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        distances = split_heads(self.relative_k_proj(positions), self.heads)
        scale = query.shape[-1] ** -0.5
        # The queries are scaled, not the scores: these are many times as many.
        by_place = (query + self.bias_v[:, None]) * scale
        query = query + self.bias_u[:, None]
        # One product for all rows of a batch, which meet the same distances.
        placed = by_place.transpose(0, 1).flatten(1, 2) @ distances[0].transpose(-1, -2)
        placed = placed.unflatten(1, by_place.shape[::2]).transpose(0, 1)
        bias = by_distance(placed)  # (batch, head, pos, pos)
        if valid is not None:
            bias = bias.masked_fill(~valid[:, None, None], torch.finfo(bias.dtype).min)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        projected: Tensor = self.o_proj(merge_heads(mixed))
        return projected


def by_distance(
    scores: Float[Tensor, "batch head pos distance"],
) -> Float[Tensor, "batch head pos pos"]:
    """Convert scores by distance, the largest one first, to scores by key, without a copy.

    A position's own distance is the middle one: each row starts one element further left.
    """
    length = scores.shape[2]
    if length == 1:
        return scores
    # With rows one element shorter than stored, each starts one element earlier.
    shorter = 2 * length - 2
    flat = scores.flatten(2)[..., length - 1 : length - 1 + length * shorter]
    return flat.view(*flat.shape[:2], length, shorter)[..., :length]


def distances(length: int, *, like: Hidden) -> Float[Tensor, "1 distance width"]:
    """Return sinusoids of the distances in a row, the largest first, sines and cosines by turns."""
    width = like.shape[2]
    steps = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
    rates = 1.0 / _LONGEST ** (steps / width)
    places = torch.arange(length - 1, -length, -1, device=like.device, dtype=torch.float32)
    angles = places[:, None] * rates  # (distance, wave)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None].to(like.dtype)


class Pointwise(nn.Conv1d):
    """A convolution that sees one position: a linear map, which is computed as one.

    Its weights have the shape of a convolution's, as checkpoints store them.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel_size=1, bias=bias)

    def forward(self, hidden: Hidden) -> Float[Tensor, "batch pos _"]:
        """Transform each position separately."""
        return F.linear(hidden, self.weight[:, :, 0], self.bias)


class _Depthwise(nn.Conv1d):
    """A convolution channel by channel, whose input and output have channels side by side.

    As one of two axes it takes 0.3 ms, and the product after it 1.4 ms; as one of a single axis
    1.5 ms, and the product, whose input then has positions side by side, 8.3 ms: 1,024 channels,
    500 positions, bfloat16, one thread.
    """

    def forward(self, hidden: Hidden) -> Hidden:
        """Convolve along positions."""
        around = (self.kernel_size[0] // 2, 0)
        rows = hidden.transpose(1, 2)[..., None]  # (batch, width, pos, 1)
        weight = self.weight[..., None]
        convolved = F.conv2d(rows, weight, self.bias, padding=around, groups=self.groups)
        return convolved[..., 0].transpose(1, 2)


class Convolution(nn.Module):
    """A gate, and a convolution over the neighbors of each position, channel by channel.

    Source: Gulati et al. 2020, section 2.2.
    """

    def __init__(self, config: ParakeetEncoderConfig) -> None:
        super().__init__()
        width, size, bias = config.hidden_size, config.conv_kernel_size, config.convolution_bias
        self.pointwise_conv1 = Pointwise(width, 2 * width, bias=bias)
        self.depthwise_conv = _Depthwise(
            width, width, kernel_size=size, padding=size // 2, groups=width, bias=bias
        )
        self.norm = nn.BatchNorm1d(width)
        self.pointwise_conv2 = Pointwise(width, width, bias=bias)
        self.activate = activation(config.hidden_act)

    def forward(self, hidden: Hidden, *, valid: Bool[Tensor, "batch pos"] | None) -> Hidden:
        """Convolve each position with its neighbors that are `valid`."""
        gated = F.glu(self.pointwise_conv1(hidden), dim=2)
        if valid is not None:
            gated = gated.masked_fill(~valid[:, :, None], 0.0)
        near = self.norm(self.depthwise_conv(gated).flatten(0, 1)).view_as(gated)
        mixed: Tensor = self.pointwise_conv2(self.activate(near))
        return mixed


class FeedForward(nn.Module):
    """Two linear layers."""

    def __init__(self, config: ParakeetEncoderConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.attention_bias
        self.linear1 = nn.Linear(width, inner, bias=bias)
        self.linear2 = nn.Linear(inner, width, bias=bias)
        self.activate = activation(config.hidden_act)

    def forward(self, hidden: Hidden) -> Hidden:
        """Transform each position separately."""
        outer: Tensor = self.linear2(self.activate(self.linear1(hidden)))
        return outer


class ConformerBlock(nn.Module):
    """Half a feed-forward layer, attention, convolution, the other half, and a norm."""

    def __init__(self, config: ParakeetEncoderConfig) -> None:
        super().__init__()
        self.feed_forward1 = FeedForward(config)
        self.self_attn = RelativeAttention(config)
        self.conv = Convolution(config)
        self.feed_forward2 = FeedForward(config)
        width = config.hidden_size
        self.norm_feed_forward1 = nn.LayerNorm(width)
        self.norm_self_att = nn.LayerNorm(width)
        self.norm_conv = nn.LayerNorm(width)
        self.norm_feed_forward2 = nn.LayerNorm(width)
        self.norm_out = nn.LayerNorm(width)

    def forward(
        self,
        hidden: Hidden,
        *,
        positions: Float[Tensor, "1 distance width"],
        valid: Bool[Tensor, "batch pos"] | None,
    ) -> Hidden:
        """Let every position see all that are `valid`."""
        hidden = hidden + 0.5 * self.feed_forward1(self.norm_feed_forward1(hidden))
        hidden = hidden + self.self_attn(
            self.norm_self_att(hidden), positions=positions, valid=valid
        )
        hidden = hidden + self.conv(self.norm_conv(hidden), valid=valid)
        hidden = hidden + 0.5 * self.feed_forward2(self.norm_feed_forward2(hidden))
        normed: Tensor = self.norm_out(hidden)
        return normed


class ParakeetEncoder(nn.Module):
    """Subsampling and conformer blocks.

    Source: Rekesh et al. 2023; parameter names of
    transformers/models/parakeet/modeling_parakeet.py, equal to it within 1e-5 in float32.
    """

    def __init__(self, config: ParakeetEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.input_scale = math.sqrt(config.hidden_size) if config.scale_input else 1.0
        self.subsampling = Subsampling(config)
        self.layers = nn.ModuleList(ConformerBlock(config) for _ in range(config.num_hidden_layers))

    def encode(
        self,
        input_features: Float[Tensor, "batch frame mel"],
        *,
        num_frames: Sequence[int],
    ) -> tuple[Hidden, Int[Tensor, " batch"]]:
        """Encode `num_frames` of each row; returns the states, and how many are the row's own."""
        rows, longest, _ = input_features.shape
        check_heard(num_frames, windows=rows, whole=longest)
        (frames,) = upload(input_features.device, num_frames)
        # Rows that are all as long have nothing to hide.
        padded = min(num_frames) < longest
        hidden = self._run(input_features, frames if padded else None)
        return hidden, self._num_positions(frames)

    def _run(self, features: Tensor, num_frames: Int[Tensor, " batch"] | None) -> Hidden:
        self._check(features)
        hidden: Tensor = self.subsampling(features, num_frames) * self.input_scale
        valid = None
        if num_frames is not None:
            valid = within(self._num_positions(num_frames), hidden.shape[1])
        positions = distances(hidden.shape[1], like=hidden)
        for layer in self.layers:
            hidden = layer(hidden, positions=positions, valid=valid)
        return hidden

    def _num_positions(self, num_frames: Any) -> Any:
        # Rounding up once is equal to rounding up after each convolution.
        return -(-num_frames // self.config.subsampling_factor)

    def _check(self, features: Tensor) -> None:
        shape, bins = tuple(features.shape), self.config.num_mel_bins
        if len(shape) != 3 or shape[2] != bins or not features.numel():
            raise ValueError(
                f"encoding features: found shape {shape}, expected (batch, frame, {bins}), none "
                "of them 0; use this checkpoint's feature extractor"
            )
        most = self.config.max_position_embeddings
        length = self._num_positions(shape[1])
        if length > most:
            raise ValueError(
                f"encoding features: found {shape[1]} frames, which make {length} positions, "
                f"expected at most {most} (max_position_embeddings); cut the audio into shorter "
                "windows"
            )
