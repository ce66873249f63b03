"""Drafts save runs of the large model and change nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from corpus_asr.decoding.batch import SpeculativeBatch, encode_windows
from corpus_asr.decoding.protocols import (
    SlotModel,
    WindowJob,
    WindowResult,
    check_assistant,
)
from corpus_asr.decoding.slots import SlotScheduler
from corpus_asr.families.whisper.model import (
    WhisperDecoderSlots,
    WhisperForCausalLM,
    WhisperSlotModel,
)
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from tests.support.searches import END, GRAMMAR, PLAIN, POSITIONS, SOURCE, VOCAB, job, small_whisper
from tests.support.slots import assert_all_same, run_jobs


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


def run(model: SlotModel, jobs: list[WindowJob], *, slots: int = 3, every: int = 1) -> list[Any]:
    scheduler = SlotScheduler(model, slots, check_every=every)
    return [result for (result,) in run_jobs(scheduler, [[one] for one in jobs])]


def assisted(jobs: list[WindowJob], assistant: SlotModel, drafts: int) -> list[WindowJob]:
    return [
        replace(each, search=replace(each.search, assistant=assistant, num_draft_tokens=drafts))
        for each in jobs
    ]


def check(found: list[WindowResult], expected: list[WindowResult]) -> None:
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
    return run(model, mixed_jobs())


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
    check(run(model, jobs, every=every), plain)


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
        job(3, GRAMMAR, early_processors=(hates_repeats,), keep_scores=True, keep_logits=True),
        job(4, temperature=1.0),
    ]
    expected = run(model, jobs)
    found = run(model, assisted(jobs, assistants["nearly the same"], 3))
    check(found, expected)
    assert len(found[2].tokens) == 18
    assert found[3].logits is not None


class Counting(WhisperSlotModel):
    """Counts its runs."""

    runs = 0

    def extend(self, *args: Any) -> torch.Tensor:
        self.runs += 1
        return super().extend(*args)


@pytest.mark.parametrize(
    ("name", "runs"), [("the same", (5, 5)), ("nearly the same", (6, 20)), ("another", (10, 29))]
)
def test_good_drafts_save_runs_of_the_model(
    network: WhisperForConditionalGeneration,
    assistants: Assistants,
    name: str,
    runs: tuple[int, int],
) -> None:
    # 29 tokens after the first; the same model guesses six at a time.
    counting = Counting(network)
    jobs = assisted([job(0, temperature=0.5)], assistants[name], 5)
    found = run(counting, jobs)
    assert len(found[0].tokens) == 30
    assert runs[0] <= counting.runs <= runs[1]


def test_a_window_again_is_not_heard_again(model: WhisperSlotModel, assistants: Assistants) -> None:
    batch = SpeculativeBatch(model, assistants["another"], 2, 4)
    alone = run(model, [job(0), job(1), job(0, GRAMMAR)])
    jobs = [job(0), job(1)]
    batch.fill([0, 1], jobs, encode_windows(model, jobs))
    results: list[Any] = []
    for admitted in (jobs, [job(0, GRAMMAR)]):
        batch.admit(range(len(admitted)), admitted)
        while len(batch.ended(len(admitted))) < len(admitted):
            batch.step(len(admitted), sampled=False)
        results += batch.collect(range(len(admitted)))
    check(results, alone)


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
    check(cast("list[WindowResult]", found), run(model, [job(1, GRAMMAR)]))


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
        (decoder_of(networks["narrow"]), rf"windows of \({SOURCE}, 8\).*encodes \({SOURCE}, 16\)"),
        (networks["longer"].to("meta").slot_model(), "an assistant on meta for a model on cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            check_assistant(model, assistant)
