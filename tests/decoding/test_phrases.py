"""Phrases that are preferred, against all texts and plain searches; hotwords as phrases."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import corpus_asr
from corpus_asr.config.decoding import DecodingSettings, Hotword
from corpus_asr.decoding.jobs import Search, TokenRules, WindowJob, WindowResult
from corpus_asr.decoding.phrases import BONUS, FIRST_SHARE, HotwordTries, PhraseTrie, SlotPhrases
from corpus_asr.decoding.slots import SlotScheduler
from corpus_asr.errors import ConfigError, ItemError
from corpus_asr.transcription.speech2text import Speech2TextTranscriber
from corpus_asr.transcription.whisper import WhisperTranscriber
from corpus_asr.transcription.whisper_prompt import PromptFormat
from tests.support.markov import END, VOCAB, MarkovModel, window
from tests.support.prompt_formats import part, prompt_format, speech2text_prompt_format
from tests.support.slots import run_jobs

Phrases = Sequence[tuple[tuple[int, ...], float]]
# Sums of float32 in another order.
TOLERANCE = 1e-4
PROMPT = (21, 22)


def bonus(phrases: Phrases, text: Sequence[int]) -> float:
    """The bonus of a text by the definition."""
    return sum(
        max((w * len(p) for p, w in phrases if tuple(text[at : at + len(p)]) == p), default=0.0)
        for at in range(len(text))
    )


def decode(model: MarkovModel, jobs: Sequence[WindowJob], *, slots: int) -> list[WindowResult]:
    scheduler = SlotScheduler(model, slots)
    return [cast("WindowResult", one) for (one,) in run_jobs(scheduler, [[job] for job in jobs])]


def ask(number: int, search: Search, *, limit: int = 12, rules: TokenRules | None = None):
    return WindowJob(
        features=window(number),
        window=(number,),
        prompt=PROMPT,
        rules=rules or TokenRules(end=END),
        max_new_tokens=limit,
        search=search,
        seed=number,
    )


few = st.integers(0, 3)
phrases_of_few = st.lists(
    st.tuples(
        st.lists(few, min_size=1, max_size=4).map(tuple),
        st.sampled_from([0.5, 1.0, 2.5]),
    ),
    max_size=8,
)


@given(phrases=phrases_of_few, text=st.lists(few, max_size=12))
def test_a_text_gains_its_phrases_and_nothing_for_what_it_left(
    phrases: list[tuple[tuple[int, ...], float]], text: list[int]
) -> None:
    held = SlotPhrases(2, VOCAB, torch.device("cpu"))
    index = torch.tensor([1])
    held.admit([1], index, [PhraseTrie.of(phrases)])
    layout = held.layout([1])
    assert layout is not None
    assert held.layout([0]) is None
    total = 0.0
    for token in text:
        gains = torch.zeros(1, VOCAB)
        held.boost(gains, index, layout)
        gains -= held.advance(index).unsqueeze(1)
        now = torch.tensor([token])
        total += float(gains[0, token])
        if_ended = total - float(held.advance_after(now, index, layout))
        held.update(now, index, layout)
        assert float(held.advance(index)) >= 0
    if text:
        assert if_ended == pytest.approx(bonus(phrases, text), abs=TOLERANCE)


ALLOWED = (1, 2, 3, END)
ENDLESS = TokenRules(end=END, only=ALLOWED)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize(
    "phrases",
    [
        [((1, 2, 3), 2.0)],
        [((1, 2, 3), 1.0), ((2, 1), 1.5), ((3,), 0.5)],
        [((3, 3, 3), 3.0), ((3, 1), 2.0), ((2,), 0.1)],
    ],
)
def test_beams_that_forget_nothing_find_the_best_of_all_texts(
    number: int, phrases: Phrases
) -> None:
    limit = 3
    model = MarkovModel(seed=3)

    def score(text: Sequence[int]) -> float:
        total, last = 0.0, PROMPT[-1]
        for token in text:
            total += float(model.after(number, last).log_softmax(0)[token])
            last = token
        return total + bonus(phrases, text)

    texts = [
        text
        for length in range(1, limit + 1)
        for text in itertools.product(ALLOWED, repeat=length)
        if END not in text[:-1] and (text[-1] == END or length == limit)
    ]
    best = max(texts, key=score)
    search = Search(num_beams=20, length_penalty=0.0, phrases=PhraseTrie.of(phrases))
    (found,) = decode(model, [ask(number, search, limit=limit, rules=ENDLESS)], slots=20)
    assert found.tokens == tuple(token for token in best if token != END)


@pytest.mark.parametrize("number", range(4))
def test_greedy_takes_what_is_best_with_its_gain_and_tells_the_model_s_probabilities(
    number: int,
) -> None:
    phrases = [((4, 5, 6), 2.0), ((5, 7), 3.0), ((9,), 1.0), ((4, 8), 0.5)]
    model, trie = MarkovModel(seed=5), PhraseTrie.of(phrases)
    search = Search(phrases=trie)
    (found,) = decode(model, [ask(number, search)], slots=1)
    assert found.tokens != decode(model, [ask(number, Search())], slots=1)[0].tokens
    held = SlotPhrases(1, VOCAB, torch.device("cpu"))
    index = torch.tensor([0])
    held.admit([0], index, [trie])
    layout = held.layout([0])
    assert layout is not None
    last = PROMPT[-1]
    for token, logprob in zip(found.tokens, found.logprobs, strict=True):
        logits = model.after(number, last)
        assert logprob == pytest.approx(float(logits.log_softmax(0)[token]), abs=TOLERANCE)
        scores = logits.unsqueeze(0)
        held.boost(scores, index, layout)
        assert token == int(scores.argmax())
        held.update(torch.tensor([token]), index, layout)
        last = token


@pytest.mark.parametrize("beams", [1, 3])
def test_phrases_of_one_slot_change_no_other(beams: int) -> None:
    model = MarkovModel(seed=1)
    tries = [
        None,
        PhraseTrie.of([((4, 5, 6), 2.0)]),
        PhraseTrie.of([((n, n + 1), 1.5) for n in range(19)]),
        PhraseTrie.of([]),
        PhraseTrie.of([((n, m), 1.0) for n in range(19) for m in range(19)]),
    ]
    # More automata than slots, of several sizes: their rows are used again.
    jobs = [
        ask(n % 4, Search(num_beams=beams, phrases=tries[n % 5]), limit=3 + n % 7)
        for n in range(20)
    ]
    alone = [decode(model, [job], slots=beams)[0] for job in jobs]
    together = decode(model, jobs, slots=3 * beams)
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert len({one.tokens for one in together}) > 8
    for one, expected in zip(together, alone, strict=True):
        assert one.logprobs == pytest.approx(expected.logprobs, abs=TOLERANCE)


def test_what_rules_forbid_no_phrase_allows() -> None:
    trie = PhraseTrie.of([((4, 5), 1e6), ((END, 4), 1e6)])
    rules = TokenRules(end=END, suppress=(5,), suppress_first=(4, END))
    (found,) = decode(MarkovModel(), [ask(1, Search(phrases=trie), rules=rules)], slots=1)
    assert 5 not in found.tokens
    assert found.tokens[0] != 4


def test_ten_thousand_phrases() -> None:
    phrases = [((n % 19, n // 19 % 19, n // 361 % 19, n // 6859), 9.0) for n in range(10_000)]
    trie = PhraseTrie.of(phrases)
    assert len(trie.token) > 10_000
    (found,) = decode(MarkovModel(), [ask(0, Search(phrases=trie))], slots=1)
    assert bonus(phrases, found.tokens) > 0


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
