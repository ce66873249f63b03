"""Hotwords of settings and recordings, as checkpoints write them."""

from pathlib import Path

import pytest

import corpus_asr
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.config.hotwords import Hotword
from corpus_asr.decoding.phrases import PhraseTrie
from corpus_asr.decoding.protocols import WindowJob
from corpus_asr.errors import ConfigError, ItemError
from corpus_asr.transcription.hotwords import BONUS, FIRST_SHARE, HotwordTries
from corpus_asr.transcription.speech2text import Speech2TextTranscriber
from corpus_asr.transcription.whisper import WhisperTranscriber
from corpus_asr.transcription.whisper_prompt import PromptFormat
from tests.support.prompt_formats import part, prompt_format, speech2text_prompt_format


@pytest.fixture(scope="module")
def english() -> PromptFormat:
    folder = Path(corpus_asr.__file__).parent / "pretrained" / "whisper-tiny.en"
    return PromptFormat.from_folder(folder)


@pytest.mark.parametrize(
    ("phrase", "texts"),
    [
        ("Kubernetes", {" Kubernetes", " kubernetes"}),
        ("ray data", {" ray data", " Ray data"}),
        ("iPhone", {" iPhone", " iphone", " IPhone"}),
        ("東京", {" 東京", "東京"}),
    ],
)
def test_whisper_writes_a_phrase_after_a_blank_and_in_other_cases(
    english: PromptFormat, phrase: str, texts: set[str]
) -> None:
    spellings = english.spellings(phrase)
    assert {english.text(tokens) for tokens in spellings} == texts
    assert all(0 <= token < english.end for tokens in spellings for token in tokens)


def test_what_a_checkpoint_cannot_write_is_refused(english: PromptFormat) -> None:
    for phrase, words in (
        ("say <|endoftext|>", "special token <|endoftext|>"),
        ("\ud800", "not valid Unicode"),
        ("𒀀" * 200, "tokens in '.*', expected at most 223"),
    ):
        with pytest.raises(ConfigError, match=rf"decoding\.hotwords: .*{words}"):
            english.check(DecodingSettings(hotwords=(Hotword(phrase),)))
        # Of a recording's own column it is this recording's failure.
        with pytest.raises(ItemError, match=words) as caught:
            HotwordTries(english.spellings).of((Hotword(phrase),))
        assert caught.value.kind == "bad_hotwords"
    pieces = speech2text_prompt_format(
        encode=lambda text: (3, 1) if "x" in text.lower() else (3, 4)
    )
    pieces.check(DecodingSettings(hotwords=(Hotword("w3 w4"),)))
    with pytest.raises(ConfigError, match=r"decoding\.hotwords: .*pieces of this checkpoint"):
        pieces.check(DecodingSettings(hotwords=(Hotword("x"),)))


def trie_of(
    transcriber: WhisperTranscriber | Speech2TextTranscriber, own: str, of_all: str
) -> PhraseTrie | None:
    """The automaton of the first window of a recording with hotwords of its own."""
    settings = DecodingSettings(language="en", hotwords=(Hotword(of_all, 2.0),) if of_all else None)
    steps = transcriber.transcribe(part(5, hotwords=(Hotword(own),) if own else ()), settings)
    (first, *_) = next(steps).tasks  # type: ignore[union-attr]
    job = next(first)
    assert isinstance(job, WindowJob)
    return job.search.phrases


def test_a_recording_has_its_own_hotwords_besides_those_of_all() -> None:
    transcriber = WhisperTranscriber(prompt_format())
    assert trie_of(transcriber, "", "") is None
    both = trie_of(transcriber, "w1 w2", "w3")
    assert both is not None
    assert both.token == [0, 1, 3, 2]
    first = BONUS * FIRST_SHARE
    assert both.gain == [0.0, first, 2 * first, first + BONUS]
    assert trie_of(transcriber, "w1 w2", "w3") is both
    alone = trie_of(transcriber, "w4", "")
    assert alone is not None
    assert alone.token == [0, 4]
