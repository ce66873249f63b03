"""Recordings of many windows: `generate` says what `transformers` says, segment for segment."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.references import WINDOW, Pair, pair, same, sound

FRAMES = 3 * WINDOW + 36
FEATURES = sound(3, FRAMES, seed=2)
MASK = torch.stack([torch.arange(FRAMES) < n for n in (FRAMES, 2 * WINDOW + 11, 93)]).long()
ALONE = FEATURES[:1]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    found = pair(tmp_path_factory.mktemp("pair"), seed=3, max_target_positions=64)
    found.set(max_new_tokens=20, return_timestamps=True)
    return found


def prompt(both: Pair, *ids: int) -> Tensor:
    return torch.tensor([both.settings.prev_sot_token_id, *ids])


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"return_segments": True},
        {"return_segments": True, "language": ["en", "de", "fr"], "task": "transcribe"},
        {"return_dict_in_generate": True},
        {"return_dict_in_generate": True, "return_timestamps": True},
        {"return_segments": True, "condition_on_prev_tokens": True},
        {"return_segments": True, "max_initial_timestamp_index": 3},
        {"force_unique_generate_call": True},
        {"force_unique_generate_call": True, "return_dict_in_generate": True},
    ],
    ids=lambda arguments: ",".join(arguments) or "default",
)
def test_a_batch_of_recordings_of_unlike_length(both: Pair, arguments: dict[str, Any]) -> None:
    same(*both.both(FEATURES, attention_mask=MASK, **arguments))


@pytest.mark.parametrize(
    ("kind", "condition"),
    [("first-segment", True), ("first-segment", False), ("all-segments", True), (None, False)],
)
@pytest.mark.parametrize("marked", [True, False])
def test_prompts_and_conditions(
    both: Pair, kind: str | None, condition: bool, marked: bool
) -> None:
    ids = prompt(both, *range(60, 70))[0 if marked else 1 :]
    arguments = {"prompt_condition_type": kind, "condition_on_prev_tokens": condition}
    same(*both.both(ALONE, prompt_ids=ids, return_dict_in_generate=True, **arguments))


def test_earlier_text_is_cut_to_half_the_decoder(both: Pair) -> None:
    arguments = {"prompt_ids": prompt(both, *range(60)), "return_segments": True}
    same(*both.both(ALONE, condition_on_prev_tokens=True, **arguments))


def test_without_a_token_for_earlier_text_the_last_but_one_suppressed_is_taken(
    both: Pair,
) -> None:
    with both.having(prev_sot_token_id=None):
        arguments = {"condition_on_prev_tokens": True, "suppress_tokens": [11, 12, 13]}
        same(*both.both(ALONE, return_dict_in_generate=True, **arguments))
        same(*both.both(ALONE, condition_on_prev_tokens=True, return_segments=True))


def test_the_limit_on_length_grows_with_every_window(both: Pair) -> None:
    arguments = {"max_new_tokens": None, "max_length": 5, "return_segments": True}
    with both.having(max_new_tokens=None):
        same(*both.both(ALONE, **arguments))
        same(*both.both(ALONE, condition_on_prev_tokens=True, **arguments))


def test_progress_is_told_window_by_window(both: Pair) -> None:
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    both.say(ALONE, monitor_progress=ours.append)
    both.said(ALONE, monitor_progress=lambda p: theirs.append(p.clone()))
    same(ours, theirs)
    ours.clear()
    both.say(FEATURES, attention_mask=MASK, monitor_progress=ours.append)
    assert ours[0].tolist() == [[0, FRAMES], [0, 2 * WINDOW + 11], [0, 93]]
    for report, later in pairwise(ours):
        assert torch.all(later[:, 0] >= report[:, 0])


def test_an_exception_of_the_callers_function_arrives(both: Pair) -> None:
    def stop(_: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        both.say(ALONE, monitor_progress=stop)
