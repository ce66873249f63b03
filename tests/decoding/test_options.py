"""What searches may ask for, through the scheduler: against transformers' processors in order."""

from typing import Any, cast

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    WhisperTimeStampLogitsProcessor,
)

from corpus_asr.decoding.jobs import Search, TokenRules, WindowJob, WindowResult
from corpus_asr.decoding.options import (
    choose,
    gumbel_noise,
    keep_likeliest,
    run_processors,
)
from corpus_asr.decoding.slots import SlotScheduler
from tests.support.markov import BEGIN, END, NO_TIMESTAMPS, VOCAB, MarkovModel, window
from tests.support.slots import run_jobs

RULES = TokenRules(
    end=END,
    suppress=(3, 4),
    suppress_first=(END, 5),
    timestamp_begin=BEGIN,
    no_timestamps=NO_TIMESTAMPS,
    max_initial_timestamp=4,
)
PLAIN = TokenRules(end=END, suppress=(3, 4), suppress_first=(END, 5))
PROMPT = (21, 22, 23, 7, 7)
# Log-probabilities of float32 sums over 40 tokens.
TOLERANCE = 1e-5


def shift(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """A processor whose effect depends on the text so far."""
    scores[:, (int(ids.sum()) + ids.shape[1]) % VOCAB] += 1.5
    return scores


SEARCHES: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.8},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 3},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "processors": (shift,)},
    {"early_processors": (shift,), "processors": (shift, shift)},
    {"temperature": 0.7},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.4, "top_p": 0.6},
    {"temperature": 0.9, "top_k": 8, "top_p": 0.8, "no_repeat_ngram_size": 2},
    {"temperature": 2.0, "top_k": 1},
    {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.2},
]


def job(
    number: int = 0, *, rules: TokenRules = RULES, limit: int = 40, seed: int = 3, **search: Any
) -> WindowJob:
    return WindowJob(
        features=window(number),
        window=(number,),
        prompt=PROMPT,
        rules=rules,
        max_new_tokens=limit,
        search=Search(**search),
        seed=seed,
    )


def run(
    model: MarkovModel, jobs: list[WindowJob], *, slots: int = 3, check_every: int = 1
) -> list[WindowResult]:
    scheduler = SlotScheduler(model, slots, check_every=check_every)
    results = run_jobs(scheduler, [[job] for job in jobs])
    return [cast("WindowResult", result) for (result,) in results]


def oracle(job: WindowJob) -> Any:
    """transformers' processors in the order of its Whisper `generate`."""
    search, rules, device = job.search, job.rules, "cpu"
    steps: list[Any] = []
    if search.repetition_penalty != 1.0:
        steps.append(RepetitionPenaltyLogitsProcessor(search.repetition_penalty))
    if search.no_repeat_ngram_size:
        steps.append(NoRepeatNGramLogitsProcessor(search.no_repeat_ngram_size))
    steps += search.early_processors
    first = len(job.prompt)
    steps.append(SuppressTokensAtBeginLogitsProcessor(rules.suppress_first, first, device))
    steps.append(SuppressTokensLogitsProcessor(rules.suppress, device))
    if rules.timestamp_begin is not None:
        config: Any = GenerationConfig(eos_token_id=END, bos_token_id=END)
        config.no_timestamps_token_id = rules.no_timestamps
        config.max_initial_timestamp_index = rules.max_initial_timestamp
        steps.append(WhisperTimeStampLogitsProcessor(config, begin_index=first))
    steps += search.processors
    if search.temperature > 0:
        if search.temperature != 1.0:
            steps.append(TemperatureLogitsWarper(search.temperature))
        if search.top_k is not None:
            steps.append(TopKLogitsWarper(search.top_k))
        if search.top_p is not None and search.top_p < 1.0:
            steps.append(TopPLogitsWarper(search.top_p))
    return LogitsProcessorList(steps)


def compare(model: MarkovModel, job: WindowJob, result: WindowResult) -> None:
    """Go along the path that was found, with transformers' processors."""
    said = [*result.tokens, *([] if result.end_logprob is None else [END])]
    assert result.scores is not None
    assert len(result.scores) == len(said)
    steps, text = oracle(job), list(job.prompt)
    for token, scores in zip(said, result.scores, strict=True):
        raw = model.after(int(job.features[0, 0]), text[-1])
        expected = steps(torch.tensor([text]), raw.unsqueeze(0))[0]
        torch.testing.assert_close(scores, expected, rtol=TOLERANCE, atol=TOLERANCE)
        if job.search.temperature == 0:
            assert token == int(expected.argmax())
        assert expected[token].isfinite()
        text.append(token)


