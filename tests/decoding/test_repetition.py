"""Loops are noticed when they are certain, and only then."""

import random
import zlib
from typing import Any

import pytest
import torch

from corpus_asr.decoding.protocols import Search, TokenRules, WindowJob
from corpus_asr.decoding.repetition import (
    LONGEST_PHRASE,
    MIN_REPEATED_TOKENS,
    MIN_REPEATS,
    RepetitionDetector,
)
from tests.support.markov import window

VOCAB, BEGIN = 1000, 900


def job(*, watched: bool = True, grammar: bool = True, prompt: tuple[int, ...] = (1,)) -> WindowJob:
    return WindowJob(
        features=window(0),
        window=(0,),
        prompt=prompt,
        rules=TokenRules(end=0, timestamp_begin=BEGIN if grammar else None),
        max_new_tokens=400,
        search=Search(stop_loops=watched),
    )


def caught(texts: list[list[int]], **options: Any) -> list[int | None]:
    """After how many tokens each slot is found to loop; texts are read side by side."""
    own = job(**options)
    watch = RepetitionDetector(len(texts), VOCAB, torch.device("cpu"))
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


@pytest.mark.parametrize("period", [1, 2, 3, 5, 12, 13, 30, LONGEST_PHRASE])
@pytest.mark.parametrize("lead", [0, 1, 17])
def test_a_repeated_phrase_is_caught_when_it_has_gone_on_long_enough(
    period: int, lead: int
) -> None:
    phrase = list(range(100, 100 + period))
    text = list(range(500, 500 + lead)) + phrase * 60
    needed = max(MIN_REPEATS * period, MIN_REPEATED_TOKENS)
    assert caught([text[:430]]) == [lead + period + needed]


def test_what_only_seems_to_repeat_is_left_alone() -> None:
    no_no_no = [5, 6] * 20
    too_long = list(range(100, 101 + LONGEST_PHRASE)) * 6
    almost = [token for n in range(50) for token in (100, 101, 102, 200 + n)]
    broken = [token for n in range(6) for token in [100, 101, 102] * (16 - n) + [7]]
    thrice = list(range(100, 160)) * 4
    assert caught([no_no_no, too_long, almost, broken, thrice]) == [None] * 5


def test_random_text_is_never_caught() -> None:
    generator = random.Random(0)
    for size in (2, 3, 50):
        texts = [[generator.randrange(size) for _ in range(440)] for _ in range(20)]
        assert caught(texts, grammar=False) == [None] * 20


def test_timestamps_that_go_on_do_not_hide_a_loop() -> None:
    text = [token for n in range(40) for token in (BEGIN + n, 5, 6, 7, BEGIN + n + 1)]
    assert caught([text])[0] is not None
    assert caught([text], grammar=False) == [None]  # there, those tokens are words


def test_the_prompt_is_no_part_of_a_loop() -> None:
    phrase = [5, 6, 7]
    alone = caught([phrase * 40])[0]
    assert caught([phrase * 40], prompt=tuple(phrase * 30)) == [alone]


def test_slots_that_are_not_watched_or_readmitted_or_moved() -> None:
    watch = RepetitionDetector(3, VOCAB, torch.device("cpu"))
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


@pytest.mark.parametrize("period", [1, 2, 7, 20, LONGEST_PHRASE])
def test_what_is_caught_compresses_beyond_the_threshold_anyway(period: int) -> None:
    generator = random.Random(period)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(generator.choices(letters, k=5)) for _ in range(period)]
    repeats = 1 + max(MIN_REPEATS, -(-MIN_REPEATED_TOKENS // period))
    text = (" ".join(words * repeats)).encode()
    assert len(text) / len(zlib.compress(text)) > 2.4
