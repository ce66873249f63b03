"""Jobs that hear only the front of their windows say what a network says that has no room for more,
whatever is decoded beside them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from corpus_asr.decoding.jobs import (
    AlignJob,
    Job,
    Result,
    Search,
    TokenRules,
    WindowJob,
    WindowResult,
)
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.decoding.slots import SlotScheduler
from corpus_asr.families.whisper.model import WhisperDecoderSlots, WhisperSlotModel
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from tests.decoding.test_beam import Counting
from tests.support.checkpoints import tiny_whisper
from tests.support.slots import assert_all_same, assert_same, cut_network, run_jobs

END, VOCAB, FRAMES = 30, 60, 400
LENGTHS = (100, 200, 300, None)
RULES = TokenRules(end=END, suppress_first=(END,))
SEARCHES = {
    "greedy": Search(),
    "sampled": Search(temperature=0.8),
    "beams": Search(num_beams=3),
}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> WhisperForConditionalGeneration:
    folder = tiny_whisper(
        tmp_path_factory.mktemp("checkpoint"),
        d_model=16,
        heads=2,
        vocab_size=VOCAB,
        max_target_positions=40,
        max_source_positions=FRAMES // 2,
        spread=0.3,
    )
    return WhisperForConditionalGeneration.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(network: WhisperForConditionalGeneration) -> WhisperSlotModel:
    return network.slot_model()


def frames_of(number: int) -> int | None:
    return LENGTHS[number % len(LENGTHS)]


def ask(kind: str, number: int, **changes: Any) -> Job:
    features = np.random.default_rng(number).standard_normal((80, FRAMES), dtype=np.float32)
    if kind == "align":
        return AlignJob(
            features=features,
            window=(number,),
            tokens=(21, 4, 5, number),
            heads=((0, 1), (1, 0)),
            num_frames=frames_of(number),
        )
    usual: dict[str, Any] = {
        "features": features,
        "window": (number,),
        "prompt": (31, 32, *range(20))[: 2 + 10 * (number % 3)],  # some are long
        "rules": RULES,
        "max_new_tokens": 6 + number % 7,
        "search": SEARCHES.get(kind, Search()),
        "seed": number,
        "score_token": 3,
        "num_frames": frames_of(number),
    }
    return WindowJob(**(usual | changes))


def run(model: SlotModel, tasks: list[list[Job]], *, slots: int) -> list[list[Result]]:
    scheduler = SlotScheduler(model, slots, encode_batch=3, check_every=2)
    return run_jobs(scheduler, tasks)


NUMBERS = range(8)
KINDS = (*SEARCHES, "align")
Alone = dict[tuple[str, int], Result]


@pytest.fixture(scope="module")
def alone(network: WhisperForConditionalGeneration) -> Alone:
    """Each job by itself, on a network made for windows of its length."""
    found: Alone = {}
    for length in LENGTHS:
        frames = length or FRAMES
        model = cut_network(network, frames=frames).slot_model()
        for kind in KINDS:
            for number in (one for one in NUMBERS if frames_of(one) == length):
                whole = ask(kind, number)
                job = replace(whole, features=whole.features[:, :frames].copy(), num_frames=None)
                [[found[kind, number]]] = run(model, [[job]], slots=1)
    return found


@pytest.mark.long
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_jobs_of_all_lengths_and_kinds_side_by_side(
    model: WhisperSlotModel, alone: Alone, slots: int
) -> None:
    names = [[(kind, number), ("align", number)] for number in NUMBERS for kind in SEARCHES]
    np.random.default_rng(slots).shuffle(names)
    found = run(model, [[ask(*name) for name in task] for task in names], slots=slots)
    assert_all_same(found, [[alone[kind, int(number)] for kind, number in task] for task in names])


@pytest.mark.parametrize("listens", [True, False], ids=["own encoder", "decoder alone"])
@pytest.mark.parametrize("slots", [1, 3])
def test_drafts_are_of_what_is_heard_too(
    network: WhisperForConditionalGeneration,
    alone: Alone,
    slots: int,
    listens: bool,
) -> None:
    assistant: SlotModel = (
        network.slot_model()
        if listens
        else WhisperDecoderSlots(network.model.decoder, network.proj_out)
    )
    counting = Counting(network)
    search = Search(assistant=assistant, num_draft_tokens=4)
    tasks = [[ask("greedy", number, search=search)] for number in NUMBERS]
    checks = 0
    for number, [result] in zip(NUMBERS, run(counting, tasks, slots=slots), strict=True):
        assert_same(result, alone["greedy", number])
        assert isinstance(result, WindowResult)
        checks += -(-len(result.tokens) // 5)  # the first token needs none, the end does
    if slots == 1:  # the same network guesses all tokens right, if it hears the same
        assert counting.runs <= checks


def test_the_same_window_heard_further_is_encoded_again(
    model: WhisperSlotModel, alone: Alone
) -> None:
    short = ask("greedy", 0)
    longer = replace(short, num_frames=200)
    [[first, second, third]] = run(model, [[short, longer, short]], slots=2)
    assert_same(first, alone["greedy", 0])
    assert_same(third, first)
    [[expected]] = run(model, [[longer]], slots=1)
    assert_same(second, expected)
    assert second.logprobs != pytest.approx(first.logprobs, abs=1e-3)
