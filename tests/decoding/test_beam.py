"""Beams side by side, equal to transformers' in tests/parity; drafts change only the time."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corpus_asr.decoding.batch import encode_windows
from corpus_asr.decoding.beam import BeamBatch, highest_of_rows, in_place_order
from corpus_asr.decoding.jobs import TokenRules, WindowJob, WindowResult
from corpus_asr.decoding.protocols import SlotModel, check_assistant
from corpus_asr.decoding.rules import RepetitionDetector
from corpus_asr.decoding.slots import SlotScheduler
from corpus_asr.decoding.speculative import SpeculativeBatch
from corpus_asr.families.whisper.model import (
    WhisperDecoderSlots,
    WhisperForCausalLM,
    WhisperSlotModel,
)
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from tests.support.searches import END, GRAMMAR, PLAIN, POSITIONS, SOURCE, VOCAB, job, small_whisper
from tests.support.slots import assert_all_same, run_jobs

SUPPRESSING = TokenRules(end=END, suppress=(3, 7, 12), suppress_first=(END, 5))


@pytest.fixture(scope="module")
def networks(
    tmp_path_factory: pytest.TempPathFactory,
) -> list[WhisperForConditionalGeneration]:
    folders = [tmp_path_factory.mktemp("checkpoint") for _ in range(3)]
    return [small_whisper(folder, seed=seed) for seed, folder in enumerate(folders)]


@pytest.fixture(scope="module")
def models(networks: list[WhisperForConditionalGeneration]) -> list[WhisperSlotModel]:
    return [network.slot_model() for network in networks]


def run(model: SlotModel, jobs: list[WindowJob], *, places: int) -> list[WindowResult]:
    """Decode jobs side by side; places that end are refilled or closed."""
    beams = jobs[0].search.num_beams
    scheduler = SlotScheduler(model, places * beams, num_beams=beams)
    return [
        cast("WindowResult", result) for (result,) in run_jobs(scheduler, [[one] for one in jobs])
    ]


def check(model: SlotModel, jobs: list[WindowJob], found: list[WindowResult]) -> None:
    """Check that each job found what it finds alone."""
    for one, result in zip(jobs, found, strict=True):
        (alone,) = run(model, [one], places=1)
        assert result.tokens == alone.tokens
        assert result.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_a_text_may_fill_the_whole_decoder(models: list[WhisperSlotModel]) -> None:
    endless = replace(SUPPRESSING, suppress=(END,))
    jobs = [job(0, endless, limit=99, num_beams=3), job(1, endless, prompt=(31,) * 47, num_beams=3)]
    found = run(models[2], jobs, places=2)
    assert [len(result.tokens) for result in found] == [POSITIONS - 2, 1]


def test_logprobs_are_those_of_the_tokens_under_the_rules(
    networks: list[WhisperForConditionalGeneration], models: list[WhisperSlotModel]
) -> None:
    one = job(1, SUPPRESSING, num_beams=3)
    (result,) = run(models[0], [one], places=1)
    features, prompt = torch.from_numpy(one.features), list(one.prompt)
    tokens = torch.tensor([[*prompt, *result.tokens]])
    with torch.inference_mode():
        whole = networks[0](features.unsqueeze(0), decoder_input_ids=tokens).logits[0]
    rows = whole[len(prompt) - 1 : -1].clone()
    rows[:, list(SUPPRESSING.suppress)] = -torch.inf
    rows[0, list(SUPPRESSING.suppress_first)] = -torch.inf
    under_rules = rows.log_softmax(dim=1)[range(len(rows)), list(result.tokens)]
    assert result.logprobs == pytest.approx(under_rules.tolist(), abs=1e-4)


@hypothesis.given(st.lists(st.lists(st.integers(0, 4), min_size=5, max_size=5), min_size=1))
def test_only_second_beams_of_a_source_change_places(places: list[list[int]]) -> None:
    order = in_place_order(torch.tensor(places))
    for sources, ranks in zip(places, order.tolist(), strict=True):
        assert sorted(ranks) == [*range(5)]
        for source in set(sources):
            assert ranks[source] == sources.index(source)


@given(
    width=st.sampled_from((7, 512, 1023, 1024, 1500, 51_865)),
    count=st.integers(1, 12),
    removed=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**16),
)
def test_the_highest_values_of_rows_are_those_of_topk(
    width: int, count: int, removed: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randperm(3 * width, generator=generator).view(3, width).float()
    scores[torch.rand(3, width, generator=generator) < removed] = -torch.inf
    values, places = highest_of_rows(scores, min(count, width))
    assert torch.equal(values, scores.topk(min(count, width), dim=1).values)
    assert torch.equal(values, scores.gather(1, places))
    assert all(len(set(row)) == len(row) for row in places.tolist())


def test_processors_and_criteria_are_asked_for_every_beam(models: list[WhisperSlotModel]) -> None:
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
    found = run(models[1], jobs, places=3)
    assert 9 in found[0].tokens
    assert 7 not in found[0].tokens
    assert len(found[1].tokens) == 10
    check(models[1], [replace(jobs[1], max_new_tokens=10), jobs[2]], found[1:])


def test_a_window_that_repeats_itself_ends_early(tmp_path: Path) -> None:
    model = small_whisper(tmp_path, seed=0, max_target_positions=200).slot_model()
    # Nothing but two tokens may be said, so that it cannot but go round in circles.
    rules = TokenRules(end=END, only=(5, 6))
    jobs = [
        job(0, rules, limit=190, num_beams=2, repetition_penalty=1.0, stop_loops=stop)
        for stop in (True, False)
    ]
    found = run(model, jobs, places=2)
    assert [result.looped for result in found] == [True, False]
    assert len(found[0].tokens) < 80
    assert len(found[1].tokens) == 190
    assert found[0].end_logprob is None


@given(
    head=st.lists(st.integers(0, 9), max_size=20),
    phrase=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    times=st.integers(1, 30),
    tail=st.lists(st.integers(0, 9), max_size=2),
    start=st.integers(0, 3),
)
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
    found = watch.found_in(text.unsqueeze(1), torch.tensor([len(said)]), slice(1))
    assert found.tolist() == [expected.tolist()]


def test_a_model_that_gives_no_numbers_is_an_error(models: list[WhisperSlotModel]) -> None:
    good = job(1, num_beams=2)
    spoilt = replace(good, features=np.full_like(good.features, np.nan))
    batch = BeamBatch(models[0], 2, 2)
    batch.fill([0, 1], [spoilt, good], encode_windows(batch.model, [spoilt, good]))
    batch.admit([0, 1], [spoilt, good])
    while len(batch.ended(2)) < 2:
        batch.step(2, sampled=False)
    spoilt_result, result = batch.collect([0, 1])
    assert "not a number" in str(spoilt_result)
    assert isinstance(result, WindowResult)
    check(models[0], [good], [result])


def decoder_of(network: WhisperForConditionalGeneration) -> WhisperDecoderSlots:
    return WhisperDecoderSlots(network.model.decoder, network.proj_out)


def nearly(network: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """The same network, slightly wrong: it guesses often but not always right."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.model.decoder.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoint")


