"""Words and their times are openai-whisper's; paths and medians are those of transformers."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import scipy.ndimage
import torch
import whisper
import whisper.timing
import whisper.tokenizer
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter
from whisper.timing import WordTiming, merge_punctuations
from whisper.tokenizer import Tokenizer, get_tokenizer

from corpus_asr.decoding.alignment import begins_on_path, median_filter, token_begins
from corpus_asr.decoding.jobs import AlignJob, AlignResult
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.segments import Word
from corpus_asr.text import line_breaks
from corpus_asr.text.words import merge_punctuation
from corpus_asr.transcription.whisper_prompt import PromptFormat
from corpus_asr.transcription.windows import Language, Window
from corpus_asr.transcription.words import (
    DraftSegment,
    last_word_end,
    sentences,
    split_words,
    time_words,
)
from tests.support.checkpoints import tiny_whisper
from tests.support.prompt_formats import prompt_format
from tests.support.references import align_with, openai_whisper, run
from tests.support.tokenizers import real_tokenizer

PARAGRAPH = {
    "en": [" Once, there was", ' a king. "Listen!" he said:', " and so (at last) it ended."],
    "de": [" Der Nordwind und die Sonne stritten sich.", " Wer wäre der Stärkere?"],
    "ja": ["北風と太陽が、", "どちらが強いかを言い争っていました。"],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    real_tokenizer(folder / "tokenizer")
    return tiny_whisper(folder / "model", tokenizer=folder / "tokenizer", seed=3, spread=0.2)


@pytest.fixture(scope="module")
def network(checkpoint: Path) -> whisper.Whisper:
    return openai_whisper(checkpoint)


@pytest.fixture(scope="module", autouse=True)
def _without_compiling() -> Iterator[None]:
    """Let the oracle take transformers' path, which is the same, rather than compile its own."""
    path = lambda cost: np.array(_dynamic_time_warping(cost))  # noqa: E731
    with mock.patch.object(whisper.timing, "dtw_cpu", path):
        yield


def window(features: np.ndarray, frames: int, *, seek: int = 0, end: int = 3000) -> Window:
    return Window(
        seek=seek,
        end=end,
        content_frames=frames,
        features=features,
        num_frames=None,
        language=Language(code=None, probability=None),
        prompt=(),
        max_new_tokens=0,
    )


def mel(seed: int) -> np.ndarray:
    """Loud and quiet stretches of noise."""
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.normal(size=(1, 60)), 50, axis=1)
    return (rng.normal(size=(80, 3000)) * 0.3 + loudness).astype(np.float32)


@pytest.fixture(params=[None, ((0, 1), (1, 0), (1, 3))], ids=["upper half", "named heads"])
def own(request: pytest.FixtureRequest, checkpoint: Path, network: whisper.Whisper) -> PromptFormat:
    found = PromptFormat.from_folder(checkpoint)
    heads = request.param or found.alignment_heads
    align_with(network, heads)
    return replace(found, alignment_heads=heads)


def same_words(words: Sequence[Word], expected: Sequence[tuple[str, float, float, float]]) -> None:
    found = [(word.word, word.start_s, word.end_s) for word in words]
    assert found == [(text, start_s, end_s) for text, start_s, end_s, _ in expected]
    probabilities = [probability for *_, probability in expected]
    assert [w.probability for w in words] == pytest.approx(probabilities, rel=1e-3, abs=1e-7)


