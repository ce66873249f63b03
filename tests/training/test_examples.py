"""Windows as the model reads them: token rows as Whisper was trained, augmented audio."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_asr.audio.resample import band_limited
from corpus_asr.config.finetune import AugmentationSettings, DataSettings, WindowSettings
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.training.audio_cache import prepare
from corpus_asr.training.examples import (
    Examples,
    LabelWriter,
    TimedText,
    TokenRow,
    change_samples,
    colored_noise,
    faster,
    mask,
    reverberated,
    tones,
    with_noise,
)
from corpus_asr.training.utterances import Utterance
from corpus_asr.units import SAMPLE_RATE_HZ, TIMESTAMP_STEP_S
from tests.support.audio import level, noise, share_of_tone, tone, wav_bytes
from tests.support.tokenizers import tiny_tokenizer

TEXTS = (TimedText(0.5, 1.24, "ask what you can do "), TimedText(1.3, 2.0, "for your country."))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> WhisperTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(folder)
    return WhisperTokenizer.from_pretrained(folder)


def text_of(tokenizer: WhisperTokenizer, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(ids, decode_with_timestamps=True))


def row_of(
    tokenizer: WhisperTokenizer,
    texts: Sequence[TimedText] = TEXTS,
    *,
    max_tokens: int = 100,
    **options: Any,
) -> TokenRow:
    usual: dict[str, Any] = {"language": "en", "task": "transcribe", "timestamps": True}
    return LabelWriter(tokenizer, max_tokens=max_tokens).row(texts, **usual | options)


def test_times_stand_around_each_passage(tokenizer: WhisperTokenizer) -> None:
    row = row_of(tokenizer)
    assert row.loss_from == 1
    assert text_of(tokenizer, row.ids) == (
        "<|startoftranscript|><|en|><|transcribe|><|0.50|> ask what you can do<|1.24|>"
        "<|1.30|> for your country.<|2.00|><|endoftext|>"
    )


def test_of_what_is_cut_off_the_time_alone_is_written(tokenizer: WhisperTokenizer) -> None:
    row = row_of(tokenizer, begins_s=2.5)
    assert text_of(tokenizer, row.ids).endswith(" for your country.<|2.00|><|2.50|><|endoftext|>")
    early = row_of(tokenizer, begins_s=1.0)
    assert text_of(tokenizer, early.ids).endswith("<|2.00|><|2.00|><|endoftext|>")


def test_without_times_the_text_runs_on(tokenizer: WhisperTokenizer) -> None:
    row = row_of(tokenizer, language="de", task="translate", timestamps=False)
    assert text_of(tokenizer, row.ids) == (
        "<|startoftranscript|><|de|><|translate|><|notimestamps|> ask what you can do for your "
        "country.<|endoftext|>"
    )
    # as the tokenizer itself writes labels
    tokenizer.set_prefix_tokens(language="de", task="translate", predict_timestamps=False)
    own = tokenizer(" ask what you can do for your country.").input_ids
    assert list(row.ids) == own


def test_earlier_text_is_read_and_not_learnt(tokenizer: WhisperTokenizer) -> None:
    row = row_of(tokenizer, timestamps=False, previous="And so my fellow")
    before = text_of(tokenizer, row.ids[: row.loss_from])
    assert before == "<|startofprev|> And so my fellow<|startoftranscript|>"
    assert tokenizer.decode(row.ids[row.loss_from - 1 : row.loss_from]) == ("<|startoftranscript|>")


def test_earlier_text_gives_way(tokenizer: WhisperTokenizer) -> None:
    long = "your country " * 60
    bare = row_of(tokenizer, max_tokens=60)
    row = row_of(tokenizer, max_tokens=60, previous=long)
    assert row.ids[row.loss_from - 1 :] == bare.ids
    assert len(row.ids) - 1 <= 60  # what the decoder reads
    assert row.loss_from - 1 <= 30  # at most half, as in decoding
    full = row_of(tokenizer, max_tokens=len(bare.ids) - 1, previous=long)
    assert full == bare


def test_silence_is_a_token(tokenizer: WhisperTokenizer) -> None:
    for texts in ((), (TimedText(0.0, 3.0, ""),)):
        row = row_of(tokenizer, texts, language=None)
        assert row.ids == (tokenizer.sot, tokenizer.no_speech, tokenizer.eot)


def test_times_never_run_backwards_or_out_of_the_window(tokenizer: WhisperTokenizer) -> None:
    texts = (TimedText(1.0, 3.0, "ask"), TimedText(2.0, 2.5, "what"), TimedText(29.5, 31.0, "you"))
    row = row_of(tokenizer, texts)
    times = [i - tokenizer.timestamp_begin for i in row.ids if i >= tokenizer.timestamp_begin]
    assert times == [50, 150, 150, 150, 1475, 1500]


def test_control_tokens_in_texts_are_found(tokenizer: WhisperTokenizer) -> None:
    writer = LabelWriter(tokenizer, max_tokens=100)
    expected = len(tokenizer(" ask what", add_special_tokens=False).input_ids)
    texts = ("ask what", "", "ask <|endoftext|> what", "<|1.00|>")
    assert [writer.count(text) for text in texts] == [expected, 0, None, None]


@pytest.mark.long
def test_a_truncated_utterance_fills_the_window_only_with_timestamps(
    tokenizer: WhisperTokenizer, tmp_path: Path
) -> None:
    labels = LabelWriter(tokenizer, max_tokens=448)
    utterances = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.wav"
        path.write_bytes(wav_bytes(noise(20.0), rate_hz=16_000))
        utterances.append(Utterance(uri=str(path), text=name, language="en"))
    data = DataSettings(train=("manifest.jsonl",))
    cache = prepare(utterances, tmp_path / "cache", data, count_tokens=labels.count, max_tokens=400)
    settings: dict[str, Any] = {
        "max_pause_s": 0.0,
        "no_speech_fraction": 0.0,
        "truncation_probability": 1.0,
    }
    options: dict[str, Any] = {"augmentation": AugmentationSettings(), "num_mel_bins": 80}
    found = []
    for probability in (0.0, 1.0):
        windows = WindowSettings(timestamp_probability=probability, **settings)
        example = Examples(cache, labels, windows=windows, seed=0, **options)[0]
        times = [i for i in example.tokens.ids if i >= tokenizer.timestamp_begin]
        level = example.features.mean(axis=0)
        found.append((times, level[2100:].mean() - level[100:1900].mean()))
    (no_times, silent), (times, loud) = found
    assert no_times == []
    assert silent < -0.3
    assert len(times) == 3
    assert times[-1] - times[0] == round(20 / TIMESTAMP_STEP_S)
    assert loud == pytest.approx(0.0, abs=0.1)


DRAW_SEED = 3


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(DRAW_SEED)


def hiss(_: object) -> np.ndarray:
    return noise(1.0)[0]


def test_nothing_is_changed_by_default(draw: np.random.Generator) -> None:
    samples = tone(1.0)[0]
    assert (change_samples(samples, AugmentationSettings(), draw, noise=hiss) == samples).all()
    features = np.ones((80, 3000), np.float32)
    mask(features, AugmentationSettings(), draw)
    assert (features == 1).all()


def test_everything_at_once_keeps_length_and_range() -> None:
    often = AugmentationSettings(
        noise_probability=1.0, reverb_probability=1.0, telephone_probability=1.0, gain_db=(6.0, 6.0)
    )
    samples = tone(1.0, amplitude=0.9)[0]
    changed, again = (
        change_samples(samples, often, np.random.default_rng(DRAW_SEED), noise=hiss)
        for _ in range(2)
    )
    assert changed.shape == samples.shape
    assert changed.dtype == np.float32
    assert np.abs(changed).max() <= 1.0
    assert (changed == again).all()


def test_noise_is_as_loud_as_asked() -> None:
    samples, unwanted = tone(1.0)[0], noise(1.0)[0]
    for snr_db in (0.0, 20.0):
        added = with_noise(samples, unwanted, snr_db=snr_db) - samples
        found_db = 20 * np.log10(level(samples) / level(added))
        assert found_db == pytest.approx(snr_db, abs=0.01)
    silent = np.zeros(SAMPLE_RATE_HZ, np.float32)
    assert np.abs(with_noise(silent, unwanted, snr_db=0.0)).max() < 1e-4


def test_a_telephone_loses_what_is_low_and_high() -> None:
    low, mid, high = (tone(1.0, hz=hz)[0] for hz in (60.0, 1000.0, 6000.0))
    transcribed = band_limited(low + mid + high, 300.0, 3400.0)
    assert share_of_tone(transcribed, 1000.0) > 0.99
    assert share_of_tone(band_limited(low + high, 0.0, 3400.0), 60.0) > 0.99


def test_echoes_follow_and_keep_the_level(draw: np.random.Generator) -> None:
    click = np.zeros(SAMPLE_RATE_HZ, np.float32)
    click[100] = 1.0
    transcribed = reverberated(click, draw, decay_s=0.3)
    assert np.abs(transcribed[:99]).max() < 1e-6
    assert level(transcribed[200:2000]) > 10 * level(transcribed[5000:7000])
    assert level(transcribed) == pytest.approx(level(click), rel=1e-3)


def test_faster_is_shorter_and_higher() -> None:
    played = faster(tone(2.0, hz=500.0)[0], 1.25)
    assert played.size == pytest.approx(1.6 * SAMPLE_RATE_HZ, abs=2)
    assert share_of_tone(played, 625.0) > 0.98


def test_noise_has_a_color(draw: np.random.Generator) -> None:
    drawn = [colored_noise(draw, SAMPLE_RATE_HZ) for _ in range(8)]

    def low_share(samples: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(samples)) ** 2
        return float(power[:1000].sum() / power.sum())

    shares = [low_share(samples) for samples in drawn]
    assert min(shares) < 0.4 < 0.9 < max(shares)


def test_notes_are_sounds_at_half_tones_that_start_and_end(draw: np.random.Generator) -> None:
    transcribed = tones(draw, 10 * SAMPLE_RATE_HZ)
    assert transcribed.dtype == np.float32
    assert np.isfinite(transcribed).all()
    assert np.abs(transcribed).max() > 0.5
    power = np.abs(np.fft.rfft(transcribed)) ** 2
    strongest = np.sort(power)[-power.size // 100 :].sum()
    assert strongest > 0.5 * power.sum()  # lines, unlike noise
    assert not np.array_equal(transcribed, tones(draw, transcribed.size))


def test_masks_hide_spans_of_the_length_asked(draw: np.random.Generator) -> None:
    features = np.ones((80, 3000), np.float32)
    settings = AugmentationSettings(
        mask_time_prob=0.03, mask_time_length=50, mask_feature_prob=0.1, mask_feature_length=8
    )
    mask(features, settings, draw)
    hidden_frames = (features == 0).all(axis=0).sum()
    hidden_bins = (features == 0).all(axis=1).sum()
    assert 50 <= hidden_frames <= 100
    assert hidden_bins == 8
