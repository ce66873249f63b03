"""Qwen3-ASR's encoder, text model and greedy texts beside transformers, on random checkpoints."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from corpus_asr.decoding.jobs import Search, Steps, TokenRules, WindowJob, WindowResult
from corpus_asr.decoding.slots import SlotScheduler
from corpus_asr.families.qwen3_asr.encoder import FusedQwen3ASREncoder
from tests.support.qwen3_asr import Pair, qwen3_asr_pair

# Sums in another order, over some hundred values of about one.
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
# A window of a chunk and a bit, one of whole chunks, one longer than what attends together.
FRAMES = [137, 300, 1230, 7]
SEEDS = [1, 2, 3]


@pytest.fixture(scope="module", params=SEEDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return qwen3_asr_pair(tmp_path_factory.mktemp("pair"), seed=request.param)


def features_of(frames: Sequence[int], *, whole: int = 3000, seed: int = 0) -> Tensor:
    """Noise of so many frames in each window, then zeros."""
    generator = torch.Generator().manual_seed(seed)
    windows = torch.randn(len(frames), 128, whole, generator=generator)
    for window, end in zip(windows, frames, strict=True):
        window[:, end:] = 0.0
    return windows


def padded(window: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """One window as transformers takes it: whole chunks, and a mask of its frames."""
    end = -(-frames // 100) * 100
    mask = (torch.arange(end) < frames).long()
    return window[None, :, :end], mask[None]


@torch.inference_mode()
def embeddings(pair: Pair, window: Tensor, frames: int) -> Tensor:
    found = pair.theirs.model.get_audio_features(*padded(window, frames))
    tensor: Tensor = found.pooler_output
    return tensor


def prompt_of(pair: Pair, frames: int, seed: int = 0) -> tuple[int, ...]:
    """Random tokens around a window's placeholders."""
    draw = np.random.default_rng(seed)
    before, after = (draw.integers(0, 256, 5).tolist() for _ in range(2))
    placeholder = pair.ours.config.audio_token_id
    return (*before, *[placeholder] * pair.ours.config.audio_config.positions(frames), *after)


def test_windows_are_encoded_as_by_transformers(pair: Pair) -> None:
    windows, slots = features_of(FRAMES), pair.slots
    encoded = slots.encode(windows, num_frames=FRAMES)
    fused = FusedQwen3ASREncoder(pair.ours.model.audio_tower, pair.ours.model.multi_modal_projector)
    with torch.inference_mode():
        on_gpu = fused.encode(windows.clone(), FRAMES)
    for row, frames in enumerate(FRAMES):
        expected = embeddings(pair, windows[row], frames)
        assert len(expected) == slots.positions(frames)
        torch.testing.assert_close(encoded[row, : len(expected)], expected, **CLOSE)
        assert not encoded[row, len(expected) :].any()
        torch.testing.assert_close(on_gpu[row], expected, **CLOSE)


def test_a_window_s_encoding_does_not_depend_on_its_batch(pair: Pair) -> None:
    windows, slots = features_of(FRAMES), pair.slots
    together = slots.encode(windows, num_frames=FRAMES)
    for row, frames in enumerate(FRAMES):
        alone = slots.encode(windows[row : row + 1], num_frames=[frames])
        assert torch.equal(together[row], alone[0])


def theirs_logits(pair: Pair, window: Tensor, frames: int, tokens: Sequence[int]) -> Tensor:
    features, mask = padded(window, frames)
    with torch.inference_mode():
        logits: Tensor = pair.theirs(
            input_ids=torch.tensor([tokens]), input_features=features, input_features_mask=mask
        ).logits[0]
    return logits


def with_one_end(logits: Tensor, pair: Pair) -> Tensor:
    """The score of the likeliest end for all of them, as jobs know one."""
    end, other = pair.ours.config.end_tokens
    merged = logits.clone()
    merged[:, end] = logits[:, [end, other]].amax(dim=1)
    merged[:, other] = -torch.inf
    return merged