@pytest.fixture(scope="module")
def network(folder: Path) -> WhisperForConditionalGeneration:
    return small_whisper(folder, seed=3)


@pytest.fixture(scope="module")
def model(network: WhisperForConditionalGeneration) -> WhisperSlotModel:
    return network.slot_model()


Assistants = dict[str, SlotModel]


@pytest.fixture(scope="module")
def assistants(
    network: WhisperForConditionalGeneration,
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Assistants:
    """Drafts of every quality, with an encoder and without."""
    small = small_whisper(tmp_path_factory.mktemp("small"), seed=2, d_model=8, layers=1)
    wrong = nearly(WhisperForConditionalGeneration.from_pretrained(folder))
    return {
        "the same": network.slot_model(),
        "the same decoder": WhisperForCausalLM.from_pretrained(folder).slot_model(),
        "nearly the same": wrong.slot_model(),
        "nearly the same decoder": decoder_of(wrong),
        "another": small.slot_model(),
    }


def run_drafted(
    model: SlotModel, jobs: list[WindowJob], *, slots: int = 3, every: int = 1
) -> list[Any]:
    scheduler = SlotScheduler(model, slots, check_every=every)
    return [result for (result,) in run_jobs(scheduler, [[one] for one in jobs])]


def assisted(jobs: list[WindowJob], assistant: SlotModel, drafts: int) -> list[WindowJob]:
    return [
        replace(each, search=replace(each.search, assistant=assistant, num_draft_tokens=drafts))
        for each in jobs
    ]


def agree(found: list[WindowResult], expected: list[WindowResult]) -> None:
    assert_all_same([found], [expected])


NAMES = ["the same", "the same decoder", "nearly the same", "nearly the same decoder", "another"]


def mixed_jobs() -> list[WindowJob]:
    endless = replace(GRAMMAR, suppress=(1, 2, END))
    return [
        job(0),
        job(1, GRAMMAR),
        job(2, GRAMMAR, temperature=0.7),
        job(3, prompt=(31,), limit=3),
        job(4, temperature=1.0),
        job(5, endless, prompt=(31, 5, 6, 7, 8, 32), limit=99, temperature=0.3),
        job(6, limit=1),
        job(7, prompt=(31,) * (POSITIONS - 1), limit=99),
        job(8, replace(PLAIN, suppress=(END,)), limit=99),
    ]


@pytest.fixture(scope="module")
def plain(model: WhisperSlotModel) -> list[WindowResult]:
    return run_drafted(model, mixed_jobs())


@pytest.mark.parametrize(
    ("name", "drafts", "every"),
    [(name, 5, 1) for name in NAMES] + [("nearly the same", 1, 1), ("another", 4, 3)],
)
def test_the_text_is_the_one_without_an_assistant(
    model: WhisperSlotModel,
    assistants: Assistants,
    plain: list[WindowResult],
    name: str,
    drafts: int,
    every: int,
) -> None:
    jobs = assisted(mixed_jobs(), assistants[name], drafts)
    agree(run_drafted(model, jobs, every=every), plain)


def hates_repeats(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    scores[0, tokens[0, -1]] -= 3.0
    return scores


def stops_at_20(tokens: torch.Tensor, scores: Any) -> bool:
    return tokens.shape[1] >= 20


def test_other_options_hold_for_drafts_too(model: WhisperSlotModel, assistants: Assistants) -> None:
    endless = replace(PLAIN, suppress=(END,))
    jobs = [
        job(0, endless, repetition_penalty=1.5, no_repeat_ngram_size=3),
        job(1, endless, temperature=0.8, top_k=4, top_p=0.9),
        job(2, endless, processors=(hates_repeats,), stopping=(stops_at_20,)),
        job(3, GRAMMAR, early_processors=(hates_repeats,)),
        job(4, temperature=1.0),
    ]
    expected = run_drafted(model, jobs)
    found = run_drafted(model, assisted(jobs, assistants["nearly the same"], 3))
    agree(found, expected)
    assert len(found[2].tokens) == 18


class Counting(WhisperSlotModel):
    """Counts its runs."""

    runs = 0

    def extend(self, *args: Any) -> torch.Tensor:
        self.runs += 1
        return super().extend(*args)


def test_a_spoilt_window_spoils_no_other(model: WhisperSlotModel, assistants: Assistants) -> None:
    jobs = assisted([job(0), job(1, GRAMMAR)], assistants["nearly the same decoder"], 3)
    batch = SpeculativeBatch(model, assistants["nearly the same decoder"], 2, 3)
    spoilt = replace(jobs[0], features=np.full_like(jobs[0].features, np.nan))
    batch.fill([0, 1], [spoilt, jobs[1]], encode_windows(model, [spoilt, jobs[1]]))
    batch.admit([0, 1], [spoilt, jobs[1]])
    while len(batch.ended(2)) < 2:
        batch.step(2, sampled=False)
    spoilt_result, *found = batch.collect([0, 1])
    assert "not a number" in str(spoilt_result)
    agree(cast("list[WindowResult]", found), run_drafted(model, [job(1, GRAMMAR)]))


def test_what_can_draft_for_what(tmp_path: Path) -> None:
    sizes: dict[str, dict[str, Any]] = {
        "own": {}, "longer": {"max_target_positions": POSITIONS + 16},
        "shorter": {"max_target_positions": POSITIONS - 1}, "narrow": {"d_model": 8},
        "wide vocabulary": {"vocab_size": VOCAB + 1},
    }  # fmt: skip
    networks = {name: small_whisper(tmp_path / name, **size) for name, size in sizes.items()}
    model = networks["own"].slot_model()
    for fits in (model, decoder_of(networks["own"]), networks["longer"].slot_model()):
        check_assistant(model, fits)
    check_assistant(model, networks["narrow"].slot_model())  # listens for itself
    for assistant, message in (
        (networks["wide vocabulary"].slot_model(), "an assistant of 61 tokens for a model of 60"),
        (networks["shorter"].slot_model(), f"{POSITIONS - 1} positions for a model of {POSITIONS}"),
        (decoder_of(networks["narrow"]), rf"windows of \({SOURCE}, 8\).*model of \({SOURCE}, 16\)"),
        (networks["longer"].to("meta").slot_model(), "an assistant on meta for a model on cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            check_assistant(model, assistant)
