"""When each token was said: `generate` finds the times that `transformers` finds."""

from typing import Any

import pytest
import torch

from tests.support.references import WINDOW, Pair, pair, same, sound

# The reference hands tensors to numpy in a way numpy warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")

FRAMES = 2 * WINDOW + 36
SHORT = sound(3, WINDOW, seed=12)
LONG = sound(2, FRAMES, seed=13)
MASK = torch.stack([torch.arange(FRAMES) < n for n in (FRAMES, WINDOW + 51)]).long()
SHORT_MASK = torch.stack([torch.arange(WINDOW) < n for n in (WINDOW, 90, 151)]).long()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    found = pair(tmp_path_factory.mktemp("pair"), seed=13, spread=0.4)
    found.set(max_new_tokens=9, alignment_heads=[[0, 1], [1, 0]])
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"attention_mask": SHORT_MASK},
        {"attention_mask": torch.ones(3, WINDOW).long()},
        {"return_timestamps": True, "attention_mask": SHORT_MASK, "return_segments": True},
        {"return_dict_in_generate": True, "attention_mask": SHORT_MASK},
        {"force_unique_generate_call": True},
        {"task": "translate", "language": "de"},
        {"prompt_ids": torch.tensor([5, 6, 7]), "attention_mask": SHORT_MASK},
        {"max_new_tokens": 1},
        {"max_new_tokens": 2},
    ],
    ids=lambda arguments: ",".join(arguments) or "default",
)
def test_times_of_one_window(both: Pair, arguments: dict[str, Any]) -> None:
    ours, theirs = both.both(SHORT, return_token_timestamps=True, **arguments)
    assert isinstance(ours, dict)
    same(ours["sequences"], theirs["sequences"])
    same(ours["token_timestamps"], theirs["token_timestamps"])
    if "scores" in theirs:
        same(ours["scores"], theirs["scores"])
    if "segments" in theirs:
        compare(ours["segments"], theirs["segments"])


def test_times_of_many_windows(both: Pair) -> None:
    wanted = {"return_timestamps": True, "return_token_timestamps": True, "return_segments": True}
    for features, arguments in (
        (LONG[:1], {}),
        (LONG[:1], {"condition_on_prev_tokens": True}),
        (LONG, {"attention_mask": MASK}),
    ):
        ours, theirs = both.both(features, **wanted, **arguments)
        same(ours["token_timestamps"], theirs["token_timestamps"])
        compare(ours["segments"], theirs["segments"])


def test_times_with_beams(both: Pair) -> None:
    one = SHORT[:1]
    ours, theirs = both.both(one, return_token_timestamps=True, num_beams=3)
    same(ours["sequences"], theirs["sequences"])
    same(ours["token_timestamps"], theirs["token_timestamps"])


def test_times_take_heads_that_follow_the_sound(
    both: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(both.settings, "alignment_heads", None)
    with pytest.raises(ValueError, match="alignment_heads, found none"):
        both.say(SHORT, return_token_timestamps=True)


def compare(ours: Any, theirs: Any) -> None:
    assert [len(row) for row in ours] == [len(row) for row in theirs]
    for row, other_row in zip(ours, theirs, strict=True):
        for segment, other in zip(row, other_row, strict=True):
            for name in ("start", "end", "tokens", "idxs", "token_timestamps"):
                same(segment[name], other[name], where=name)
            for name in ("sequences", "token_timestamps"):
                same(segment["result"][name], other["result"][name], where=name)
