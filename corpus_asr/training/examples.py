"""One window as a network takes it: a plan and material in, features and tokens out.

In: the number of a window. Out: its features and token row, always the same for the same seed,
whichever process asks. Knows no network.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch.utils.data import Dataset

from corpus_asr.models.vocabulary import IGNORED_LABEL
from corpus_asr.spectral.mel import log_mel
from corpus_asr.text.phones import PAUSE, UNKNOWN
from corpus_asr.training.augmentation import (
    Augmentation,
    change_samples,
    coloured_noise,
    cut_close,
    faster,
    mask,
    tones,
    with_other_voice,
)
from corpus_asr.training.labels import LabelWriter, Said, Spoken, TokenRow
from corpus_asr.training.material import Material
from corpus_asr.training.windows import Epochs, Packing, Placed, Window
from corpus_asr.units import (
    FRAMES_PER_SECOND,
    SAMPLE_RATE_HZ,
    TIMESTAMP_STEP_S,
    WINDOW_S,
    WINDOW_SAMPLES,
)

# Windows in which nobody speaks
_NOTHING_SHARE = 0.2
_TONES_SHARE = 0.4
_LOUDNESS_DB = (-80.0, -3.0)
_QUIETEST = 1e-6
_SILENCE_AFTER_S = 1.0  # of windows that are cut
_SHORT_SAMPLES = round(1.5 * SAMPLE_RATE_HZ)
_POSITIONS = round(WINDOW_S / TIMESTAMP_STEP_S)
AROUND = 5  # positions on each side of a passage that is written alone
_NO_LETTERS = -1
_PREVIOUS_LETTERS = 1_000  # more than half of the decoder's positions hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One window."""

    features: Float32[np.ndarray, "mel frame"]
    tokens: TokenRow
    num_frames: int | None = None
    """That are heard; None: all."""
    phones: Int64[np.ndarray, " position"] | None = None
    """At each position of the encoding; -100 where it is not known. None: nowhere."""
    alone: tuple[TokenRow, ...] = ()
    """What each passage is as a window that begins `AROUND` positions before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSettings:
    """How windows become examples."""

    num_mel_bins: int
    packing: Packing
    augmentation: Augmentation
    timestamps_share: float
    cut_share: float
    previous_share: float
    misread_share: float
    with_phones: bool
    """Whether examples tell which sound is heard when."""
    with_passages: range
    """Windows, by their numbers, of which each passage is also written on its own."""
    task: str
    seed: int


class Examples(Dataset[Example]):
    """All windows of all epochs, numbered through.

    Args:
        material: what is said; passages without text are also what noise is taken from.
        labels: text to tokens.
        settings: how.
    """

    def __init__(
        self,
        material: Material,
        labels: LabelWriter,
        settings: ExampleSettings,
    ) -> None:
        self._material = material
        self._silent = material.silent
        self._labels = labels
        self._settings = settings
        self._epochs = Epochs(material, settings.packing, seed=settings.seed)

    def __getitem__(self, number: int) -> Example:
        window = self._epochs.window(number)
        draw = np.random.default_rng((*window.seed, 1))
        settings = self._settings
        timestamps = bool(draw.random() < settings.timestamps_share)
        samples, said = self._heard(window, draw) if window.runs else (self._silence(draw), [])
        begun = window.begun if timestamps and any(one.text.strip() for one in said) else None
        if begun is not None:
            _put(self._played(begun, window.speed), samples, begun)
        samples = change_samples(samples, settings.augmentation, draw, noise=self._noise)
        features = log_mel(samples, num_mel_bins=settings.num_mel_bins)
        features = with_other_voice(features, settings.augmentation, draw)
        mask(features, settings.augmentation, draw)
        language = self._material.language(window.runs[0].first) if window.runs else None
        tokens = self._labels.row(
            said,
            language=language,
            task=settings.task,
            timestamps=timestamps,
            previous=self._material.said_before(window.runs[0].first, letters=_PREVIOUS_LETTERS)
            if draw.random() < settings.previous_share and window.runs
            else "",
            begins_s=begun.at / SAMPLE_RATE_HZ if begun is not None else None,
        )
        cut = draw.random() < settings.cut_share and begun is None
        num_frames = _num_frames(said, draw) if cut else None
        alone = [
            self._labels.row(
                [_by_itself(one)], language=language, task=settings.task, timestamps=timestamps
            )
            for one in said
            if number in settings.with_passages and one.text.strip()
        ]
        return Example(
            features=features,
            tokens=self._misread(tokens, draw),
            num_frames=num_frames,
            phones=self._phones(window, begun) if settings.with_phones else None,
            alone=tuple(self._misread(row, draw) for row in alone),
        )

    def _misread(self, row: TokenRow, draw: np.random.Generator) -> TokenRow:
        share = self._settings.misread_share
        return self._labels.misread(row, share, draw) if share else row

    def _heard(self, window: Window, draw: np.random.Generator) -> tuple[np.ndarray, list[Said]]:
        """Return a window's samples, and what is said in it."""
        samples = np.zeros(WINDOW_SAMPLES, np.float32)
        cut_share = self._settings.augmentation.cut_close_share
        said: list[Said] = []
        for run in window.runs:
            played = self._played(run, window.speed)
            if played.size <= _SHORT_SAMPLES and draw.random() < cut_share:
                played = cut_close(played, draw)
            _put(played, samples, run)
            said += self._said(run, int(self._material.start[run.first]), window.speed)
        return samples, said

    def _played(self, run: Placed, speed: float) -> np.ndarray:
        """Return the samples of a run, as far as it fits its window."""
        begin = int(self._material.start[run.first])
        end = self._material.ends(slice(run.first, run.end))
        return faster(self._material.samples(begin, end), speed)[: WINDOW_SAMPLES - run.at]

    def _said(self, run: Placed, begin: int, speed: float) -> Iterator[Said]:
        for passage in range(run.first, run.end):
            start = run.at + (int(self._material.start[passage]) - begin) / speed
            end = run.at + (int(self._material.end[passage]) - begin) / speed
            yield Said(start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ, self._material.text(passage))

    def _phones(self, window: Window, begun: Placed | None) -> Int64[np.ndarray, " position"]:
        """Return which sound is heard when: pauses between runs, and what is known of these."""
        material = self._material
        found = np.full(_POSITIONS, PAUSE, np.int64)
        for run in window.runs:
            begin, end = int(material.start[run.first]), material.ends(slice(run.first, run.end))
            first = _position(run.at)
            found[first : _position(run.at + (end - begin) / window.speed)] = IGNORED_LABEL
            for passage in range(run.first, run.end):
                start = run.at + (int(material.start[passage]) - begin) / window.speed
                at = _position(start)
                for phone in material.phones(passage):
                    until = _position(start + phone.end_s * SAMPLE_RATE_HZ / window.speed)
                    found[at:until] = IGNORED_LABEL if phone.number == UNKNOWN else phone.number
                    at = until
        if begun is not None:
            found[_position(begun.at) :] = IGNORED_LABEL
        return found

    def _silence(self, draw: np.random.Generator) -> np.ndarray:
        """Return a window in which nobody speaks: noise or tones, faint or loud, or nothing."""
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
        begin, end = int(self._material.start[chosen]), int(self._material.end[chosen])
        audio = self._material.samples(begin, end)
        return np.resize(np.roll(audio, int(draw.integers(audio.size))), WINDOW_SAMPLES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Rows of tokens side by side."""

    inputs: torch.Tensor
    """(row, token): what the decoder reads; padded with its end token."""
    labels: torch.Tensor
    """(row, token): what comes next; -100 where nothing is learnt."""
    letters: torch.Tensor
    """(row, token, 3): of what comes next, its passage in a batch's `spans`, the first of its
    letters and the one after its last; -1 where it writes none."""

    def changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """Return the same with all tensors changed."""
        return replace(self, **{one.name: change(getattr(self, one.name)) for one in fields(self)})

    @property
    def num_labels(self) -> int:
        """Tokens that are learnt."""
        return int((self.labels != IGNORED_LABEL).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Windows side by side."""

    features: torch.Tensor
    """(batch, mel, frame)"""
    whole: Written
    """A row for each window."""
    alone: Written | None
    """A row for each passage, as a window that begins `AROUND` positions before it."""
    spans: torch.Tensor
    """(passage, 4): row, first and last position of the encoding, letters of the text."""
    spoken: torch.Tensor
    """(letter,): the texts of all passages, one after the other."""
    num_frames: int
    """Of the features, those that are heard."""
    phones: torch.Tensor | None = None
    """(batch, position): sounds, -100 where they are not known; None: nowhere."""

    def to(self, device: torch.device) -> "Batch":
        """Return the same on a device."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Return the same where a GPU copies from at once; `DataLoader` calls this."""
        return self._changed(torch.Tensor.pin_memory)

    def _changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        rows = {n: v.changed(change) for n, v in parts.items() if isinstance(v, Written)}
        tensors = {n: change(v) for n, v in parts.items() if isinstance(v, torch.Tensor)}
        return replace(self, **rows, **tensors)  # type: ignore[arg-type]


class Collate:
    """Joins examples to a batch.

    Args:
        padding: the token that fills rows up.
    """

    def __init__(self, padding: int) -> None:
        self._padding = padding

    def __call__(self, examples: list[Example]) -> Batch:
        """Join examples; nothing is learnt from what fills rows up."""
        alone = [row for one in examples for row in one.alone]
        features: Any = np.stack([one.features for one in examples])
        spoken = [(row, said) for row, one in enumerate(examples) for said in one.tokens.spoken]
        spans = [(row, *_positions(said), len(said.letters)) for row, said in spoken]
        return Batch(
            features=torch.from_numpy(features),
            whole=self._written([one.tokens for one in examples]),
            alone=self._written(alone) if alone else None,
            spans=torch.tensor(spans, dtype=torch.int64).reshape(-1, 4),
            phones=_joined_phones(examples),
            num_frames=max(one.num_frames or one.features.shape[1] for one in examples),
            spoken=torch.tensor([i for _, said in spoken for i in said.letters], dtype=torch.int64),
        )

    def _written(self, rows: list[TokenRow]) -> Written:
        width = max(len(row.ids) for row in rows) - 1
        inputs = np.full((len(rows), width), self._padding, np.int64)
        labels: Int64[np.ndarray, "row token"] = np.full_like(inputs, IGNORED_LABEL)
        letters = np.full((*labels.shape, 3), _NO_LETTERS, np.int64)
        passages = 0
        for number, row in enumerate(rows):
            ids, first = row.ids, row.learnt_from
            inputs[number, : len(ids) - 1] = (row.misread or ids)[:-1]
            labels[number, first - 1 : len(ids) - 1] = ids[first:]
            for at, one in enumerate(row.letters[1:]):
                if one is not None:
                    letters[number, at] = passages + one.passage, one.first, one.end
            passages += len(row.spoken)
        return Written(
            inputs=torch.from_numpy(inputs),
            labels=torch.from_numpy(labels),
            letters=torch.from_numpy(letters),
        )


def _put(played: np.ndarray, samples: np.ndarray, run: Placed) -> None:
    samples[run.at : run.at + played.size] = played


def _by_itself(said: Said) -> Said:
    """Return a passage as it is said in the stretch of its window that is around it."""
    first, _ = _positions(said)
    begin_s = max(0, first - AROUND) * TIMESTAMP_STEP_S
    return Said(said.start_s - begin_s, said.end_s - begin_s, said.text)


def _joined_phones(examples: list[Example]) -> torch.Tensor | None:
    told = [one.phones for one in examples if one.phones is not None]
    return torch.from_numpy(np.stack(told)) if len(told) == len(examples) else None


def _num_frames(said: list[Said], draw: np.random.Generator) -> int:
    """Return the frames up to the last word and up to a second of silence, and to a whole second.

    Where nothing is said, the last word might have been anywhere. Kernels are made for each length:
    of thirty they are kept.
    """
    last_s = max(one.end_s for one in said) if said else draw.uniform(0, WINDOW_S)
    end_s = last_s + draw.uniform(0, _SILENCE_AFTER_S)
    return min(math.ceil(end_s), WINDOW_S) * FRAMES_PER_SECOND


def _position(sample: float) -> int:
    """Return the first position of the encoding whose middle is not before a sample."""
    step = TIMESTAMP_STEP_S * SAMPLE_RATE_HZ
    return max(0, math.ceil(sample / step - 0.5))


def _positions(said: Spoken | Said) -> tuple[int, int]:
    """Return the first position of the encoding at which a passage is heard, and the last."""
    last = _POSITIONS - 1
    first = min(int(said.start_s / TIMESTAMP_STEP_S), last)
    return first, min(max(int(said.end_s / TIMESTAMP_STEP_S), first), last)
