"""Fallback, silence and sampling: `generate` decides what `transformers` decides.

Sampled tokens cannot be the same. So the ladder is compared where its warm steps leave no choice:
a processor allows one token, different at every temperature only by what the step before it said.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.references import WINDOW, Pair, pair, same, sound

FRAMES = 3 * WINDOW + 36
LONG = sound(1, FRAMES, seed=8)
SHORT = LONG[:, :, :WINDOW]
BATCH = sound(3, FRAMES, seed=9)
MASK = torch.stack([torch.arange(FRAMES) < n for n in (FRAMES, 2 * WINDOW + 11, 93)]).long()
CERTAIN = 1e-3
"""A temperature at which the likeliest token is as good as certain."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    found = pair(tmp_path_factory.mktemp("pair"), seed=11, spread=0.3, max_target_positions=64)
    found.set(max_new_tokens=14, return_timestamps=True)
    return found


def segments(output: Any) -> list[list[tuple[float, float, list[int]]]]:
    return [
        [(float(s["start"]), float(s["end"]), s["tokens"].tolist()) for s in row]
        for row in output["segments"]
    ]


def agree(both: Pair, features: Tensor, **arguments: Any) -> None:
    """Check that both keep the same segments."""
    ours, theirs = both.both(features, return_segments=True, **arguments)
    assert segments(ours) == segments(theirs)


@pytest.fixture(scope="module")
def logprobs(both: Pair) -> list[float]:
    """Average log-probabilities of windows, to choose thresholds between."""
    output = both.say(
        LONG, return_segments=True, return_dict_in_generate=True, output_scores=True,
        return_timestamps=True,
    )  # fmt: skip
    found = []
    for segment in output["segments"][0]:
        scores = torch.stack(segment["result"]["scores"]).log_softmax(-1)
        tokens = segment["result"]["sequences"][-len(scores) :]
        found.append(float(scores.gather(1, tokens[:, None]).mean()))
    return found


@pytest.mark.parametrize(
    ("share", "no_speech", "condition"),
    [(0.1, 0.0, False), (0.3, None, True), (0.3, 1e-4, True), (0.6, 0.0, False), (0.6, 1.0, False)],
)
def test_unlikely_windows_are_tried_again_or_left_out(
    both: Pair, logprobs: list[float], share: float, no_speech: float | None, condition: bool
) -> None:
    values = sorted(logprobs)
    threshold = values[0] - 0.1 + share * (values[-1] - values[0] + 0.2)
    agree(
        both,
        LONG,
        temperature=(0.0, CERTAIN),
        logprob_threshold=threshold,
        no_speech_threshold=no_speech,
        condition_on_prev_tokens=condition,
    )


def test_silence_after_a_prompt_shorter_than_our_own(both: Pair) -> None:
    begin = torch.tensor([[5, 6]])
    options = {"temperature": 0.0, "logprob_threshold": 0.0}
    for no_speech in (0.0, 1e-4, 1.0):
        agree(both, SHORT, decoder_input_ids=begin, no_speech_threshold=no_speech, **options)


def test_a_choice_is_weighed_among_what_it_was_sampled_from(both: Pair) -> None:
    arguments = {"temperature": CERTAIN, "top_k": 1}
    same(*both.both(SHORT, **arguments))
    for threshold in (-1e-3, -0.6):
        agree(both, LONG, logprob_threshold=threshold, no_speech_threshold=0.0, **arguments)


@pytest.mark.parametrize("threshold", [0.5, 1.35])
@pytest.mark.parametrize("temperature", [(0.0, CERTAIN), [CERTAIN, 2 * CERTAIN], None])
def test_texts_that_repeat_themselves_are_tried_again(
    both: Pair, threshold: float, temperature: Any
) -> None:
    agree(both, LONG, compression_ratio_threshold=threshold, temperature=temperature)


def test_all_thresholds_in_a_batch(both: Pair, logprobs: list[float]) -> None:
    options = {"logprob_threshold": sorted(logprobs)[1], "no_speech_threshold": 2e-4}
    options |= {"temperature": 0.0, "compression_ratio_threshold": 1.35}
    agree(both, BATCH, attention_mask=MASK, **options)


def test_thresholds_of_the_settings_hold_too(both: Pair) -> None:
    with both.having(compression_ratio_threshold=0.5):
        agree(both, LONG, temperature=(0.0, CERTAIN))


def test_beams_meet_thresholds_and_end_where_sampling_begins(both: Pair) -> None:
    agree(both, LONG, num_beams=3, temperature=(0.0, CERTAIN), compression_ratio_threshold=1.0)
    options = {"num_beams": 3, "temperature": 0.0, "no_speech_threshold": 0.0}
    for threshold in (-0.1, -3.1):
        agree(both, LONG, logprob_threshold=threshold, **options)


def test_sampling_among_one_token_and_without_a_temperature_is_greedy(both: Pair) -> None:
    greedy = both.say(SHORT)
    same(both.say(SHORT, temperature=2.0, top_k=1), greedy)
    same(both.say(SHORT, temperature=2.0, top_p=1e-6), greedy)
    same(*both.both(SHORT, do_sample=True))
