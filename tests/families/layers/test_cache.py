"""Slots hold what was written, and nothing else."""

import pytest
import torch
from torch import Tensor

from corpus_asr.families.layers.kv_cache import SlotCache, SpanView, StepView


def new_cache(slots: int = 4, *, beams: int = 1) -> SlotCache:
    return SlotCache(
        layers=2,
        slots=slots,
        beams=beams,
        heads=3,
        head_dim=5,
        tokens=7,
        positions=11,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def pair(batch: int, length: int) -> tuple[Tensor, Tensor]:
    keys, values = torch.randn(2, batch, 3, length, 5)
    return keys, values


@pytest.mark.parametrize("slots", [[0, 1], [2, 3], [3], [1, 0], [0, 2], [3, 1]])
def test_windows_are_read_back_from_the_slots_they_were_written_to(slots: list[int]) -> None:
    layer = new_cache().layers[1]
    keys, values = pair(len(slots), 11)
    layer.write_window(slots, keys, values)
    found_keys, found_values = layer.read_window(slots)
    assert torch.equal(found_keys, keys)
    assert torch.equal(found_values, values)
    untouched = sorted({0, 1, 2, 3} - set(slots))
    assert not layer.cross_keys[untouched].any()
    assert not layer.cross_values[untouched].any()


def test_adjacent_slots_are_read_without_a_copy() -> None:
    layer = new_cache().layers[0]
    keys, _ = layer.read_window([1, 2])
    assert keys.data_ptr() == layer.cross_keys[1].data_ptr()


def test_a_prompt_clears_the_values_after_it() -> None:
    layer = new_cache().layers[0]
    layer.self_values.fill_(torch.nan)
    keys, values = pair(2, 3)
    layer.write_prompts([2, 0], keys, values)
    assert torch.equal(layer.self_keys[[2, 0], :, :3], keys)
    assert torch.equal(layer.self_values[[2, 0], :, :3], values)
    assert not layer.self_values[[2, 0], :, 3:].any()
    assert layer.self_values[[1, 3]].isnan().all()


def test_a_step_writes_one_position_of_each_slot() -> None:
    layer = new_cache().layers[0]
    view = StepView.at(torch.tensor([2, 0, 6]), max_positions=7)
    new = torch.randn(3, 2, 3, 5)
    layer.write_step(view, new)
    for slot, position in enumerate([2, 0, 6]):
        assert torch.equal(layer.self_keys[slot, :, position], new[slot, 0])
        assert torch.equal(layer.self_values[slot, :, position], new[slot, 1])
    assert layer.text.count_nonzero() == new.numel()


def test_a_step_sees_up_to_its_own_position() -> None:
    view = StepView.at(torch.tensor([2, 0, 4]), max_positions=7)
    seen = ~view.unseen[:, 0, 0]
    assert seen.sum(1).tolist() == [3, 1, 5]
    assert seen[:, 0].all()


@pytest.mark.parametrize(("furthest", "length"), [(0, 32), (31, 32), (32, 64), (440, 448)])
def test_steps_look_at_few_different_lengths(furthest: int, length: int) -> None:
    assert StepView.at(torch.tensor([0, furthest]), max_positions=448).length == length
    assert StepView.at(torch.tensor([furthest]), max_positions=441).length == min(length, 441)


def test_positions_outside_the_cache_are_an_error() -> None:
    with pytest.raises(ValueError, match="positions 1 to 7: the cache holds 0 to 6"):
        StepView.at(torch.tensor([1, 7]), max_positions=7)


def test_a_moved_slot_takes_everything_along() -> None:
    cache = new_cache()
    for layer in cache.layers:
        for tensor in (layer.self_keys, layer.self_values, layer.cross_keys, layer.cross_values):
            tensor.copy_(torch.randn_like(tensor))
    before = [[t.clone() for t in (x.self_keys, x.cross_values)] for x in cache.layers]
    cache.move(3, 1)
    for layer, (self_keys, cross_values) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.self_keys[1], self_keys[3])
        assert torch.equal(layer.cross_values[1], cross_values[3])
        assert torch.equal(layer.self_keys[[0, 2, 3]], self_keys[[0, 2, 3]])
        assert torch.equal(layer.cross_values[[0, 2, 3]], cross_values[[0, 2, 3]])


def filled_cache(*, beams: int = 1) -> SlotCache:
    cache = new_cache(beams=beams)
    for layer in cache.layers:
        for tensor in (layer.self_keys, layer.self_values, layer.cross_keys, layer.cross_values):
            tensor.copy_(torch.randn_like(tensor))
    return cache


@pytest.mark.parametrize("slots", [[1, 2], [3, 0]])
def test_a_span_is_written_to_and_read_from_its_slots(slots: list[int]) -> None:
    layer = new_cache().layers[1]
    view = SpanView.at(slots, torch.tensor([4, 1]), num_tokens=3, max_positions=7)
    keys, values = pair(2, 3)
    layer.write_span(view, keys, values)
    found_keys, found_values = layer.read_span(view)
    for row, first in enumerate([4, 1]):
        assert torch.equal(found_keys[row, :, first : first + 3], keys[row])
        assert torch.equal(found_values[row, :, first : first + 3], values[row])
        assert torch.equal(found_keys[row], layer.self_keys[slots[row]])
    assert layer.self_keys.count_nonzero() == keys.numel()


