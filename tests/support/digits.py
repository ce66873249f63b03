"""Spoken digits as material to train on: single words joined into utterances, made different.

In: recordings of single digits, in the folder `train` of CORPUS_ASR_TEST_DATA. Out: features and
texts of utterances. Speakers are kept apart, so that a model can be asked about voices that it has
never heard.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
from jaxtyping import Float32, Int64

from corpus_asr.features.fbank import kaldi_fbank, mean_variance_normalised
from corpus_asr.models.speech2text import (
    Speech2TextFeatureExtractor,
    Speech2TextProcessor,
    Speech2TextTokenizer,
)
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.oracles import read_audio

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MEL_BINS = 80

Features = Float32[np.ndarray, "frame mel"]
Samples = Float32[np.ndarray, " sample"]

SPEEDS = (0.8, 0.9, 1.0, 1.1, 1.25)
PEAK = 0.3  # of all clips: some speakers were recorded at a tenth of that, others at twice
NOISE = (5e-5, 2e-3)  # faintest and loudest between words
TELEPHONE_HZ = (0.0, 3_900.0)  # of the people's recordings, which were made at 8 kHz
CUT = (1.5, 8.0)  # nats below a word's loudest frame at which some recordings begin and end


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One digit said once."""

    word: int
    speaker: str
    samples: Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """Words one after the other."""

    features: Features
    text: str
    heard: Int64[np.ndarray, " frame"]
    """Which digit each frame is part of; -1 in pauses."""


def clips(data: Path) -> list[Clip]:
    """Read all recordings of single digits."""
    folder = data / "train"
    rows = map(json.loads, (folder / "manifest.jsonl").read_text().splitlines())
    return [
        Clip(
            word=WORDS.index(row["text"]),
            speaker=row["speaker"].removeprefix("fsdd_"),
            samples=levelled(read_audio(folder / row["path"])),
        )
        for row in rows
        if row["corpus"] == "fsdd"
    ]


def levelled(samples: Samples) -> Samples:
    """Make the loudest sample `PEAK`."""
    return samples * np.float32(PEAK / np.abs(samples).max())


def digit_processor(folder: Path) -> Speech2TextProcessor:
    """Train a tokenizer whose pieces are whole digits, and save it with a feature extractor."""
    folder.mkdir(parents=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 20),
        model_writer=model,
        model_type="word",
        vocab_size=len(WORDS) + 4,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocabulary = {pieces.IdToPiece(at): at for at in range(len(pieces))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    tokenizer = Speech2TextTokenizer(folder / "vocab.json", folder / "sentencepiece.bpe.model")
    extractor = Speech2TextFeatureExtractor(feature_size=MEL_BINS, num_mel_bins=MEL_BINS)
    processor = Speech2TextProcessor(extractor, tokenizer)
    processor.save_pretrained(folder)
    return processor


def faster(samples: Samples, factor: float) -> Samples:
    """Play samples faster: higher and shorter."""
    places = np.arange(0, len(samples) - 1, factor)
    return np.interp(places, np.arange(len(samples)), samples).astype(np.float32)


def recording(
    chosen: Sequence[Clip], draw: np.random.Generator, *, pause_s: float = 0.09
) -> tuple[Samples, str]:
    """Join clips to a recording, with faint noise around them; return it and its text."""
    loudness = float(draw.uniform(2e-4, 1e-3))

    def pause() -> Samples:
        count = round(SAMPLE_RATE_HZ * pause_s * float(draw.uniform(0.5, 1.5)))
        return (loudness * draw.standard_normal(count)).astype(np.float32)

    pieces = [pause()]
    for clip in chosen:
        pieces += [clip.samples, pause()]
    return np.concatenate(pieces), " ".join(WORDS[clip.word] for clip in chosen)


class Utterances:
    """Draws utterances out of clips, never twice the same.

    Args:
        clips: their features are computed once, at each of `SPEEDS`.
        seed: of all draws.
    """

    def __init__(self, clips: Sequence[Clip], *, seed: int) -> None:
        self._draw = np.random.default_rng(seed)
        self._words = [clip.word for clip in clips]
        self._features = [
            [kaldi_fbank(faster(clip.samples, speed), num_mel_bins=MEL_BINS) for speed in SPEEDS]
            for clip in clips
        ]
        self._noise = kaldi_fbank(
            np.random.default_rng(seed).standard_normal(60 * SAMPLE_RATE_HZ).astype(np.float32),
            num_mel_bins=MEL_BINS,
        )

    def one(self, num_words: int) -> Utterance:
        """Return an utterance of so many words."""
        draw = self._draw
        picked = draw.integers(len(self._words), size=num_words)
        speed = int(draw.integers(len(SPEEDS)))
        noise_level = 2 * float(draw.uniform(*np.log(NOISE)))  # of log power
        pieces, heard = [self._pause(noise_level)], [-1]
        for at in picked:
            loudness = float(draw.uniform(-1.5, 1.5))
            word = self._cut(self._features[at][speed])
            pieces += [word + loudness, self._pause(noise_level)]
            heard += [self._words[at], -1]
        features = np.concatenate(pieces) @ _warp(float(draw.uniform(0.86, 1.16)))
        if draw.random() < 0.5:  # not in pauses alone
            features = np.logaddexp(features, self._noisy(len(features), noise_level))
        features = mean_variance_normalised(features.astype(np.float32))
        return Utterance(
            features=self._masked(features),
            text=" ".join(WORDS[self._words[at]] for at in picked),
            heard=np.repeat(heard, [len(piece) for piece in pieces]),
        )

    def _cut(self, word: Features) -> Features:
        """Take quiet ends away half the time, as some recordings are: `six` may end in its k."""
        if self._draw.random() < 0.5:
            return word
        loudness = word.mean(axis=1)
        loud = np.flatnonzero(loudness > loudness.max() - self._draw.uniform(*CUT))
        return word[loud[0] : loud[-1] + 1]

    def _pause(self, noise_level: float) -> Features:
        return self._noisy(int(self._draw.integers(2, 16)), noise_level)

    def _noisy(self, frames: int, level: float) -> Features:
        start = int(self._draw.integers(len(self._noise) - frames))
        return self._noise[start : start + frames] + np.float32(level)

    def _masked(self, features: Features) -> Features:
        """Hide spans of time and of mel bins (Park et al. 2019)."""
        draw = self._draw
        for axis, longest, spans in ((0, 6, len(features) // 80), (1, 12, 2)):
            for _ in range(spans):
                width = int(draw.integers(longest))
                start = int(draw.integers(max(1, features.shape[axis] - width)))
                hidden = slice(start, start + width)
                features[hidden if axis == 0 else (slice(None), hidden)] = 0.0
        return features


def _warp(factor: float) -> Float32[np.ndarray, "mel mel"]:
    """Return what moves mel bins up or down, as a longer or shorter vocal tract does."""
    places = np.clip(np.arange(MEL_BINS) * factor, 0, MEL_BINS - 1)
    low = np.minimum(places.astype(int), MEL_BINS - 2)
    matrix = np.zeros((MEL_BINS, MEL_BINS), np.float32)
    matrix[low, np.arange(MEL_BINS)] = 1.0 - (places - low)
    matrix[low + 1, np.arange(MEL_BINS)] = places - low
    return matrix
