"""Examples: one window as a network takes it, features and tokens, the same from any process.

Tokens are as Whisper trains (Radford et al. 2022, section 2.2 and figure 1): preceding text, which
has no loss, then start, language, task, and the text between timestamps or, after
`<|notimestamps|>`, alone; `<|nospeech|>` if there is none. Samples and features are augmented so
that no word moves in time.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch.utils.data import Dataset

from corpus_asr.array_types import Float32
from corpus_asr.audio.resample import band_limited
from corpus_asr.config.finetune import AugmentationSettings, WindowSettings
from corpus_asr.errors import ConfigError
from corpus_asr.families.pretrained import IGNORED_LABEL
from corpus_asr.families.whisper.encoder import mask_spans
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.features.mel import log_mel
from corpus_asr.training.audio_cache import AudioCache
from corpus_asr.training.windows import Epochs, Packing, Placed, Window
from corpus_asr.units import SAMPLE_RATE_HZ, TIMESTAMP_STEP_S, WINDOW_S, WINDOW_SAMPLES

_STEPS = round(WINDOW_S / TIMESTAMP_STEP_S)
# Windows without speech: digital silence, tones or noise, from inaudible to almost clipping.
_SILENCE_PROBABILITY = 0.2
_TONES_PROBABILITY = 0.4
_PEAK_DB = (-80.0, -3.0)
_MIN_PEAK = 1e-6
_PREVIOUS_CHARACTERS = 1_000  # more than half of the decoder's positions hold


@dataclass(frozen=True, slots=True)
class TimedText:
    """An utterance in its window."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """The decoder's tokens for one window, the end token last."""

    ids: tuple[int, ...]
    loss_from: int
    """Index of the first token with a loss."""


