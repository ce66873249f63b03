"""The vectorised grammar equals openai-whisper's; loops are noticed when they are certain."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from whisper.decoding import ApplyTimestampRules

from corpus_asr.decoding.jobs import Search, TokenRules, WindowJob
from corpus_asr.decoding.rules import (
    LONGEST_PHRASE,
    MIN_REPEATED_TOKENS,
    MIN_REPEATS,
    RepetitionDetector,
    SlotRules,
)
from tests.support.markov import window

VOCAB, END, NO_TIMESTAMPS, BEGIN = 60, 30, 39, 40
RULES = TokenRules(
    end=END, timestamp_begin=BEGIN, no_timestamps=NO_TIMESTAMPS, max_initial_timestamp=5
)


def oracle(said: list[list[int]], logits: torch.Tensor) -> torch.Tensor:
    tokenizer = SimpleNamespace(
        no_timestamps=NO_TIMESTAMPS, timestamp_begin=BEGIN, eot=END, encode=None
    )
    rule = ApplyTimestampRules(tokenizer, sample_begin=0, max_initial_timestamp_index=5)
    masked = logits.clone()
    for row, tokens in enumerate(said):
        rule.apply(masked[row : row + 1], torch.tensor([tokens], dtype=torch.long))
    return masked


def ruled(
    *rules: TokenRules, by_row: bool = False, prefixes: Sequence[Sequence[int]] = ()
) -> SlotRules:
    """Slots under rules, with nothing said yet but a prefix."""
    found = SlotRules(len(rules), VOCAB, torch.device("cpu"), by_row=by_row)
    found.admit(torch.arange(len(rules)), rules, prefixes)
    return found


SLOTS = torch.arange(4)
PREFIXES = st.sampled_from([(), (BEGIN, 5, 6), (BEGIN,), (5,), (BEGIN + 3, 5, BEGIN + 9)])


@given(
    seed=st.integers(0, 999),
    timestamp_boost=st.sampled_from([-3.0, 0.0, 2.0]),
    by_row=st.booleans(),
    prefixes=st.lists(PREFIXES, min_size=4, max_size=4),
)
def test_every_step_forbids_what_openai_whisper_forbids(
    seed: int, timestamp_boost: float, by_row: bool, prefixes: list[tuple[int, ...]]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    slots = len(prefixes)
    own = [RULES] * slots
    rules = ruled(*own, by_row=by_row, prefixes=prefixes)
    said: list[list[int]] = [[*prefix] for prefix in prefixes]
    for step in range(25):
        logits = torch.randn(slots, VOCAB, generator=generator)
        logits[:, BEGIN:] += timestamp_boost
        expected = oracle(said, logits)
        first = step == 0
        found = rules.apply_first(logits, SLOTS, prefixes) if first else rules.apply(logits)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        tokens = torch.multinomial(found.softmax(dim=1), 1, generator=generator).squeeze(1)
        rules.update(tokens, torch.arange(slots))
        for row, token in zip(said, tokens.tolist(), strict=True):
            row.append(token)


def test_suppressed_tokens_stay_forbidden_and_first_ones_only_at_first() -> None:
    own, only = TokenRules(end=END, suppress=(3,), suppress_first=(END,)), (11, 12)
    rules = ruled(own)
    first = rules.apply_first(torch.zeros(1, VOCAB), SLOTS[:1])[0]
    assert first.isinf().nonzero().flatten().tolist() == [3, END]
    rules.update(torch.tensor([7]), torch.tensor([0]))
    assert rules.apply(torch.zeros(1, VOCAB))[0].isinf().nonzero().flatten().tolist() == [3]
    # Where some are named, they alone are allowed.
    own = TokenRules(end=END, only=only)
    first = ruled(own).apply_first(torch.zeros(1, VOCAB), SLOTS[:1])[0]
    assert tuple(first.isfinite().nonzero().flatten().tolist()) == only


@pytest.mark.parametrize("by_row", [False, True])
def test_a_text_that_resumes_goes_on_with_text_and_may_end_after_it(by_row: bool) -> None:
    prefix = (BEGIN, 5, BEGIN + 3, BEGIN + 3)
    own = [RULES, replace(RULES, resumes=True)]
    rules = ruled(*own, by_row=by_row, prefixes=[prefix, prefix])
    logits = torch.zeros(2, VOCAB)
    logits[:, BEGIN:] = -9.0
    ended, resumed = rules.apply_first(logits.clone(), SLOTS[:2], [prefix, prefix])
    assert ended[END] == 0
    assert resumed.isfinite().nonzero().flatten().tolist() == [
        token for token in range(BEGIN) if token not in (END, NO_TIMESTAMPS)
    ]
    rules.update(torch.tensor([7, 7]), SLOTS[:2])
    ended, resumed = rules.apply(logits.clone())
    assert resumed[END] == ended[END] == 0
    assert torch.equal(ended, resumed)


def test_a_readmitted_slot_forgets_its_past_and_a_moved_one_takes_it_along() -> None:
    rules = ruled(RULES, RULES)
    for token in (BEGIN, 5, BEGIN + 9):
        rules.update(torch.tensor([BEGIN, token]), torch.tensor([0, 1]))
    expected = rules.apply(torch.zeros(2, VOCAB))[1]
    rules.move(1, 0)
    assert torch.equal(rules.apply(torch.zeros(1, VOCAB))[0], expected)
    rules.admit(torch.tensor([0]), [RULES])
    fresh = ruled(RULES)
    assert torch.equal(rules.apply(torch.zeros(1, VOCAB)), fresh.apply(torch.zeros(1, VOCAB)))
    with pytest.raises(ValueError, match="one decoder per vocabulary"):
        rules.admit(torch.tensor([1]), [TokenRules(end=END, timestamp_begin=BEGIN + 1)])


LOOP_VOCAB, LOOP_BEGIN = 1000, 900


def job(
    *,
    watched: bool = True,
    grammar: bool = True,
    prompt: tuple[int, ...] = (1,),
    once: bool = False,
) -> WindowJob:
    return WindowJob(
        features=window(0),
        window=(0,),
        prompt=prompt,
        rules=TokenRules(end=0, timestamp_begin=LOOP_BEGIN if grammar else None),
        max_new_tokens=400,
        search=Search(stop_loops=watched, stops_at_repeat=once),
    )


def caught(texts: list[list[int]], **options: Any) -> list[int | None]:
    """After how many tokens each slot is found to loop; texts are read side by side."""
    own = job(**options)
    watch = RepetitionDetector(len(texts), LOOP_VOCAB, torch.device("cpu"))
    slots = torch.arange(len(texts))
    watch.admit(range(len(texts)), [own] * len(texts))
    start = len(own.prompt)
    said = torch.zeros(len(texts), 449, dtype=torch.long)
    said[:, :start] = torch.tensor(own.prompt)
    found: list[int | None] = [None] * len(texts)
    for at in range(max(len(text) for text in texts)):
        going = torch.tensor([at < len(text) for text in texts])
        tokens = torch.tensor([text[at] if at < len(text) else 7 for text in texts])
        lengths = torch.tensor([start + min(at, len(text)) for text in texts])
        said[slots[going], lengths[going]] = tokens[going]
        for slot in watch.update(tokens, slots, said, lengths, going).nonzero().flatten().tolist():
            found[slot] = found[slot] or at + 1
    return found


@pytest.mark.parametrize("lead", [0, 1, 17])
def test_a_repeated_phrase_is_caught_when_it_has_gone_on_long_enough(lead: int) -> None:
    periods = (1, 2, 3, 5, 12, 13, 30, LONGEST_PHRASE)
    start = list(range(500, 500 + lead))
    texts = [(start + list(range(100, 100 + period)) * 60)[:430] for period in periods]
    needed = [max(MIN_REPEATS * period, MIN_REPEATED_TOKENS) for period in periods]
    assert caught(texts) == [
        lead + period + more for period, more in zip(periods, needed, strict=True)
    ]


def test_what_only_seems_to_repeat_is_left_alone() -> None:
    no_no_no = [5, 6] * 20
    too_long = list(range(100, 101 + LONGEST_PHRASE)) * 6
    almost = [token for n in range(50) for token in (100, 101, 102, 200 + n)]
    broken = [token for n in range(6) for token in [100, 101, 102] * (16 - n) + [7]]
    thrice = list(range(100, 160)) * 4
    assert caught([no_no_no, too_long, almost, broken, thrice]) == [None] * 5


def test_a_text_that_is_searched_again_anyway_stops_at_its_first_repeat() -> None:
    phrase, words = list(range(100, 137)), list(range(200, 320))
    assert caught([phrase * 5, [5, 6] * 20, words], once=True) == [74, 26, None]


def test_timestamps_that_go_on_do_not_hide_a_loop_and_the_prompt_is_no_part_of_one() -> None:
    text = [token for n in range(40) for token in (LOOP_BEGIN + n, 5, 6, 7, LOOP_BEGIN + n + 1)]
    assert caught([text])[0] is not None
    assert caught([text], grammar=False) == [None]  # there, those tokens are words
    phrase = [5, 6, 7]
    assert caught([phrase * 40], prompt=tuple(phrase * 30)) == caught([phrase * 40])


def test_slots_that_are_not_watched_or_readmitted_or_moved() -> None:
    watch = RepetitionDetector(3, LOOP_VOCAB, torch.device("cpu"))
    watch.admit([0, 1, 2], [job(), job(watched=False), job()])
    assert watch.watches([1, 2])
    assert not watch.watches([1])
    said = torch.full((3, 100), 5)
    slots, going = torch.arange(3), torch.ones(3, dtype=torch.bool)

    def say(times: int, first: int) -> list[bool]:
        for at in range(first, first + times):
            looped = watch.update(said[:, 0], slots, said, torch.full((3,), at), going)
        return looped.tolist()

    assert say(MIN_REPEATED_TOKENS, 1) == [False] * 3
    watch.move(2, 1)  # takes what it has counted along
    watch.admit([0], [job()])  # starts anew
    assert say(1, 1 + MIN_REPEATED_TOKENS) == [False, True, True]
