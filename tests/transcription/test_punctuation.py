"""Words are cut as openai-whisper cuts them, and nothing of the text is ever lost."""

import pytest
import whisper.tokenizer
from hypothesis import given
from hypothesis import strategies as st
from whisper.timing import WordTiming, merge_punctuations
from whisper.tokenizer import Tokenizer

from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.transcription.words import merge_punctuation, split_words
from tests.support.tokenizers import real_tokenizer

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


@pytest.mark.parametrize(("text", "language"), TEXTS)
def test_words_are_those_of_openai_whisper(
    ours: WhisperTokenizer, text: str, language: str | None
) -> None:
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


def test_bytes_that_are_no_character_do_not_swallow_the_words_after_them(
    ours: WhisperTokenizer,
) -> None:
    snowman = ours.encode("☃", add_special_tokens=False)
    broken, after = snowman[:1], ours.encode(" one two", add_special_tokens=False)
    words = [text for text, _ in split_words([*broken, *after], ours.decode_text, "en")]
    assert words == ["\ufffd", " one", " two"]


@given(st.lists(st.sampled_from(MARKS + WORDS), max_size=9))
def test_marks_go_where_openai_whisper_puts_them(words: list[str]) -> None:
    timings = [WordTiming(word, [0], 0.0, 1.0, 1.0) for word in words]
    prepended, appended = "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001
    merge_punctuations(timings, prepended, appended)
    merged = merge_punctuation(words)
    assert merged == [timing.word for timing in timings]
    assert "".join(merged) == "".join(words)
