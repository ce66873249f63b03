"""Beam search is transformers', token for token, whatever sits in the other places."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import hypothesis
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from corpus_asr.decoding.batch import SlotBatch, encode_windows
from corpus_asr.decoding.beam import BeamBatch
from corpus_asr.decoding.protocols import (
    Search,
    SlotModel,
    TokenRules,
    WindowJob,
    WindowResult,
    check_job,
)
from corpus_asr.decoding.rules import RepetitionDetector, repeats_itself
from corpus_asr.decoding.slots import SlotScheduler
from corpus_asr.families.whisper.model import WhisperSlotModel
from tests.support.references import beam_search
from tests.support.searches import END, GRAMMAR, PLAIN, POSITIONS, VOCAB, job, small_whisper
from tests.support.slots import assert_all_same, run_jobs

# Sums of up to 40 float32 log-probabilities, from products in another order.
SCORE_TOLERANCE = 1e-3

SUPPRESSING = TokenRules(end=END, suppress=(3, 7, 12), suppress_first=(END, 5))


class Pair:
    """The same weights here and there."""

    def __init__(self, folder: Path, seed: int, **changes: Any) -> None:
        self.model: WhisperSlotModel = small_whisper(folder, seed=seed, **changes).slot_model()
        self.oracle = transformers.WhisperForConditionalGeneration.from_pretrained(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    return [Pair(tmp_path_factory.mktemp("checkpoint"), seed) for seed in range(3)]


def run(model: SlotModel, jobs: list[WindowJob], *, places: int) -> list[WindowResult]:
    """Decode jobs side by side; places that end are refilled or closed."""
    beams = jobs[0].search.num_beams
    scheduler = SlotScheduler(model, places * beams, num_beams=beams)
    return [
        cast("WindowResult", result) for (result,) in run_jobs(scheduler, [[one] for one in jobs])
    ]


def check(pair: Pair, jobs: list[WindowJob], found: list[WindowResult]) -> None:
    for one, result in zip(jobs, found, strict=True):
        search = one.search
        expected = beam_search(
            pair.oracle,
            torch.from_numpy(one.features),
            one.prompt,
            one.rules,
            max_new_tokens=one.max_new_tokens,
            num_beams=search.num_beams,
            length_penalty=search.length_penalty,
            early_stopping=search.early_stopping,
            num_return_sequences=search.num_return_sequences,
            repetition_penalty=search.repetition_penalty,
            no_repeat_ngram_size=search.no_repeat_ngram_size,
        )
        ours = [result, *result.others]
        assert [each.tokens for each in ours] == [each.tokens for each in expected]
        assert [each.sequence_score for each in ours] == pytest.approx(
            [each.score for each in expected], abs=SCORE_TOLERANCE
        )


@pytest.mark.parametrize(
    ("num_beams", "early_stopping", "length_penalty"),
    [(2, False, 1.0), (5, False, 1.0), (5, True, 1.0), (2, "never", 1.0), (5, "never", -1.0),
     (5, False, 0.0), (2, True, 2.0), (5, False, -1.0)],
)  # fmt: skip
def test_beams_are_those_of_transformers(
    pairs: list[Pair], num_beams: int, early_stopping: bool | str, length_penalty: float
) -> None:
    options: dict[str, Any] = {
        "num_beams": num_beams,
        "early_stopping": early_stopping,
        "length_penalty": length_penalty,
        "num_return_sequences": num_beams,
    }
    pair = pairs[num_beams % 2]
    kinds = enumerate((PLAIN, SUPPRESSING, GRAMMAR))
    jobs = [job(i, rules, prompt=(31, *range(3 * i), 32), **options) for i, rules in kinds]
    # Two places for three jobs: one waits, and starts beside one that is under way.
    check(pair, jobs, run(pair.model, jobs, places=2))


def test_the_windows_end_in_every_way(pairs: list[Pair]) -> None:
    """What the comparison above is worth: ends, limits, and the whole length of the decoder."""
    jobs = [job(i, rules, num_beams=5) for i in range(4) for rules in (PLAIN, SUPPRESSING, GRAMMAR)]
    found = [result for pair in pairs[:2] for result in run(pair.model, jobs, places=6)]
    assert sum(result.end_logprob is not None for result in found) > 4
    assert sum(result.end_logprob is None for result in found) > 4


def test_a_text_may_fill_the_whole_decoder(pairs: list[Pair]) -> None:
    endless = replace(SUPPRESSING, suppress=(END,))
    jobs = [job(0, endless, limit=99, num_beams=3), job(1, endless, prompt=(31,) * 47, num_beams=3)]
    found = run(pairs[2].model, jobs, places=2)
    assert [len(result.tokens) for result in found] == [POSITIONS - 2, 1]
    check(pairs[2], [replace(jobs[0], max_new_tokens=POSITIONS - 2)], found[:1])


def test_rules_against_repetition_are_those_of_transformers(pairs: list[Pair]) -> None:
    jobs = [
        job(0, num_beams=4, repetition_penalty=1.3),
        job(1, GRAMMAR, num_beams=4, no_repeat_ngram_size=2, num_return_sequences=2),
        job(2, SUPPRESSING, num_beams=4, repetition_penalty=0.8, no_repeat_ngram_size=3),
        job(3, num_beams=4),
    ]
    check(pairs[0], jobs, run(pairs[0].model, jobs, places=3))


def test_logprobs_are_those_of_the_tokens_under_the_rules(pairs: list[Pair]) -> None:
    one = job(1, GRAMMAR, num_beams=3, num_return_sequences=3, keep_scores=True, keep_logits=True)
    (result,) = run(pairs[0].model, [one], places=1)
    for each in (result, *result.others):
        said = [*each.tokens, *([END] if each.end_logprob is not None else [])]
        assert each.scores is not None
        assert each.logits is not None
        assert each.scores.shape == each.logits.shape == (len(said), VOCAB)
        steps = range(len(said))
        under_rules = each.scores.log_softmax(dim=1)[steps, said].tolist()
        ours = [*each.logprobs, *([] if each.end_logprob is None else [each.end_logprob])]
        assert ours == pytest.approx(under_rules, abs=1e-5)
        # transformers adds the log-probabilities of the raw logits.
        raw = each.logits.log_softmax(dim=1)[steps, said]
        assert each.sequence_score == pytest.approx(float(raw.sum()) / len(said), abs=1e-4)
        features, tokens = torch.from_numpy(one.features), torch.tensor([[*one.prompt, *said]])
        with torch.inference_mode():
            whole = pairs[0].oracle(features.unsqueeze(0), decoder_input_ids=tokens).logits[0]
        expected = whole[len(one.prompt) - 1 : -1]
        torch.testing.assert_close(each.logits, expected, atol=1e-4, rtol=0)


def test_processors_and_criteria_are_asked_for_every_beam(pairs: list[Pair]) -> None:
    def never_7(tokens: Tensor, scores: Tensor) -> Tensor:
        scores[:, 7] = -torch.inf
        return scores

    def prefer_9(tokens: Tensor, scores: Tensor) -> Tensor:
        scores[:, 9] += 4.0
        return scores

    def twelve_tokens(tokens: Tensor, scores: Any) -> bool:
        return tokens.shape[1] >= 12

    endless = replace(PLAIN, suppress=(END,))
    jobs = [
        job(0, num_beams=3, early_processors=(never_7,), processors=(prefer_9,)),
        job(1, endless, num_beams=3, stopping=(twelve_tokens,)),
        job(2, num_beams=3),
    ]
    found = run(pairs[1].model, jobs, places=3)
    assert 9 in found[0].tokens
    assert 7 not in found[0].tokens
    assert len(found[1].tokens) == 10
    check(pairs[1], [replace(jobs[1], max_new_tokens=10), jobs[2]], found[1:])


def test_a_moved_place_goes_on_as_it_was(pairs: list[Pair]) -> None:
    options: dict[str, Any] = {"num_beams": 2, "keep_scores": True}
    jobs = [job(0, limit=2, **options), job(1, GRAMMAR, limit=20, **options)]
    found = run(pairs[2].model, jobs, places=2)
    alone = [run(pairs[2].model, [each], places=1) for each in jobs]
    assert_all_same([[result] for result in found], alone)
    scores = [result.sequence_score for result in found]
    assert scores == pytest.approx([result.sequence_score for (result,) in alone], abs=1e-5)


def test_the_score_of_a_token_is_that_of_the_plain_lane(pairs: list[Pair]) -> None:
    one = job(3, num_beams=2)
    plain = SlotBatch(pairs[0].model, 1)
    plain.fill([0], [one], encode_windows(plain.model, [one]))
    plain.admit([0], [replace(one, search=Search(), max_new_tokens=1)])
    (expected,) = plain.collect([0])
    assert isinstance(expected, WindowResult)
    (found,) = run(pairs[0].model, [one], places=1)
    assert found.score == pytest.approx(expected.score, abs=1e-6)


def test_a_window_that_repeats_itself_ends_early(tmp_path: Path) -> None:
    model = Pair(tmp_path, seed=0, max_target_positions=200).model
    # Nothing but two tokens may be said, so that it cannot but go round in circles.
    rules = TokenRules(end=END, only=(5, 6))
    jobs = [
        job(0, rules, limit=190, num_beams=2, repetition_penalty=1.0, stop_loops=stop)
        for stop in (True, False)
    ]
    found = run(model, jobs, places=2)
    assert [result.looped for result in found] == [True, False]
    assert len(found[0].tokens) < 190
    assert len(found[1].tokens) == 190
    assert found[0].end_logprob is None


@given(
    head=st.lists(st.integers(0, 9), max_size=20),
    phrase=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    times=st.integers(1, 30),
    tail=st.lists(st.integers(0, 9), max_size=2),
    start=st.integers(0, 3),
)
@settings(max_examples=50, deadline=None)
def test_loops_are_those_of_the_plain_lane(
    head: list[int], phrase: list[int], times: int, tail: list[int], start: int
) -> None:
    # Tokens from 8 on stand for timestamps, which count as one.
    said = [*[1] * start, *head, *phrase * times, *tail][:400]
    hypothesis.assume(len(said) > start)
    one = replace(job(0, limit=1, stop_loops=True), prompt=(1,) * max(start, 1))
    one = replace(one, rules=TokenRules(end=END, timestamp_begin=8), prompt=(1,) * start)
    watch = RepetitionDetector(1, VOCAB, torch.device("cpu"))
    watch.admit([0], [one])
    text, row = torch.zeros(1, 400, dtype=torch.long), torch.tensor([0])
    text[0, : len(said)] = torch.tensor(said)
    for position in range(start, len(said)):
        token, length = torch.tensor([said[position]]), torch.tensor([position])
        expected = watch.update(token, row, text, length, torch.tensor([True]))
    found = repeats_itself(
        text,
        torch.tensor([len(said)]),
        starts=torch.tensor([start]),
        alike_from=torch.tensor([8]),
    )
    assert found.tolist() == expected.tolist()


def test_a_model_that_gives_no_numbers_is_an_error(pairs: list[Pair]) -> None:
    good = job(1, num_beams=2)
    spoilt = replace(good, features=np.full_like(good.features, np.nan))
    batch = BeamBatch(pairs[0].model, 2, 2)
    batch.fill([0, 1], [spoilt, good], encode_windows(batch.model, [spoilt, good]))
    batch.admit([0, 1], [spoilt, good])
    while len(batch.ended(2)) < 2:
        batch.step(2, sampled=False)
    spoilt_result, result = batch.collect([0, 1])
    assert "not a number" in str(spoilt_result)
    assert isinstance(result, WindowResult)
    check(pairs[0], [good], [result])


def test_more_beams_than_there_is_to_say_are_refused_with_their_job(pairs: list[Pair]) -> None:
    model = pairs[0].model
    check_job(job(0, num_beams=VOCAB // 2), model)
    with pytest.raises(ValueError, match="searching with 31 beams: a vocabulary of 60"):
        check_job(job(0, num_beams=VOCAB // 2 + 1), model)


def test_beams_and_plain_searches_share_a_scheduler(pairs: list[Pair]) -> None:
    jobs = [job(0, num_beams=2), job(1), job(2, GRAMMAR, num_beams=5), job(0, GRAMMAR, num_beams=2)]
    (found,) = run_jobs(SlotScheduler(pairs[0].model, 4), [jobs])
    results = [cast("WindowResult", result) for result in found]
    assert results.pop(1).sequence_score is None
    check(pairs[0], [jobs[0], *jobs[2:]], results)
