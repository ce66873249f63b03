"""`generate` of Whisper says what `transformers` says: one window, many windows, searches, times.

What falls back, is silent or is sampled is in test_generate_thresholds.py.
"""

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.support.references import WINDOW, Pair, pair, same, sound

FRAMES, FEWER = 3 * WINDOW + 36, 2 * WINDOW + 36
ONE = sound(3, WINDOW, seed=1)
MANY = sound(3, FRAMES, seed=2)
TWO = sound(2, WINDOW, seed=4)
LONG = sound(1, FEWER, seed=4)


def mask(frames: int, *lengths: int) -> Tensor:
    return torch.stack([torch.arange(frames) < length for length in lengths]).long()


MASK = mask(FRAMES, FRAMES, 2 * WINDOW + 11, 93)
PREVIOUS = torch.tensor([7, 8, 9])
# By name: a pair's weights and sizes, and its settings.
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one window": ({"seed": 1}, {}),
    "English": ({"multilingual": False, "seed": 3}, {}),
    "many windows": (
        {"seed": 3, "max_target_positions": 64}, {"max_new_tokens": 20, "return_timestamps": True},
    ),
    "search": ({"seed": 5}, {"max_new_tokens": 12}),
    "times": (
        {"seed": 13, "spread": 0.4}, {"max_new_tokens": 9, "alignment_heads": [[0, 1], [1, 0]]},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Make each pair once, when it is called for."""

    @cache
    def make(name: str) -> Pair:
        weights, settings = PAIRS[name]
        found = pair(tmp_path_factory.mktemp("pair"), **weights)
        found.set(**settings)
        return found

    return make


@pytest.fixture
def one_window(pairs: Any) -> Pair:
    found: Pair = pairs("one window")
    return found


@pytest.fixture
def many_windows(pairs: Any) -> Pair:
    found: Pair = pairs("many windows")
    return found


@pytest.fixture
def search(pairs: Any) -> Pair:
    found: Pair = pairs("search")
    return found


@pytest.fixture
def times(pairs: Any) -> Pair:
    found: Pair = pairs("times")
    return found


OF_ONE_WINDOW: list[dict[str, Any]] = [
    {},
    {"return_timestamps": True},
    {"language": "german"},
    {"language": ["<|en|>", "DE", "castilian"], "task": "translate"},
    {"task": "transcribe", "return_timestamps": True},
    {"max_new_tokens": 5},
    {"max_length": 11},
    {"suppress_tokens": list(range(0, 400, 3)), "begin_suppress_tokens": [1, 4]},
    {"suppress_tokens": None, "begin_suppress_tokens": None},
    {"prompt_ids": PREVIOUS},
    {"prompt_ids": PREVIOUS, "condition_on_prev_tokens": True},
    {"is_multilingual": True, "language": "fr"},
    {"force_unique_generate_call": True},
    {"force_unique_generate_call": True, "return_timestamps": True, "return_segments": True},
    {"return_segments": True},
    {"return_segments": True, "return_timestamps": True},
    {"return_dict_in_generate": True},
    {"return_dict_in_generate": True, "return_timestamps": True},
    {"output_logits": True, "max_new_tokens": 4},
    {"cache_implementation": "static", "max_new_tokens": 6},
    {"use_cache": False, "max_new_tokens": 6},
    {"decoder_input_ids": torch.tensor([[5, 6], [7, 8], [9, 10]]), "max_new_tokens": 6},
    {"time_precision": 0.04, "time_precision_features": 0.02, "return_segments": True},
]
OF_MANY_WINDOWS: list[dict[str, Any]] = [
    {},
    {"return_segments": True},
    {"return_segments": True, "language": ["en", "de", "fr"], "task": "transcribe"},
    {"return_dict_in_generate": True},
    {"return_dict_in_generate": True, "return_timestamps": True},
    {"return_segments": True, "condition_on_prev_tokens": True},
    {"return_segments": True, "max_initial_timestamp_index": 3},
    {"force_unique_generate_call": True},
    {"force_unique_generate_call": True, "return_dict_in_generate": True},
]
SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 2},
    {"num_beams": 2, "early_stopping": "never", "return_segments": True},
    {"num_beams": 3, "no_repeat_ngram_size": 2},
    {"num_beams": 5, "early_stopping": True, "length_penalty": 2.0},
    {"num_beams": 5, "early_stopping": "never", "length_penalty": -1.0},
    {"num_beams": 5, "length_penalty": 0.0},
    {"num_beams": 2, "repetition_penalty": 1.7},
    {"num_beams": 4, "repetition_penalty": 0.8, "no_repeat_ngram_size": 3},
    {"repetition_penalty": 1.8},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1, "repetition_penalty": 0.7},
    {"forced_bos_token_id": 17},
]
CONDITIONED: dict[str, Any] = {"return_segments": True, "condition_on_prev_tokens": True}
CASES: list[tuple[str, Tensor, dict[str, Any]]] = [
    *(("one window", ONE, given) for given in OF_ONE_WINDOW),
    *(("English", ONE, given) for given in ({}, {"return_timestamps": True})),
    *(("many windows", MANY, {"attention_mask": MASK, **given}) for given in OF_MANY_WINDOWS),
    *(
        ("search", TWO, {"return_timestamps": number % 2 == 0, **given})
        for number, given in enumerate(SEARCHES)
    ),
    ("search", LONG, {"return_timestamps": True, "num_beams": 3, **CONDITIONED}),
]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "features", "arguments"),
    CASES,
    ids=[f"{name}: {', '.join(given)}" for name, _, given in CASES],
)
def test_the_same_tokens(
    pairs: Any, name: str, features: Tensor, arguments: dict[str, Any]
) -> None:
    same(*pairs(name).both(features, **arguments))


# One window


def test_languages_are_detected_row_by_row(one_window: Pair) -> None:
    features = sound(8, WINDOW + 50, seed=5) * torch.arange(1, 9).reshape(8, 1, 1)
    with torch.no_grad():
        theirs = one_window.theirs.detect_language(features, num_segment_frames=WINDOW)
    ours = one_window.detect(features, num_segment_frames=WINDOW)
    assert len(set(theirs.tolist())) > 1
    same(ours, theirs)


def test_encoder_outputs_stand_for_features(one_window: Pair) -> None:
    with torch.no_grad():
        encoded = one_window.theirs.get_encoder()(ONE)
        theirs = one_window.theirs.generate(encoder_outputs=encoded, max_new_tokens=6)
    same(one_window.say(None, encoder_outputs=encoded, max_new_tokens=6), theirs)
    same(one_window.say(None, encoder_outputs=(encoded[0],), max_new_tokens=6), theirs)


def test_forced_tokens_of_old_files(one_window: Pair) -> None:
    ids = one_window.settings
    forced = [[1, ids.lang_to_id["<|fr|>"]], [2, ids.task_to_id["translate"]]]
    wanted = {"return_dict_in_generate": True, "max_new_tokens": 5}
    for language in (ids.lang_to_id["<|fr|>"], None):
        forced[0][1] = language
        with one_window.having(forced_decoder_ids=forced):
            same(*one_window.both(ONE, **wanted))
            same(*one_window.both(ONE, task="transcribe", **wanted))
    with one_window.having(forced_decoder_ids=[[1, 5], [3, 6]]):
        for generate in (one_window.say, one_window.said):
            with pytest.raises(ValueError, match="forced_decoder_ids"):
                generate(ONE)


def test_settings_of_the_call_come_before_the_models(one_window: Pair) -> None:
    config = type(one_window.settings)(max_new_tokens=3)
    assert one_window.say(ONE, generation_config=config).shape[1] == 3
    assert one_window.say(ONE, generation_config=config, max_new_tokens=2).shape[1] == 2
    theirs = type(one_window.theirs.generation_config)(max_new_tokens=3)
    same(*one_window.both(ONE, generation_config=theirs))


# Many windows


def prompt(both: Pair, *ids: int) -> Tensor:
    return torch.tensor([both.settings.prev_sot_token_id, *ids])


@pytest.mark.parametrize(
    ("kind", "condition"),
    [("first-segment", True), ("first-segment", False), ("all-segments", True), (None, False)],
)
@pytest.mark.parametrize("marked", [True, False])
def test_prompts_and_conditions(
    many_windows: Pair, kind: str | None, condition: bool, marked: bool
) -> None:
    ids = prompt(many_windows, *range(60, 70))[0 if marked else 1 :]
    arguments = {"prompt_condition_type": kind, "condition_on_prev_tokens": condition}
    same(*many_windows.both(MANY[:1], prompt_ids=ids, return_dict_in_generate=True, **arguments))


def test_earlier_text_is_cut_to_half_the_decoder(many_windows: Pair) -> None:
    ids = prompt(many_windows, *range(60))
    same(*many_windows.both(MANY[:1], prompt_ids=ids, **CONDITIONED))


def test_without_a_token_for_earlier_text_the_last_but_one_suppressed_is_taken(
    many_windows: Pair,
) -> None:
    arguments = {"condition_on_prev_tokens": True, "suppress_tokens": [11, 12, 13]}
    with many_windows.having(prev_sot_token_id=None):
        same(*many_windows.both(MANY[:1], return_dict_in_generate=True, **arguments))
        same(*many_windows.both(MANY[:1], **CONDITIONED))


def test_the_limit_on_length_grows_with_every_window(many_windows: Pair) -> None:
    arguments = {"max_new_tokens": None, "max_length": 5, "return_segments": True}
    with many_windows.having(max_new_tokens=None):
        same(*many_windows.both(MANY[:1], **arguments))
        same(*many_windows.both(MANY[:1], condition_on_prev_tokens=True, **arguments))


def test_progress_is_told_window_by_window(many_windows: Pair) -> None:
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    many_windows.say(MANY[:1], monitor_progress=ours.append)
    many_windows.said(MANY[:1], monitor_progress=lambda p: theirs.append(p.clone()))
    same(ours, theirs)
    ours.clear()
    many_windows.say(MANY, attention_mask=MASK, monitor_progress=ours.append)
    assert ours[0].tolist() == [[0, FRAMES], [0, 2 * WINDOW + 11], [0, 93]]
    for report, later in pairwise(ours):
        assert torch.all(later[:, 0] >= report[:, 0])


# Searches


class Favour:
    """Adds to the score of one token where the text has an even length, and keeps count."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.begin = -1

    def set_begin_index(self, begin: int) -> None:
        self.begin = begin

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        assert tokens.shape[1] >= self.begin > 0
        scores = scores.clone()
        if tokens.shape[1] % 2:
            scores[:, self.token] += 3.0
        return scores


def after(token: int, least: int) -> Any:
    def stop(tokens: Tensor, scores: Any, **_: Any) -> Tensor:
        return (tokens[:, -1] == token) | torch.tensor(tokens.shape[1] >= least)

    return stop


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("times", [False, True])
def test_the_callers_processors_and_criteria(search: Pair, beams: int, times: bool) -> None:
    processors = transformers.LogitsProcessorList([Favour(40)])
    same(*search.both(TWO, logits_processor=processors, num_beams=beams, return_timestamps=times))
    if beams == 1:
        criteria = transformers.StoppingCriteriaList([after(40, 9)])
        same(*search.both(TWO, stopping_criteria=criteria, return_timestamps=times))


@pytest.mark.parametrize("beams", [1, 2])
def test_tokens_allowed_by_row_and_prefix(search: Pair, beams: int) -> None:
    def allowed(row: int, tokens: Tensor) -> list[int]:
        first = 20 if row == 0 else 60
        return [*range(first + len(tokens) % 3, first + 9)]

    ours, theirs = search.both(TWO, prefix_allowed_tokens_fn=allowed, num_beams=beams)
    same(ours, theirs)
    assert set(ours[0].tolist()) <= set(range(20, 29))
    assert set(ours[1].tolist()) <= set(range(60, 69))
    with pytest.raises(ValueError, match="returned no token for batch row"):
        search.say(TWO, prefix_allowed_tokens_fn=lambda row, tokens: [])


def test_a_draft_changes_no_token(search: Pair, tmp_path: Path) -> None:
    draft = pair(tmp_path, seed=6, d_model=16)
    one = TWO[:1]
    ours = search.say(one, assistant_model=draft.ours)
    with torch.no_grad():
        theirs = search.theirs.generate(one, assistant_model=draft.theirs)
    same(ours, theirs[:, -ours.shape[1] :] if theirs.shape[1] > ours.shape[1] else theirs)
    plain = search.say(TWO, begin_suppress_tokens=None, return_timestamps=True)
    same(search.say(TWO, assistant_model=draft.ours, return_timestamps=True), plain)
    same(
        search.say(LONG, assistant_model=draft.ours, return_timestamps=True),
        search.say(LONG, begin_suppress_tokens=None, return_timestamps=True),
    )
    with torch.no_grad():
        encoded = search.ours.get_encoder()(TWO)
    transcribed = {
        "encoder_outputs": encoded,
        "assistant_model": draft.ours,
        "return_timestamps": True,
    }
    same(search.say(TWO, **transcribed), plain)
    with pytest.raises(ValueError, match="found encoder_outputs without input_features"):
        search.say(None, **transcribed)
    same(
        search.say(TWO, assistant_model=draft.ours, num_beams=2),
        search.say(TWO, num_beams=2, begin_suppress_tokens=None),
    )


# Times of tokens

HEARD, SPOKEN = sound(3, WINDOW, seed=12), sound(2, FEWER, seed=13)
ONE_MASK, SPOKEN_MASK = mask(WINDOW, WINDOW, 90, 151), mask(FEWER, FEWER, WINDOW + 51)
# The reference hands tensors to numpy in a way numpy warns of.
quietly = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")


@quietly
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"attention_mask": ONE_MASK},
        {"attention_mask": torch.ones(3, WINDOW).long()},
        {"return_timestamps": True, "attention_mask": ONE_MASK, "return_segments": True},
        {"return_dict_in_generate": True, "attention_mask": ONE_MASK},
        {"force_unique_generate_call": True},
        {"task": "translate", "language": "de"},
        {"prompt_ids": torch.tensor([5, 6, 7]), "attention_mask": ONE_MASK},
        {"num_beams": 3},
        {"max_new_tokens": 1},
        {"max_new_tokens": 2},
    ],
    ids=lambda arguments: ",".join(arguments) or "default",
)
def test_times_of_one_window(times: Pair, arguments: dict[str, Any]) -> None:
    ours, theirs = times.both(HEARD, return_token_timestamps=True, **arguments)
    assert isinstance(ours, dict)
    same(ours["sequences"], theirs["sequences"])
    same(ours["token_timestamps"], theirs["token_timestamps"])
    if "segments" in theirs:
        compare(ours["segments"], theirs["segments"])


@quietly
def test_times_of_many_windows(times: Pair) -> None:
    wanted = {"return_timestamps": True, "return_token_timestamps": True, "return_segments": True}
    for features, arguments in (
        (SPOKEN[:1], {}),
        (SPOKEN[:1], {"condition_on_prev_tokens": True}),
        (SPOKEN, {"attention_mask": SPOKEN_MASK}),
    ):
        ours, theirs = times.both(features, **wanted, **arguments)
        same(ours["token_timestamps"], theirs["token_timestamps"])
        compare(ours["segments"], theirs["segments"])


def compare(ours: Any, theirs: Any) -> None:
    assert [len(row) for row in ours] == [len(row) for row in theirs]
    for row, other_row in zip(ours, theirs, strict=True):
        for segment, other in zip(row, other_row, strict=True):
            for name in ("start", "end", "tokens", "idxs", "token_timestamps"):
                same(segment[name], other[name], where=name)
            for name in ("sequences", "token_timestamps"):
                same(segment["result"][name], other["result"][name], where=name)