@pytest.mark.parametrize(
    ("rules", "search"),
    [*((RULES, search) for search in SEARCHES), (PLAIN, {}), (PLAIN, SEARCHES[-3])],
)
def test_every_step_is_chosen_from_transformers_scores(
    rules: TokenRules, search: dict[str, Any]
) -> None:
    model = MarkovModel(seed=len(search))
    jobs = [
        job(number, rules=rules, seed=number, keep_scores=True, **search) for number in range(4)
    ]
    for own, result in zip(jobs, run(model, jobs), strict=True):
        compare(model, own, result)


@pytest.mark.parametrize("top_k", [None, 3])
def test_log_probabilities_are_those_of_the_choice_before_the_temperature(
    top_k: int | None,
) -> None:
    model = MarkovModel()
    own = job(temperature=0.5, top_k=top_k, repetition_penalty=1.2, rules=PLAIN)
    [result] = run(model, [own])
    # Which three are the likeliest does not depend on the temperature.
    plain = job(temperature=1.0, top_k=top_k, rules=PLAIN, repetition_penalty=1.2)
    text = list(PROMPT)
    for token, logprob in zip(result.tokens, result.logprobs, strict=True):
        raw = model.after(0, text[-1]).unsqueeze(0)
        expected = oracle(plain)(torch.tensor([text]), raw)[0].log_softmax(0)[token]
        assert logprob == pytest.approx(float(expected), abs=TOLERANCE)
        text.append(token)


def test_a_caller_s_function_that_fails_is_the_caller_s_error() -> None:
    def broken(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise KeyError("my own mistake")

    with pytest.raises(KeyError, match="my own mistake"):
        run(MarkovModel(), [job(processors=(broken,))])


@pytest.mark.parametrize("num_beams", [1, 2])
def test_processors_that_leave_nothing_the_rules_allow_are_named(num_beams: int) -> None:
    def no_times(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, BEGIN:] = float("-inf")
        return scores

    with pytest.raises(ValueError, match=r"found all \d+ forbidden"):
        run(MarkovModel(), [job(early_processors=(no_times,), num_beams=num_beams)])


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1, expected a number of 0 or more"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_k": 0}, "top_k 0, expected at least 1"),
        ({"top_p": 0.0}, "top_p 0.0, expected above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0, expected above 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size -1"),
        ({"num_beams": 0}, "num_beams 0"),
        ({"num_beams": 2, "temperature": 0.5}, "2 beams with sampling"),
        ({"num_beams": 2, "keep_scores": True}, "2 beams with sampling or kept scores"),
        ({"num_beams": 2, "assistant": MarkovModel()}, "2 beams with an assistant"),
        ({"num_draft_tokens": 0}, "num_draft_tokens 0"),
    ],
)
def test_impossible_searches_are_refused_where_they_are_made(
    search: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Search(**search)


SMALL_VOCAB = 12


def forgets_to_return(ids: torch.Tensor, given: torch.Tensor) -> Any:
    return None


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (forgets_to_return, "forgets_to_return: it gave a NoneType"),
        (lambda ids, given: given[:, :3], r"a tensor of shape \(1, 3\).*\(1, 12\)"),
        (lambda ids, given: given - float("inf"), "leaves none of 12 tokens"),
    ],
)
def test_a_processor_that_gives_no_scores_is_named(processor: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_processors([processor], torch.tensor([1]), torch.zeros(SMALL_VOCAB))


def test_noise_depends_on_seed_position_and_token_alone() -> None:
    seeds, positions = torch.tensor([7, 2**55, 7]), torch.tensor([3, 3, 4])
    together = gumbel_noise(seeds, positions, 500)
    for row in range(3):
        alone = gumbel_noise(seeds[row : row + 1], positions[row : row + 1], 500)
        assert torch.equal(alone[0], together[row])
    assert not torch.equal(together[0], together[2])


def test_sampling_follows_the_softmax_at_the_temperature() -> None:
    count = 40_000
    logits = torch.tensor([[0.0, 1.0, 2.0, float("-inf")]]).repeat(count, 1)
    chosen = choose(
        logits,
        temperatures=torch.full((count,), 0.5),
        seeds=torch.arange(count),
        positions=torch.zeros(count, dtype=torch.long),
    )
    found = torch.bincount(chosen, minlength=4) / count
    torch.testing.assert_close(found, (logits[0] / 0.5).softmax(0), atol=0.01, rtol=0)
    assert found[3] == 0


def test_as_likely_as_the_last_one_kept_is_kept() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 2.0]])
    one = torch.ones(1)
    assert keep_likeliest(logits, temperatures=one, top_k=3, top_p=one).isfinite().all()
    kept = keep_likeliest(logits, temperatures=one, top_k=2, top_p=one)
    assert kept.isfinite().tolist() == [[False, True, False, True]]
