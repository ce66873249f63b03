"""Beam search is transformers', token for token, whatever sits in the other places."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from corpus_asr.decoding.beam import BeamBatch
from corpus_asr.decoding.protocols import Search, TokenRules, WindowJob, WindowResult
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.models.whisper.slot_model import WhisperSlotModel
from tests.support.beams import beam_search
from tests.support.checkpoints import tiny_whisper

# Sums of up to 40 float32 log-probabilities, from products in another order.
SCORE_TOLERANCE = 1e-3

VOCAB, END, NO_TIMESTAMPS, BEGIN, POSITIONS, SOURCE = 60, 30, 39, 40, 48, 20
PLAIN = TokenRules(end=END)
SUPPRESSING = TokenRules(end=END, suppress=(3, 7, 12), suppress_first=(END, 5))
GRAMMAR = TokenRules(
    end=END,
    suppress=(1, 2),
    suppress_first=(END,),
    timestamp_begin=BEGIN,
    no_timestamps=NO_TIMESTAMPS,
    max_initial_timestamp=6,
)


class Pair:
    """The same weights here and there."""

    def __init__(self, folder: Path, seed: int) -> None:
        tiny_whisper(
            folder,
            seed=seed,
            d_model=16,
            layers=2,
            heads=2,
            vocab_size=VOCAB,
            max_target_positions=POSITIONS,
            max_source_positions=SOURCE,
            spread=0.3,
        )
        self.model: WhisperSlotModel = WhisperForConditionalGeneration.from_pretrained(
            folder
        ).slot_model()
        self.oracle = transformers.WhisperForConditionalGeneration.from_pretrained(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    return [Pair(tmp_path_factory.mktemp("checkpoint"), seed) for seed in range(3)]


def job(
    seed: int,
    rules: TokenRules = PLAIN,
    *,
    prompt: tuple[int, ...] = (31, 32),
    limit: int = 30,
    **search: Any,
) -> WindowJob:
    features = np.random.default_rng(seed).standard_normal((80, 2 * SOURCE), dtype=np.float32)
    return WindowJob(
        features=features,
        window=(seed,),
        prompt=prompt,
        rules=rules,
        max_new_tokens=limit,
        search=Search(**search),
    )


def run(batch: BeamBatch, jobs: list[WindowJob]) -> list[WindowResult]:
    """Decode jobs side by side; places that end are refilled or closed as a scheduler does."""
    waiting = list(enumerate(jobs))
    active: list[int] = []
    found: dict[int, WindowResult] = {}
    while waiting or active:
        while waiting and len(active) < batch.places:
            number, one = waiting.pop(0)
            place = len(active)
            batch.fill([place], batch.encode([one]))
            batch.admit([place], [one])
            active.append(number)
        while ended := batch.ended(len(active)):
            place = ended[-1]
            found[active[place]] = batch.collect(place)
            last = active.pop()
            if place < len(active):
                batch.move(len(active), place)
                active[place] = last
        if active:
            batch.step(len(active), sampled=False)
    return [found[number] for number in range(len(jobs))]


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
        )
        ours = [result, *result.others]
        assert [each.tokens for each in ours] == [each.tokens for each in expected]
        assert [each.sequence_score for each in ours] == pytest.approx(
            [each.score for each in expected], abs=SCORE_TOLERANCE
        )


@pytest.mark.parametrize("num_beams", [2, 5])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -1.0])
def test_beams_are_those_of_transformers(
    pairs: list[Pair], num_beams: int, early_stopping: bool, length_penalty: float
) -> None:
    options = {
        "num_beams": num_beams,
        "early_stopping": early_stopping,
        "length_penalty": length_penalty,
        "num_return_sequences": num_beams,
    }
    for number, pair in enumerate(pairs):
        batch = BeamBatch(pair.model, 3, num_beams)
        kinds = (PLAIN, SUPPRESSING, GRAMMAR, GRAMMAR)
        jobs = [job(10 * number + i, rules, **options) for i, rules in enumerate(kinds)]
        check(pair, jobs, run(batch, jobs))