class LabelWriter:
    """Writes the tokens of windows."""

    def __init__(self, tokenizer: WhisperTokenizer, *, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    @property
    def room(self) -> int:
        """Tokens that the text of a window may take, timestamps included."""
        # start, language, task, <|notimestamps|> or the time of what is cut off; the end token is
        # not read
        return self._max_tokens - 4

    def count(self, text: str) -> int | None:
        """Count the tokens of a text; None where it holds control tokens."""
        ids = self._text(text)
        return None if any(i >= self._tokenizer.eot for i in ids) else len(ids)

    def check(self, language: str | None, *, task: str) -> None:
        """Raise ConfigError if a language is missing, or if the model does not know it."""
        self._prompt(language, task, timestamps=True)

    def row(
        self,
        texts: Sequence[TimedText],
        *,
        language: str | None,
        task: str,
        timestamps: bool,
        previous: str = "",
        begins_s: float | None = None,
    ) -> TokenRow:
        """Return the tokens of one window; `<|nospeech|>` if no text has words.

        `begins_s` is when an utterance begins that the window cuts off: that time is all that is
        in the target, so that decoding continues there (Radford et al. 2022, section 2.3).
        """
        tokenizer = self._tokenizer
        spoken = [timed for timed in texts if timed.text.strip()]
        if not spoken:
            return TokenRow(ids=(tokenizer.sot, tokenizer.no_speech, tokenizer.eot), loss_from=1)
        prompt = self._prompt(language, task, timestamps=timestamps)
        if timestamps:
            target = self._timed(spoken)
            if begins_s is not None:
                begin = min(round(begins_s / TIMESTAMP_STEP_S), _STEPS)
                target.append(max(tokenizer.timestamp_begin + begin, target[-1]))
        else:
            target = self._text(" ".join(timed.text.strip() for timed in spoken))
        before = self._before(previous, room=self._max_tokens - len(prompt) - len(target))
        ids = (*before, *prompt, *target, tokenizer.eot)
        return TokenRow(ids=ids, loss_from=len(before) + 1)

    def _prompt(self, language: str | None, task: str, *, timestamps: bool) -> Sequence[int]:
        try:
            return self._tokenizer.prompt(language, task, timestamps)
        except ValueError as error:
            raise ConfigError(
                f"writing labels: {error}; give data.language, or `language` in the manifest"
            ) from error

    def _timed(self, texts: Sequence[TimedText]) -> list[int]:
        ids: list[int] = []
        earliest = 0
        for timed in texts:
            # Utterances may overlap; timestamps never run backwards or past the window.
            start = min(max(round(timed.start_s / TIMESTAMP_STEP_S), earliest), _STEPS)
            earliest = min(max(round(timed.end_s / TIMESTAMP_STEP_S), start), _STEPS)
            begin = self._tokenizer.timestamp_begin
            ids += [begin + start, *self._text(timed.text), begin + earliest]
        return ids

    def _before(self, previous: str, *, room: int) -> Sequence[int]:
        # At most half of the positions, as in decoding: the transcript needs the others.
        room = min(room, self._max_tokens // 2) - 1
        ids = self._text(previous)[-room:] if previous and room > 0 else []
        return [self._tokenizer.start_of_prev, *ids] if ids else []

    def _text(self, text: str) -> list[int]:
        stripped = text.strip()
        return self._tokenizer.encode(f" {stripped}", add_special_tokens=False) if stripped else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One window."""

    features: Float32[np.ndarray, "mel frame"]
    tokens: TokenRow


class Examples(Dataset[Example]):
    """All windows of all epochs, numbered through."""

    def __init__(
        self,
        cache: AudioCache,
        labels: LabelWriter,
        *,
        windows: WindowSettings,
        augmentation: AugmentationSettings,
        num_mel_bins: int,
        seed: int,
    ) -> None:
        self._cache = cache
        self._silent = cache.silent
        self._labels = labels
        self._windows = windows
        self._augmentation = augmentation
        self._num_mel_bins = num_mel_bins
        packing = Packing(settings=windows, max_tokens=labels.room, speeds=augmentation.speed)
        self._epochs = Epochs(cache, packing, seed=seed)

    def __getitem__(self, number: int) -> Example:
        window = self._epochs.window(number)
        # The plan of the window has drawn from (*seed, 0).
        draw = np.random.default_rng((*window.seed, 1))
        timestamps = bool(draw.random() < self._windows.timestamp_probability)
        samples, texts = self._contents(window) if window.runs else (self._silence(draw), [])
        has_text = any(timed.text.strip() for timed in texts)
        # Without timestamps no target can say that an utterance is cut off.
        truncated = window.truncated if timestamps and has_text else None
        if truncated is not None:
            self._play(truncated, window.speed, samples)
        samples = change_samples(samples, self._augmentation, draw, noise=self._noise)
        features = log_mel(samples, num_mel_bins=self._num_mel_bins)
        mask(features, self._augmentation, draw)
        # Drawn for windows without speech too, so that settings move no other random numbers.
        prompted = draw.random() < self._windows.condition_on_prev_probability
        language, previous = None, ""
        if window.runs:
            first = window.runs[0].first
            language = self._cache.language(first)
            if prompted:
                previous = self._cache.text_before(first, characters=_PREVIOUS_CHARACTERS)
        tokens = self._labels.row(
            texts,
            language=language,
            task=self._windows.task,
            timestamps=timestamps,
            previous=previous,
            begins_s=None if truncated is None else truncated.at / SAMPLE_RATE_HZ,
        )
        return Example(features=features, tokens=tokens)

    def _contents(self, window: Window) -> tuple[np.ndarray, list[TimedText]]:
        samples = np.zeros(WINDOW_SAMPLES, np.float32)
        texts: list[TimedText] = []
        for run in window.runs:
            self._play(run, window.speed, samples)
            texts += self._texts(run, window.speed)
        return samples, texts

    def _play(self, run: Placed, speed: float, samples: np.ndarray) -> None:
        begin = int(self._cache.start[run.first])
        end = self._cache.ends(slice(run.first, run.end))
        played = faster(self._cache.samples(begin, end), speed)[: WINDOW_SAMPLES - run.at]
        samples[run.at : run.at + played.size] = played

    def _texts(self, run: Placed, speed: float) -> Iterator[TimedText]:
        begin = int(self._cache.start[run.first])
        for utterance in range(run.first, run.end):
            start = run.at + (int(self._cache.start[utterance]) - begin) / speed
            end = run.at + (int(self._cache.end[utterance]) - begin) / speed
            yield TimedText(
                start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ, self._cache.text(utterance)
            )

    def _silence(self, draw: np.random.Generator) -> np.ndarray:
        # Noise and tones at any level: models hallucinate in silence and in music alike.
        if draw.random() < _SILENCE_PROBABILITY:
            return np.zeros(WINDOW_SAMPLES, np.float32)
        with_tones = draw.random() < _TONES_PROBABILITY
        noise = tones(draw, WINDOW_SAMPLES) if with_tones else self._noise(draw)
        peak = 10 ** (draw.uniform(*_PEAK_DB) / 20)
        return noise * np.float32(peak / max(float(np.abs(noise).max()), _MIN_PEAK))

    def _noise(self, draw: np.random.Generator) -> np.ndarray:
        # Recorded noise half the time: it sounds like the data, but there is little of it.
        if draw.random() < 0.5 or not len(self._silent):
            return colored_noise(draw, WINDOW_SAMPLES)
        chosen = draw.choice(self._silent)
        begin, end = int(self._cache.start[chosen]), int(self._cache.end[chosen])
        audio = self._cache.samples(begin, end)
        # Rolled, so that a short recording is not the same noise in each window.
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
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory; `DataLoader` calls this."""
        return self._mapped(torch.Tensor.pin_memory)

    def _mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        return Batch(**{field.name: change(getattr(self, field.name)) for field in fields(self)})


def collate(examples: list[Example], *, padding: int) -> Batch:
    """Stack examples into a batch; padding has no loss."""
    rows = [example.tokens for example in examples]
    # The last token is predicted only, never read.
    inputs = torch.full((len(rows), max(len(row.ids) for row in rows) - 1), padding)
    labels = torch.full_like(inputs, IGNORED_LABEL)
    for number, row in enumerate(rows):
        ids = torch.tensor(row.ids)
        inputs[number, : len(ids) - 1] = ids[:-1]
        labels[number, row.loss_from - 1 : len(ids) - 1] = ids[row.loss_from :]
    features = torch.from_numpy(np.stack([example.features for example in examples]))
    return Batch(features=features, inputs=inputs, labels=labels)


Samples = Float32[np.ndarray, " sample"]

# Ranges of the cutoff frequencies: telephones pass about 300 to 3,400 Hz.
_TELEPHONE_HZ = ((150.0, 400.0), (2_800.0, 4_000.0))
_MIN_LEVEL = 1e-5  # below 16-bit rounding: keeps ratios of levels finite
_MIN_TIME_MASKS = 2  # the default of transformers' mask_time_min_masks
# Synthetic notes, from a drum's beat to a held chord
_NOTE_S = (0.1, 2.0)
_OVERTONE_DECAY = (0.5, 6.0)  # exponent of 1/n; at 6 next to none are left: a whistle, a signal
_FADE_OUT_S = (0.1, 5.0)
_ATTACK_SAMPLES = 160  # 10 ms, so that notes begin without a click
_REST_PROBABILITY = 0.2
_STEADY_PROBABILITY = 0.5
_CHORD_PROBABILITY = 0.5


def change_samples(
    samples: Samples,
    settings: AugmentationSettings,
    draw: np.random.Generator,
    *,
    noise: Callable[[np.random.Generator], Samples],
) -> Samples:
    """Return samples as another room, microphone and distance would have them.

    `noise` draws as many samples; it is called only if noise is added, as drawing is slow.
    """
    if draw.random() < settings.reverb_probability:
        samples = reverberated(samples, draw, decay_s=float(draw.uniform(*settings.reverb_rt60_s)))
    if draw.random() < settings.noise_probability:
        snr_db = float(draw.uniform(*settings.noise_snr_db))
        samples = with_noise(samples, noise(draw), snr_db=snr_db)
    if draw.random() < settings.telephone_probability:
        samples = band_limited(samples, *(float(draw.uniform(*ends)) for ends in _TELEPHONE_HZ))
    gain = np.float32(10 ** (draw.uniform(*settings.gain_db) / 20))
    # Clipped as by a recorder.
    return np.clip(samples * gain, -1.0, 1.0)


def reverberated(samples: Samples, draw: np.random.Generator, *, decay_s: float) -> Samples:
    """Add a room's echoes: noise that decays by 60 dB in `decay_s` (Moorer 1979)."""
    count = round(decay_s * SAMPLE_RATE_HZ)
    decay = 10.0 ** (-3.0 * np.arange(count) / max(1, count))
    response = 0.05 * draw.standard_normal(count) * decay
    # The direct sound, before all echoes.
    response[0] = 1.0
    # Room for the tail, so that echoes of the end do not wrap around to the start.
    size = _fast_size(samples.size + count)
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
    reverberant = np.fft.irfft(spectrum, size)[: samples.size]
    # As loud as before: levels are what `gain_db` changes.
    gain = _level(samples) / max(_level(reverberant), _MIN_LEVEL)
    return (reverberant * gain).astype(np.float32)


def colored_noise(draw: np.random.Generator, count: int) -> Samples:
    """Draw noise whose power falls with frequency by a drawn slope: white, pink, brown."""
    slope = draw.uniform(0.0, 1.0)
    spectrum = np.fft.rfft(draw.standard_normal(count))
    # The constant part has no frequency to divide by.
    spectrum /= np.maximum(1.0, np.arange(spectrum.size)) ** slope
    return np.fft.irfft(spectrum, count).astype(np.float32)


def tones(draw: np.random.Generator, count: int) -> Samples:
    """Draw notes as instruments and signals make them: up to four at a time, with overtones.

    Half the time these are chords, whose notes begin and end together.
    """
    mixed = np.zeros(count, np.float32)
    chord = _notes(draw, count) if draw.random() < _CHORD_PROBABILITY else None
    for _ in range(int(draw.integers(1, 5))):
        loudness = 1.0 / np.arange(1, int(draw.integers(2, 8))) ** draw.uniform(*_OVERTONE_DECAY)
        for place in chord or _notes(draw, count):
            note = mixed[place]
            note += _note(draw, loudness, note.size)
    return mixed


def _notes(draw: np.random.Generator, count: int) -> list[slice]:
    """Draw where notes are that follow one another: of any length, or of one, like a beat's."""
    longest_s = float(draw.uniform(*_NOTE_S))
    shortest = 1.0 if draw.random() < _STEADY_PROBABILITY else 0.2
    places: list[slice] = []
    at = int(draw.integers(0, SAMPLE_RATE_HZ))
    while at < count:
        length = round(draw.uniform(shortest, 1.0) * longest_s * SAMPLE_RATE_HZ)
        places.append(slice(at, at + length))
        at += length + int(draw.random() < _REST_PROBABILITY) * length
    return places


def with_noise(samples: Samples, noise: Samples, *, snr_db: float) -> Samples:
    """Add noise that is `snr_db` weaker than the samples; digital silence gets next to none."""
    wanted = max(_level(samples), _MIN_LEVEL) * 10 ** (-snr_db / 20)
    return samples + noise * np.float32(wanted / max(_level(noise), _MIN_LEVEL))


def faster(samples: Samples, factor: float) -> Float32[np.ndarray, " played"]:
    """Play samples faster: shorter, and higher."""
    if factor == 1.0:
        return samples
    places = np.arange(0, samples.size - 1, factor)
    played: np.ndarray = np.interp(places, np.arange(samples.size), samples).astype(np.float32)
    return played


def mask(
    features: Float32[np.ndarray, "mel frame"],
    settings: AugmentationSettings,
    draw: np.random.Generator,
) -> None:
    """Set time spans and mel bands to zero in place, as transformers' SpecAugment does."""
    # Whisper's SpecAugment draws from numpy's older generators.
    older = np.random.RandomState(int(draw.integers(2**32)))
    for axis, probability, length, min_spans in (
        (features.T, settings.mask_time_prob, settings.mask_time_length, _MIN_TIME_MASKS),
        (features, settings.mask_feature_prob, settings.mask_feature_length, 0),
    ):
        if probability > 0:
            [masked] = mask_spans(
                (1, len(axis)),
                probability=probability,
                length=length,
                min_spans=min_spans,
                draw=older,
            )
            axis[masked] = 0.0


def _note(draw: np.random.Generator, loudness: np.ndarray, count: int) -> Samples:
    hz = 55.0 * 2.0 ** (draw.integers(0, 61) / 12)  # from A1 on, five octaves of half tones
    phase = np.arange(count) * (2 * np.pi * hz / SAMPLE_RATE_HZ)
    sound = np.zeros(count, np.float32)
    for n, amplitude in enumerate(loudness):
        sound += np.float32(amplitude) * np.sin((n + 1) * phase).astype(np.float32)
    fade_out = np.exp(-np.arange(count) / (draw.uniform(*_FADE_OUT_S) * SAMPLE_RATE_HZ))
    attack = np.minimum(1.0, np.arange(count) / _ATTACK_SAMPLES)
    return sound * (fade_out * attack).astype(np.float32)


def _fast_size(count: int) -> int:
    """Return the smallest size from `count` on whose transform is fast: its factors are 2, 3, 5."""
    sizes = [threes * fives for threes in (1, 3, 9, 27) for fives in (1, 5, 25, 125)]
    return min(odd << (max(1, math.ceil(count / odd)) - 1).bit_length() for odd in sizes)


def _level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