@pytest.mark.long
@pytest.mark.parametrize(
    ("seed", "language"),
    [
        (0, "en"),
        (1, "de"),
        (2, "ja"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((3, "en"), (4, "de"))),
    ],
)
def test_words_times_and_probabilities_are_those_of_openai_whisper(
    network: whisper.Whisper, own: PromptFormat, language: str, seed: int
) -> None:
    rng = random.Random(seed)
    encode = get_tokenizer(True, num_languages=99).encode
    start_s = rng.choice([0.0, 1.5, 612.34])
    edges = sorted(rng.uniform(0, 20) for _ in range(2 * len(PARAGRAPH[language])))
    stretches = [
        DraftSegment(tokens=tuple(encode(text)), start_s=start_s + begin, end_s=start_s + end)
        for text, begin, end in zip(PARAGRAPH[language], edges[::2], edges[1::2], strict=True)
    ]
    features, frames = mel(seed), (620, 777, 900, 2000, 301)[seed]
    last_speech_s = max(0.0, start_s - rng.choice([0.0, 1.0, 30.0]))
    steps = time_words(
        stretches,
        window(features, frames),
        start_s=start_s,
        alignment=own.alignment(language, "transcribe"),
        last_speech_s=last_speech_s,
    )
    found = run(steps, network)
    wanted: list[dict[str, Any]] = [
        {"seek": round(start_s * 100), "start": s.start_s, "end": s.end_s, "tokens": list(s.tokens)}
        for s in stretches
    ]
    whisper.timing.add_word_timestamps(
        segments=wanted,
        model=network,
        tokenizer=get_tokenizer(True, num_languages=99, language=language, task="transcribe"),
        mel=torch.tensor(features),
        num_frames=frames,
        last_speech_timestamp=last_speech_s,
    )
    assert [stretch.tokens for stretch in found] == [stretch.tokens for stretch in stretches]
    for stretch, segment in zip(found, wanted, strict=True):
        assert (stretch.start_s, stretch.end_s) == (segment["start"], segment["end"])
        # Here words lie within their segment, there the first and the last need not.
        start_s, end_s = segment["start"], segment["end"]
        same_words(
            stretch.words,
            [
                (w["word"], max(w["start"], start_s), min(w["end"], end_s), w["probability"])
                for w in segment["words"]
            ],
        )


# By hand: a checkpoint that knows ten words, and attention laid out as wanted.


def attention(places: Sequence[int], *, positions: int = 100) -> AlignResult:
    """Each token after the two of the prompt looks at one place; so does the end token."""
    weights = np.full((1, 2 + len(places), positions), 1e-3, dtype=np.float32)
    for token, place in enumerate(places):
        weights[0, 1 + token, max(0, place - 4) : place + 5] = 1.0
    return AlignResult(weights=weights, logprobs=(-1.0,) + (-0.5,) * len(places))


SILENT = np.zeros((2, 4), dtype=np.float32)
SAID = DraftSegment(tokens=(1, 2), start_s=10.0, end_s=12.0)


def timed(
    stretches: Sequence[DraftSegment],
    answer: AlignResult,
    *,
    frames: int = 200,
    start_s: float = 10.0,
    last_speech_s: float = 9.0,
) -> tuple[list[DraftSegment], AlignJob]:
    steps = time_words(
        stretches,
        window(SILENT, frames, seek=7),
        start_s=start_s,
        last_speech_s=last_speech_s,
        alignment=prompt_format(alignment_heads=((0, 0),)).alignment("en", "transcribe"),
    )
    job = next(steps)
    assert job.timing is not None
    assert answer.weights is not None
    begins = token_begins(answer.weights, job.timing)
    with pytest.raises(StopIteration) as stop:
        steps.send(replace(answer, weights=None, begins=begins))
    return stop.value.value, job


def test_a_token_that_cannot_be_text_makes_its_word_improbable_and_no_more() -> None:
    answer = attention([10, 30, 50])
    answer = AlignResult(weights=answer.weights, logprobs=(-1.0, -np.inf, -0.5))
    found, _ = timed([SAID], answer)
    assert [word.probability for word in found[0].words] == [0.0, pytest.approx(np.exp(-0.5))]


def test_segments_without_text_stay_as_they_are_between_those_with_words() -> None:
    empty = DraftSegment(tokens=(), start_s=10.5, end_s=10.7)
    said = DraftSegment(tokens=(1,), start_s=10.0, end_s=11.0)
    found, _ = timed([empty, said, empty], attention([10, 30]))
    assert found[0] == found[2] == empty
    assert [len(stretch.words) for stretch in found] == [0, 1, 0]
    assert last_word_end(found) == found[1].words[-1].end_s
    assert (last_word_end([empty]), last_word_end([])) == (empty.end_s, None)


def test_a_window_of_hardly_any_audio_has_words_without_length() -> None:
    for frames in range(4):
        found, _ = timed([SAID], attention([10, 30, 50]), frames=frames)
        assert [(word.start_s, word.end_s) for word in found[0].words] == [(10.0, 10.0)] * 2


