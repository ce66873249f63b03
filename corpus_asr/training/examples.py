"""One window as a network takes it: a plan and cache in, features and tokens out.

In: the number of a window. Out: its features and token row, always the same for the same seed,
whichever process asks. Knows no network.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch.utils.data import Dataset

from corpus_asr.families.layers.lm_head import IGNORED_LABEL
from corpus_asr.spectral.mel import log_mel
from corpus_asr.training.audio_cache import AudioCache
from corpus_asr.training.augmentation import (
    Augmentation,
    change_samples,
    coloured_noise,
    faster,
    mask,
    tones,
)
from corpus_asr.training.labels import LabelWriter, TimedText, TokenRow
from corpus_asr.training.windows import Epochs, Packing, Placed, Window
from corpus_asr.units import SAMPLE_RATE_HZ, WINDOW_SAMPLES

# Windows without speech
_NOTHING_SHARE = 0.2
_TONES_SHARE = 0.4
_LOUDNESS_DB = (-80.0, -3.0)
_QUIETEST = 1e-6
_PREVIOUS_LETTERS = 1_000  # more than half of the decoder's positions hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One window."""

    features: Float32[np.ndarray, "mel frame"]
    tokens: TokenRow


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSettings:
    """How windows become examples."""

    num_mel_bins: int
    packing: Packing
    augmentation: Augmentation
    timestamp_probability: float
    condition_on_prev_probability: float
    task: str
    seed: int


class Examples(Dataset[Example]):
    """All windows of all epochs, numbered through.

    Args:
        cache: decoded audio; utterances without text are also used as noise.
        labels: text to tokens.
        settings: how.
    """

    def __init__(
        self,
        cache: AudioCache,
        labels: LabelWriter,
        settings: ExampleSettings,
    ) -> None:
        self._cache = cache
        self._silent = cache.silent
        self._labels = labels
        self._settings = settings
        self._epochs = Epochs(cache, settings.packing, seed=settings.seed)

    def __getitem__(self, number: int) -> Example:
        window = self._epochs.window(number)
        draw = np.random.default_rng((*window.seed, 1))
        settings = self._settings
        timestamps = bool(draw.random() < settings.timestamp_probability)
        samples, texts = self._contents(window) if window.runs else (self._silence(draw), [])
        has_text = any(one.text.strip() for one in texts)
        truncated = window.truncated if timestamps and has_text else None
        if truncated is not None:
            _put(self._played(truncated, window.speed), samples, truncated)
        samples = change_samples(samples, settings.augmentation, draw, noise=self._noise)
        features = log_mel(samples, num_mel_bins=settings.num_mel_bins)
        mask(features, settings.augmentation, draw)
        language = self._cache.language(window.runs[0].first) if window.runs else None
        tokens = self._labels.row(
            texts,
            language=language,
            task=settings.task,
            timestamps=timestamps,
            previous=self._cache.text_before(window.runs[0].first, letters=_PREVIOUS_LETTERS)
            if draw.random() < settings.condition_on_prev_probability and window.runs
            else "",
            begins_s=truncated.at / SAMPLE_RATE_HZ if truncated is not None else None,
        )
        return Example(features=features, tokens=tokens)

    def _contents(self, window: Window) -> tuple[np.ndarray, list[TimedText]]:
        """Return the samples of a window and its texts."""
        samples = np.zeros(WINDOW_SAMPLES, np.float32)
        texts: list[TimedText] = []
        for run in window.runs:
            _put(self._played(run, window.speed), samples, run)
            texts += self._texts(run, int(self._cache.start[run.first]), window.speed)
        return samples, texts

    def _played(self, run: Placed, speed: float) -> np.ndarray:
        """Return the samples of a run, as far as it fits its window."""
        begin = int(self._cache.start[run.first])
        end = self._cache.ends(slice(run.first, run.end))
        return faster(self._cache.samples(begin, end), speed)[: WINDOW_SAMPLES - run.at]

    def _texts(self, run: Placed, begin: int, speed: float) -> Iterator[TimedText]:
        for utterance in range(run.first, run.end):
            start = run.at + (int(self._cache.start[utterance]) - begin) / speed
            end = run.at + (int(self._cache.end[utterance]) - begin) / speed
            yield TimedText(
                start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ, self._cache.text(utterance)
            )

    def _silence(self, draw: np.random.Generator) -> np.ndarray:
        """Return a window without speech: noise or tones at any level, or digital silence."""
        if draw.random() < _NOTHING_SHARE:
            return np.zeros(WINDOW_SAMPLES, np.float32)
        with_tones = draw.random() < _TONES_SHARE
        noise = tones(draw, WINDOW_SAMPLES) if with_tones else self._noise(draw)
        level = 10 ** (draw.uniform(*_LOUDNESS_DB) / 20)
        return noise * np.float32(level / max(float(np.abs(noise).max()), _QUIETEST))

    def _noise(self, draw: np.random.Generator) -> np.ndarray:
        """Return a window of noise: recorded half the time, where some was."""
        if draw.random() < 0.5 or not len(self._silent):
            return coloured_noise(draw, WINDOW_SAMPLES)
        chosen = draw.choice(self._silent)
        begin, end = int(self._cache.start[chosen]), int(self._cache.end[chosen])
        audio = self._cache.samples(begin, end)
        return np.resize(np.roll(audio, int(draw.integers(audio.size))), WINDOW_SAMPLES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Windows stacked into tensors."""

    features: torch.Tensor
    """Log-mel features: (batch, mel, frame)."""
    inputs: torch.Tensor
    """Decoder input tokens: (batch, token); padded with the end token."""
    labels: torch.Tensor
    """Next tokens: (batch, token); -100 where no loss is computed."""

    @property
    def num_labels(self) -> int:
        """Number of tokens with a loss."""
        return int((self.labels != IGNORED_LABEL).sum())

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory; `DataLoader` calls this."""
        return self._changed(torch.Tensor.pin_memory)

    def _changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        return Batch(
            features=change(self.features), inputs=change(self.inputs), labels=change(self.labels)
        )


class Collate:
    """Stacks examples into a batch.

    Args:
        padding: token that pads short rows.
    """

    def __init__(self, padding: int) -> None:
        self._padding = padding

    def __call__(self, examples: list[Example]) -> Batch:
        """Stack examples; padding has no loss."""
        features: Any = np.stack([one.features for one in examples])
        rows = [one.tokens for one in examples]
        width = max(len(row.ids) for row in rows) - 1
        inputs = np.full((len(rows), width), self._padding, np.int64)
        labels: Int64[np.ndarray, "row token"] = np.full_like(inputs, IGNORED_LABEL)
        for number, row in enumerate(rows):
            ids, first = row.ids, row.loss_from
            inputs[number, : len(ids) - 1] = ids[:-1]
            labels[number, first - 1 : len(ids) - 1] = ids[first:]
        return Batch(
            features=torch.from_numpy(features),
            inputs=torch.from_numpy(inputs),
            labels=torch.from_numpy(labels),
        )


def _put(played: np.ndarray, samples: np.ndarray, run: Placed) -> None:
    samples[run.at : run.at + played.size] = played