def test_each_token_of_a_span_sees_up_to_its_own_position() -> None:
    view = SpanView.at([2, 0], torch.tensor([3, 0]), num_tokens=2, max_positions=7)
    seen = ~view.unseen[:, 0]
    assert seen.sum(2).tolist() == [[4, 5], [1, 2]]


def test_a_span_outside_the_cache_is_an_error() -> None:
    with pytest.raises(ValueError, match="positions 1 to 7: the cache holds 0 to 6"):
        SpanView.at([0, 1], torch.tensor([1, 5]), num_tokens=3, max_positions=7)


@pytest.mark.parametrize(("slots", "sources"), [([0, 1, 2], [2, 0, 0]), ([3, 1], [1, 3])])
def test_reordered_slots_take_texts_and_keep_windows(slots: list[int], sources: list[int]) -> None:
    cache = filled_cache()
    cache.note_prompts(range(4), 5)
    before = [[t.clone() for t in (x.self_keys, x.self_values, x.cross_keys)] for x in cache.layers]
    cache.reorder(slots, torch.tensor(sources))
    for layer, (keys, values, windows) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.self_keys[slots, :, :5], keys[sources, :, :5])
        assert torch.equal(layer.self_values[slots, :, :5], values[sources, :, :5])
        assert torch.equal(layer.cross_keys, windows)
        others = sorted({0, 1, 2, 3} - set(slots))
        assert torch.equal(layer.self_keys[others], keys[others])


def test_beams_reordered_again_and_again_hold_what_whole_copies_would() -> None:
    torch.manual_seed(0)
    cache = new_cache(6, beams=3)
    text = cache.layers[0].text
    whole = text.clone()
    for start in range(3):  # later texts in the same slots, the last one shorter
        new = torch.randn(2, 6, 3, 2, 5)
        text[:, :, :, :2] = whole[:, :, :, :2] = new
        cache.note_prompts(range(6), 2)
        for position in range(2, 7 - start):
            view = StepView.at(torch.full((6,), position), max_positions=7)
            step = torch.randn(6, 2, 3, 5)
            cache.layers[0].write_step(view, step)
            cache.note_tokens(view.rows, view.positions)
            whole[:, :, :, position] = step.transpose(0, 1)
            sources = torch.cat([torch.randint(3, (3,)), torch.randint(3, 6, (3,))])
            cache.reorder(range(6), sources)
            whole = whole[:, sources]
            seen = slice(position + 1)
            assert torch.equal(text[:, :, :, seen], whole[:, :, :, seen])


def test_reordering_copies_no_more_than_what_differs() -> None:
    cache = filled_cache(beams=2)
    cache.note_prompts([0], 3)
    cache.share(0, [1])
    view = StepView.at(torch.tensor([3, 3]), max_positions=7)
    cache.layers[0].write_step(view, torch.randn(2, 2, 3, 5))
    cache.note_tokens(view.rows, view.positions)
    for layer in cache.layers:
        layer.text[:, 0, :, :3] = torch.nan
    cache.reorder([0, 1], torch.tensor([0, 0]))
    text = cache.layers[0].text
    assert torch.equal(text[:, 1, :, 3], text[:, 0, :, 3])
    assert text[:, 1].isfinite().all()


def test_reordering_needs_a_source_for_every_slot() -> None:
    with pytest.raises(ValueError, match="reordering 2 slots: found 1 sources"):
        new_cache().reorder([0, 1], torch.tensor([0]))


def test_a_shared_slot_is_everywhere_it_was_given() -> None:
    cache = filled_cache()
    cache.share(1, [2, 0])
    for layer in cache.layers:
        for tensor in (layer.self_keys, layer.self_values, layer.cross_keys, layer.cross_values):
            assert torch.equal(tensor[[2, 0]], tensor[[1, 1]])
            assert not torch.equal(tensor[3], tensor[1])


def test_slots_share_windows() -> None:
    cache = new_cache(beams=2)
    keys, values = pair(2, 11)
    cache.layers[0].write_window([0, 2], keys, values)
    assert len(cache.layers[0].cross_keys) == 2
    for slots, windows in (([0, 1], [0, 0]), ([3, 0], [1, 0])):
        found_keys, found_values = cache.layers[0].read_window(slots)
        assert torch.equal(found_keys, keys[windows])
        assert torch.equal(found_values, values[windows])


def test_a_moved_or_shared_slot_takes_its_window_along_to_those_of_another() -> None:
    cache = filled_cache(beams=2)
    windows = cache.layers[1].cross_keys.clone()
    cache.share(0, [1])
    assert torch.equal(cache.layers[1].cross_keys, windows)
    assert torch.equal(cache.layers[1].self_values[1], cache.layers[1].self_values[0])
    cache.share(1, [2])
    assert torch.equal(cache.layers[1].cross_keys, windows[[0, 0]])
    cache = filled_cache(beams=2)
    windows = cache.layers[1].cross_keys.clone()
    cache.move(2, 1)
    assert torch.equal(cache.layers[1].cross_keys, windows[[1, 1]])
    assert torch.equal(cache.layers[1].self_keys[1], cache.layers[1].self_keys[2])


@pytest.mark.parametrize("beams", [0, 3])
def test_slots_that_cannot_share_windows_evenly_are_an_error(beams: int) -> None:
    with pytest.raises(ValueError, match=f"4 slots of which {beams} share a window"):
        new_cache(beams=beams)