@pytest.mark.parametrize("start_s", [0.5, 10.0])
def test_no_word_lies_outside_what_is_heard(start_s: float) -> None:
    """A clip has audio before and after it, which its words have nothing to do with."""
    end_s = start_s + 3.0
    for seed in range(60):
        draw = random.Random(seed)
        count = draw.randint(1, 4)
        edges = sorted(round(start_s + draw.uniform(0, 3), 2) for _ in range(2))
        found, _ = timed(
            [DraftSegment(tokens=(1,) * count, start_s=edges[0], end_s=edges[1])],
            attention(sorted(draw.choices(range(150), k=count + 1)), positions=150),
            start_s=start_s,
            frames=300,
            last_speech_s=0.0,
        )
        for word in found[0].words:
            assert start_s <= word.start_s <= word.end_s <= end_s, seed
            assert found[0].start_s <= word.start_s <= word.end_s <= found[0].end_s, seed


def test_attention_that_says_nothing_gives_times_all_the_same() -> None:
    answer = AlignResult(
        weights=np.zeros((1, 5, 100), dtype=np.float32), logprobs=(-1.0, -0.5, -0.5, -0.5)
    )
    found, _ = timed([SAID], answer)
    for word in found[0].words:
        assert 10.0 <= word.start_s <= word.end_s <= 12.0


def test_text_that_fills_the_decoder_is_read_without_the_end_token() -> None:
    long = replace(SAID, tokens=(1,) * 22)
    _, job = timed([long], attention(range(0, 88, 4)))
    assert job.tokens == (30, 32, *long.tokens)


SHAPES = array_shapes(min_dims=2, max_dims=2, max_side=9)
# Few values, so that many ways cost the same.
TIED = arrays(np.float64, SHAPES, elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0]))
ANY = arrays(np.float64, SHAPES, elements=st.floats(-1e3, 1e3))


def assert_same_path(cost: np.ndarray) -> None:
    # A way is known by where it comes to each token.
    tokens, positions = _dynamic_time_warping(cost)
    comes = np.diff(tokens, prepend=-1).astype(bool)
    assert begins_on_path(cost) == positions[comes].tolist()


@given(TIED | ANY)
def test_the_path_is_that_of_transformers(cost: np.ndarray) -> None:
    assert_same_path(cost)


@pytest.mark.parametrize("width", [1, 3, 7, 13])
@pytest.mark.parametrize("shape", [(20,), (3, 20), (2, 3, 17), (2, 1, 300, 301)])
def test_the_median_is_that_of_scipy_and_transformers(shape: tuple[int, ...], width: int) -> None:
    weights = np.random.default_rng(width).normal(size=shape).astype(np.float32)
    before = weights.copy()
    found = median_filter(weights, width)
    window = (1,) * (len(shape) - 1) + (width,)
    np.testing.assert_array_equal(
        found, scipy.ndimage.median_filter(weights, window, mode="mirror")
    )
    np.testing.assert_array_equal(weights, before)
    if len(shape) >= 3:
        wanted = _median_filter(torch.from_numpy(weights), width)
        np.testing.assert_array_equal(found, wanted.numpy())


def test_rows_too_short_to_reflect_and_no_numbers_are_filtered_as_transformers_does() -> None:
    # A short row comes back as it is; what is no number counts as the largest.
    for length, width in ((1, 7), (2, 7), (3, 7), (12, 5)):
        weights = np.random.default_rng(length).normal(size=(1, 3, length)).astype(np.float32)
        weights[..., 3:5] = np.nan
        wanted = _median_filter(torch.from_numpy(weights), width).numpy()
        np.testing.assert_array_equal(median_filter(weights, width), wanted)


TEXTS = [
    (" Hello, world. It's a two-word (or three?) test!", "en"),
    (' "Quoted" words - and 1,234.5 numbers... end', "de"),
    (" Er sagte: »Größe« - naïve Übergröße", "de"),
    ("北風と太陽が、どちらが強いかを言い争っていました。", "ja"),
    ("我们去北京吧！好吗？", "zh"),  # noqa: RUF001
    ("สวัสดีครับ ทุกคน", "th"),
    ("ສະບາຍດີ", "lo"),
    ("မင်္ဂလာပါ", "my"),
    ("你食咗飯未呀?", "yue"),
    (" Однажды северный ветер и солнце", "ru"),
    (" 안녕하세요 여러분", "ko"),
    (" emoji 🎙️👩‍👩‍👧 test", "en"),
    ("no blank before", "en"),
    ("   ", "en"),
    (" .", None),
]
MARKS = ["", " ", "  ", '"', ' "', " (", "(", ")", ".", ",", " -", "-", "。", "?!", "...", " ..."]
WORDS = ["a", " a", " b ", " word", "'s"]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> WhisperTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    real_tokenizer(folder)
    return WhisperTokenizer.from_pretrained(folder)


