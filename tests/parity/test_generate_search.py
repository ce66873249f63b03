"""Beams, processors, drafts and thresholds: `generate` finds what `transformers` finds."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.support.references import WINDOW, Pair, Streamer, pair, same, sound

FRAMES = 2 * WINDOW + 36
SHORT = sound(2, WINDOW, seed=4)
LONG = sound(1, FRAMES, seed=4)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    found = pair(tmp_path_factory.mktemp("pair"), seed=5)
    found.set(max_new_tokens=12)
    return found


@pytest.mark.parametrize("times", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {"num_beams": 2},
        {"num_beams": 3, "length_penalty": 0.3},
        {"num_beams": 3, "length_penalty": -2.0, "early_stopping": True},
        {"num_beams": 2, "early_stopping": "never", "return_segments": True},
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 2, "repetition_penalty": 1.7},
        {"num_beams": 2, "no_repeat_ngram_size": 2},
        {"num_beams": 2, "bad_words_ids": [[3, 4], [9]], "min_new_tokens": 3},
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 1, "repetition_penalty": 0.7},
        {"bad_words_ids": [[3, 4], [9]]},
        {"min_new_tokens": 6},
        {"min_length": 9},
        {"forced_eos_token_id": 17},
        {"forced_bos_token_id": 17, "remove_invalid_values": True},
    ],
    ids=lambda arguments: ",".join(arguments),
)
def test_settings_of_search(both: Pair, arguments: dict[str, Any], times: bool) -> None:
    same(*both.both(SHORT, return_timestamps=times, **arguments))


def test_beams_over_many_windows(both: Pair) -> None:
    arguments = {"return_timestamps": True, "return_segments": True, "num_beams": 3}
    same(*both.both(LONG, condition_on_prev_tokens=True, **arguments))


def test_scores_of_beams(both: Pair) -> None:
    ours, theirs = both.both(SHORT, num_beams=3, return_dict_in_generate=True, output_scores=True)
    same(ours.sequences, theirs.sequences)
    same(ours.sequences_scores, theirs.sequences_scores)


def test_bad_words_are_not_said(both: Pair) -> None:
    word, second = both.say(SHORT)[0][:2].tolist()
    ours, theirs = both.both(SHORT, bad_words_ids=[[word]])
    same(ours, theirs)
    assert word not in ours[0].tolist()
    same(*both.both(SHORT, bad_words_ids=[[word, second]]))


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
def test_the_callers_processors_and_criteria(both: Pair, beams: int, times: bool) -> None:
    processors = transformers.LogitsProcessorList([Favour(40)])
    same(*both.both(SHORT, logits_processor=processors, num_beams=beams, return_timestamps=times))
    if beams == 1:
        criteria = transformers.StoppingCriteriaList([after(40, 9)])
        same(*both.both(SHORT, stopping_criteria=criteria, return_timestamps=times))


@pytest.mark.parametrize("beams", [1, 2])
def test_tokens_allowed_by_row_and_prefix(both: Pair, beams: int) -> None:
    def allowed(row: int, tokens: Tensor) -> list[int]:
        first = 20 if row == 0 else 60
        return [*range(first + len(tokens) % 3, first + 9)]

    ours, theirs = both.both(SHORT, prefix_allowed_tokens_fn=allowed, num_beams=beams)
    same(ours, theirs)
    assert set(ours[0].tolist()) <= set(range(20, 29))
    assert set(ours[1].tolist()) <= set(range(60, 69))
    with pytest.raises(ValueError, match="returned no token for batch row"):
        both.say(SHORT, prefix_allowed_tokens_fn=lambda row, tokens: [])


def test_a_draft_changes_no_token(both: Pair, tmp_path_factory: pytest.TempPathFactory) -> None:
    draft = pair(tmp_path_factory.mktemp("draft"), seed=6, d_model=16)
    one = SHORT[:1]
    ours = both.say(one, assistant_model=draft.ours)
    with torch.no_grad():
        theirs = both.theirs.generate(one, assistant_model=draft.theirs)
    same(ours, theirs[:, -ours.shape[1] :] if theirs.shape[1] > ours.shape[1] else theirs)
    plain = both.say(SHORT, begin_suppress_tokens=None, return_timestamps=True)
    same(both.say(SHORT, assistant_model=draft.ours, return_timestamps=True), plain)
    same(
        both.say(LONG, assistant_model=draft.ours, return_timestamps=True),
        both.say(LONG, begin_suppress_tokens=None, return_timestamps=True),
    )
    with torch.no_grad():
        encoded = both.ours.get_encoder()(SHORT)
    transcribed = {
        "encoder_outputs": encoded,
        "assistant_model": draft.ours,
        "return_timestamps": True,
    }
    same(both.say(SHORT, **transcribed), plain)
    with pytest.raises(ValueError, match="has an encoder of its own, but found encoder_outputs"):
        both.say(None, **transcribed)
    same(
        both.say(SHORT, assistant_model=draft.ours, num_beams=2),
        both.say(SHORT, num_beams=2, begin_suppress_tokens=None),
    )


def test_a_streamer_gets_every_token(both: Pair) -> None:
    ours, theirs = Streamer(), Streamer()
    both.say(SHORT[:1], streamer=ours)
    both.said(SHORT[:1], streamer=theirs)
    assert ours.tokens == theirs.tokens
    assert ours.tokens[-1] == "end"


def test_a_string_and_a_clock_end_the_text(both: Pair) -> None:
    class Tokenizer:
        def decode(self, ids: list[int]) -> str:
            return "".join(f"<{token}>" for token in ids)

    said = both.say(SHORT[:1])[0].tolist()
    stopped = both.say(SHORT[:1], stop_strings=[f"<{said[3]}>"], tokenizer=Tokenizer())[0]
    assert stopped.tolist() == said[: said.index(said[3]) + 1]
    assert both.say(SHORT[:1], max_time=0.0).shape[1] == 1