def test_prompts_and_steps_have_the_logits_of_transformers(pair: Pair) -> None:
    windows, slots = features_of(FRAMES), pair.slots
    state = slots.new_state(len(FRAMES))
    order = [2, 0, 3, 1]  # of slots
    slots.fill(state, order, slots.encode(windows, num_frames=FRAMES), num_frames=FRAMES)
    prompts = [prompt_of(pair, frames, seed=row) for row, frames in enumerate(FRAMES)]
    tokens = torch.zeros(len(FRAMES), max(map(len, prompts)), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    lengths = [len(prompt) for prompt in prompts]
    hidden = slots.prefill(state, order, tokens, lengths)
    rows = {slot: row for row, slot in enumerate(order)}
    following = torch.arange(12).view(len(FRAMES), 3) * 7
    steps = []
    for step in range(3):
        at = torch.tensor([lengths[rows[slot]] + step for slot in range(4)])
        steps.append(slots.step(state, following[[rows[slot] for slot in range(4)], step], at))
    for row, (prompt, frames) in enumerate(zip(prompts, FRAMES, strict=True)):
        text = [*prompt, *following[row].tolist()]
        expected = with_one_end(theirs_logits(pair, windows[row], frames, text), pair)
        found = slots.logits(hidden[row, : len(prompt)])
        torch.testing.assert_close(found, expected[: len(prompt)], **CLOSE)
        mine = torch.stack([scores[order[row]] for scores in steps])
        torch.testing.assert_close(mine, expected[len(prompt) :], **CLOSE)
        # Several tokens at once, as a check of drafts.
        again = slots.extend(
            state, [order[row]], following[row : row + 1], torch.tensor([len(prompt)])
        )
        torch.testing.assert_close(again[0], expected[len(prompt) :], **CLOSE)


def test_a_window_moves_with_its_slot(pair: Pair) -> None:
    model = pair.ours.slot_model().for_windows(300)
    state, windows = model.new_state(2), features_of([300, 300])
    encoded = model.encode(torch.cat([padded(row, 300)[0] for row in windows]))
    model.fill(state, [0, 1], encoded)
    prompt = torch.tensor([prompt_of(pair, 300, seed=0)])
    before = model.prefill(state, [1], prompt, [prompt.shape[1]])
    other = model.prefill(state, [0], prompt, [prompt.shape[1]])
    model.move(state, 1, 0)
    after = model.prefill(state, [0], prompt, [prompt.shape[1]])
    assert torch.equal(after, before)
    assert not torch.equal(after, other)


def test_a_projection_may_share_the_embeddings(tmp_path: Path) -> None:
    tied = qwen3_asr_pair(tmp_path, tied=True, text={"num_key_value_heads": 4})
    model = tied.slots
    windows, prompt = features_of([300]), prompt_of(tied, 300)
    state = model.new_state(1)
    model.fill(state, [0], model.encode(windows, num_frames=[300]))
    found = model.logits(model.prefill(state, [0], torch.tensor([prompt]), [len(prompt)])[0])
    expected = with_one_end(theirs_logits(tied, windows[0], 300, prompt), tied)
    torch.testing.assert_close(found, expected, **CLOSE)


def decoded(pair: Pair, frames: Sequence[int], *, slots: int, **search: Any) -> list[WindowResult]:
    """Greedy texts of windows by the scheduler."""
    results: dict[int, Any] = {}
    model = pair.slots
    scheduler = SlotScheduler(model, slots)
    windows = features_of(frames)

    def task(row: int) -> Steps[WindowResult]:
        return (yield WindowJob(
            features=windows[row].numpy(),
            window=(row,),
            num_frames=frames[row],
            prompt=prompt_of(pair, frames[row], seed=row),
            rules=TokenRules(end=pair.ours.config.end_tokens[0]),
            max_new_tokens=40,
            **search,
        ))  # fmt: skip

    def done(row: int, result: Any, error: Exception | None) -> None:
        results[row] = result if error is None else error

    for row in range(len(frames)):
        scheduler.add(task(row), partial(done, row))
    while scheduler.pending:
        scheduler.advance()
    return [results[row] for row in range(len(frames))]


MANY = [137, 300, 820, 7, 450, 101, 99, 260]


def check_texts(
    pair: Pair, frames: Sequence[int], results: list[WindowResult], **asked: Any
) -> int:
    """Compare texts with those of `generate`; return how many of these ended by themselves."""
    windows, ends, ended = features_of(frames), pair.ours.config.end_tokens, 0
    for row, count in enumerate(frames):
        features, mask = padded(windows[row], count)
        prompt = torch.tensor([prompt_of(pair, count, seed=row)])
        expected = pair.theirs.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            input_features=features,
            input_features_mask=mask,
            max_new_tokens=40,
            do_sample=False,
            **asked,
        )[0, prompt.shape[1] :].tolist()
        assert list(results[row].tokens) == [token for token in expected if token not in ends]
        ended += expected[-1] in ends
    return ended


@pytest.mark.parametrize("slots", [1, 3])
def test_texts_are_those_of_generate(pair: Pair, slots: int) -> None:
    results = decoded(pair, MANY, slots=slots)
    assert check_texts(pair, MANY, results) > 0
    assert len({result.tokens for result in results}) > 2


def test_texts_by_beams_are_those_of_generate(pair: Pair) -> None:
    results = decoded(pair, MANY[:4], slots=6, search=Search(num_beams=3))
    check_texts(pair, MANY[:4], results, num_beams=3)