def theirs(language: str | None) -> Tokenizer:
    encoding = whisper.tokenizer.get_encoding("multilingual", 100)
    return Tokenizer(encoding, num_languages=100, language=language or "en", task="transcribe")


@pytest.mark.parametrize(
    ("text", "language", "words"),
    [
        ("คุณจะทำอะไรกับเงิน ในกระเป๋า", "th", "คุณ|จะ|ทำ|อะไร|กับ|เงิน| ใน|กระเป๋า"),
        ("สวัสดีครับ ทุกคน", None, "สวัสดี|ครับ| ทุก|คน"),
        ("မြန်မာစာ", "my", "မြန်မာ|စာ"),
        ("ខ្ញុំចង់ទៅផ្សារ", "km", "ខ្ញុំ|ចង់ទៅ|ផ្សារ"),
        ("ຂ້ອຍຢາກໄປ ມື້ນີ້", "lo", "ຂ້ອຍ|ຢາກ|ໄປ| ມື້ນີ້"),
    ],
)
def test_words_of_scripts_without_spaces_are_those_of_a_dictionary(
    ours: WhisperTokenizer, text: str, language: str | None, words: str
) -> None:
    pytest.importorskip("icu4py")
    tokens = ours.encode(text, add_special_tokens=False)
    spelled = split_words(tokens, ours.decode_text, language)
    assert "|".join(word for word, _ in spelled) == words
    assert [token for _, word_tokens in spelled for token in word_tokens] == [*tokens]


@pytest.mark.parametrize(("text", "language"), TEXTS)
def test_words_are_those_of_openai_whisper_without_icu(
    ours: WhisperTokenizer,
    text: str,
    language: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line_breaks, "_icu", lambda is_needed: None)
    tokens = ours.encode(text, add_special_tokens=False)
    end = theirs(language).eot
    words, spelled = theirs(language).split_to_word_tokens([*tokens, end])
    wanted = list(zip(words, map(tuple, spelled), strict=True))[:-1]
    assert split_words(tokens, ours.decode_text, language) == wanted


@given(
    tokens=st.lists(st.integers(0, 255) | st.integers(0, 50256), max_size=12),
    language=st.sampled_from(["en", "ja"]),
)
def test_no_token_and_no_character_is_lost_even_of_broken_text(
    ours: WhisperTokenizer, tokens: list[int], language: str
) -> None:
    words = split_words(tokens, ours.decode_text, language)
    assert [token for _, spelled in words for token in spelled] == tokens
    assert "".join(text for text, _ in words) == ours.decode_text(tokens)


@given(st.lists(st.sampled_from(MARKS + WORDS), max_size=9))
def test_marks_go_where_openai_whisper_puts_them(words: list[str]) -> None:
    timings = [WordTiming(word, [0], 0.0, 1.0, 1.0) for word in words]
    prepended, appended = "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001
    merge_punctuations(timings, prepended, appended)
    merged = [text for text, _ in merge_punctuation([(word, ()) for word in words])]
    assert merged == [timing.word for timing in timings]
    assert "".join(merged) == "".join(words)


def test_a_long_sentence_is_cut_at_the_longest_pause_of_its_second_half() -> None:
    times = [(float(at), at + 0.9) for at in range(40)]
    times[3:] = [(start + 1.0, end + 1.0) for start, end in times[3:]]  # a pause in the first half
    times[22:] = [(start + 0.5, end + 0.5) for start, end in times[22:]]
    words = [
        Word(word=" so", start_s=start_s, end_s=end_s, probability=1.0) for start_s, end_s in times
    ]
    assert list(sentences(words)) == [slice(0, 22), slice(22, 40)]
    evenly = [replace(word, start_s=float(at), end_s=at + 1.0) for at, word in enumerate(words)]
    assert list(sentences(evenly)) == [slice(0, 30), slice(30, 40)]
