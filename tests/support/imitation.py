"""A Speech2Text that begins with what a Whisper encoder knows, as few voices teach too little.

In: a Whisper network and recordings. Out: a Speech2Text whose encoder says what that one says of
them. Both families' blocks are alike, and so are their sinusoids but for where they begin; what is
before the blocks is not. So blocks are copied, and what is before them learns to give what they
are used to; then all of it learns to end with the same states.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from corpus_asr.audio.bands import band_limited
from corpus_asr.families.speech2text.config import Speech2TextConfig
from corpus_asr.families.speech2text.encoder import Speech2TextEncoder
from corpus_asr.families.whisper.encoder import WhisperEncoder
from corpus_asr.models.whisper.processor import WhisperFeatureExtractor
from corpus_asr.spectral.fbank import kaldi_fbank, mean_variance_normalised
from corpus_asr.units import FRAMES_PER_POSITION, SAMPLE_RATE_HZ, WINDOW_SAMPLES
from tests.support.digits import (
    MEL_BINS,
    TELEPHONE_HZ,
    Clip,
    Features,
    Samples,
    levelled,
    recording,
)
from tests.support.oracles import read_audio
from tests.support.training import padded

# The middle of a frame of the filter bank is so much later than that of Whisper's frame.
_LATER = 200  # samples
_CROP_FRAMES = 400
_CROPS = 12  # of a step
_AT_ONCE = 8  # windows
_DIGITS = 40  # said in a window, at most half a second each

States = Float[Tensor, "pos width"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """What is heard of a recording of at most 30 s."""

    features: Features
    before_blocks: States
    last: States


@dataclass(frozen=True, slots=True, kw_only=True)
class _Crops:
    features: Tensor
    mask: Tensor
    before_blocks: Tensor
    last: Tensor


def people_speaking(data: Path, windows: int, *, seed: int) -> list[Samples]:
    """Read what people say, digits apart, in windows of 30 s and as over a telephone."""
    folder = data / "train"
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    paths = [folder / row["path"] for row in rows if row["corpus"] != "fsdd"]
    found, waiting = [], np.zeros(0, np.float32)
    for at in np.random.default_rng(seed).permutation(len(paths)):
        waiting = np.concatenate([waiting, levelled(read_audio(paths[at]))])
        while len(waiting) >= WINDOW_SAMPLES:
            window, waiting = np.split(waiting, [WINDOW_SAMPLES])
            found.append(band_limited(window, *TELEPHONE_HZ))
        if len(found) >= windows:
            break
    return found[:windows]


def digits_said(clips: Sequence[Clip], windows: int, *, seed: int) -> list[Samples]:
    """Join clips to windows of at most 30 s."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(windows):
        samples, _ = recording([clips[at] for at in draw.integers(len(clips), size=_DIGITS)], draw)
        found.append(samples[:WINDOW_SAMPLES])
    return found


def config_like(encoder: WhisperEncoder, vocab_size: int) -> Speech2TextConfig:
    """Sizes of a network whose encoder has the same blocks, and as many positions a second."""
    config = encoder.config
    return Speech2TextConfig(
        vocab_size=vocab_size,
        d_model=config.d_model,
        encoder_layers=config.encoder_layers,
        encoder_attention_heads=config.encoder_attention_heads,
        encoder_ffn_dim=config.encoder_ffn_dim,
        activation_function=config.activation_function,
        decoder_layers=1,
        decoder_attention_heads=config.encoder_attention_heads,
        decoder_ffn_dim=2 * config.d_model,
        num_conv_layers=1,
        conv_kernel_sizes=(5,),
        input_feat_per_channel=MEL_BINS,
        max_source_positions=3000,
        max_target_positions=64,
        scale_embedding=False,
        init_std=config.d_model**-0.5,
        dropout=0.1,
    )


@torch.no_grad()
def heard_by(
    encoder: WhisperEncoder, extractor: WhisperFeatureExtractor, recordings: Sequence[Samples]
) -> list[Passage]:
    """Let an encoder in float32 hear recordings of at most 30 s."""
    passages = []
    positions = encoder.embed_positions.weight
    for start in range(0, len(recordings), _AT_ONCE):
        some = recordings[start : start + _AT_ONCE]
        inputs = extractor(
            [samples[_LATER:] for samples in some],
            sampling_rate=SAMPLE_RATE_HZ,
            return_tensors="pt",
        )
        found = encoder(inputs.input_features, output_hidden_states=True)
        for samples, first, last in zip(
            some, found.hidden_states[0], found.last_hidden_state, strict=True
        ):
            features = kaldi_fbank(samples, num_mel_bins=MEL_BINS)
            end = len(features) // FRAMES_PER_POSITION
            passages.append(
                Passage(
                    features=features,
                    before_blocks=(first - positions)[:end],
                    last=last[:end],
                )
            )
    return passages


def imitate(
    student: Speech2TextEncoder,
    teacher: WhisperEncoder,
    passages: Sequence[Passage],
    *,
    front_steps: int,
    steps: int,
    seed: int,
) -> None:
    """Make one encoder say what another says, in place.

    Args:
        student: of a network of `config_like`.
        teacher: whose blocks are copied.
        passages: what it heard.
        front_steps: in which what is before the blocks learns alone.
        steps: in which all learns.
        seed: of the draws.
    """
    names = ("layers.", "layer_norm.")
    copied = {name: w for name, w in teacher.state_dict().items() if name.startswith(names)}
    own = student.state_dict().items()
    no_bias = {name: torch.zeros_like(w) for name, w in own if name.endswith("k_proj.bias")}
    student.load_state_dict(no_bias | copied, strict=False)  # Whisper's keys have no bias
    student.eval()
    crops = _crops(passages, np.random.default_rng(seed))
    front = torch.optim.Adam(student.conv.parameters(), lr=6e-3)
    falling = torch.optim.lr_scheduler.LinearLR(front, 1.0, 1e-3, front_steps)
    for _ in range(front_steps):
        crop = next(crops)
        _step(front, falling, F.mse_loss(student.conv(crop.features), crop.before_blocks))
    blocks = [*student.layers.parameters(), *student.layer_norm.parameters()]
    rates = [1e-3, 1e-4]
    both = torch.optim.Adam([{"params": list(student.conv.parameters())}, {"params": blocks}])
    cycle = torch.optim.lr_scheduler.OneCycleLR(both, rates, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        crop = next(crops)
        with torch.autocast("cpu", torch.bfloat16):
            found = student(crop.features, attention_mask=crop.mask).last_hidden_state
        _step(both, cycle, F.mse_loss(found.float(), crop.last))


def _step(
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    loss: Tensor,
) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()


def _crops(passages: Sequence[Passage], draw: np.random.Generator) -> Iterator[_Crops]:
    """Draw a few seconds of several passages, for ever."""
    while True:
        features, before, last = [], [], []
        for at in draw.integers(len(passages), size=_CROPS):
            passage = passages[at]
            first = int(draw.integers(len(passage.last) - _CROP_FRAMES // FRAMES_PER_POSITION))
            end = first + _CROP_FRAMES // FRAMES_PER_POSITION
            frames = passage.features[first * FRAMES_PER_POSITION : end * FRAMES_PER_POSITION]
            features.append(mean_variance_normalised(frames))
            before.append(passage.before_blocks[first:end])
            last.append(passage.last[first:end])
        rows, mask = padded(features)
        yield _Crops(
            features=rows, mask=mask, before_blocks=torch.stack(before), last=torch.stack(last)
        )
