"""Slots that call the network itself: equal to the fast ones, whatever happens in the slots."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from corpus_asr.models.speech2text import Speech2TextForConditionalGeneration
from tests.support.checkpoints import tiny_speech2text
from tests.support.slots import SOURCE_POSITIONS, STEP_TOLERANCE, load, sequences, windows

FRAMES = 2 * SOURCE_POSITIONS


@pytest.fixture(scope="module", params=["whisper", "speech2text"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("checkpoint")
    if request.param == "whisper":
        return load(folder)
    tiny_speech2text(folder, vocab_size=500, max_source_positions=FRAMES, spread=0.15)
    return Speech2TextForConditionalGeneration.from_pretrained(folder)


def both(network: Any) -> tuple[Any, Any]:
    return network.slot_model(), network.module_slots()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=STEP_TOLERANCE, rtol=0)


def test_they_go_on_move_and_are_reordered_as_the_fast_ones(network: Any) -> None:
    features = windows(3, seed=1)[:, : network.get_encoder().num_mel_bins]
    tokens = sequences(3, 12, seed=1).clamp(min=3)
    lengths = [4, 2, 3]
    at = torch.tensor(lengths)
    rows = torch.arange(3)
    found: list[list[Tensor]] = []
    for model in both(network):
        state = model.new_state(8, beams=2)
        encoded = model.encode(features)
        firsts = [0, 2, 6]
        model.fill(state, firsts, encoded)
        hidden = model.prefill(state, firsts, tokens[:, :4], lengths)
        said = [encoded, model.logits(hidden[rows, at - 1])]
        for beam in (0, 1):
            model.move(state, 6 + beam, 4 + beam)
        model.reorder(state, range(6), torch.tensor([0, 0, 2, 2, 4, 4]))
        twice = at.repeat_interleave(2)
        steps = torch.cat([tokens[:, 4:5], tokens[:, 5:6]], dim=1).flatten()
        said.append(model.step(state, steps, twice))
        # The second beam of a window becomes the first, and both go on.
        model.reorder(state, range(6), torch.tensor([1, 0, 3, 2, 5, 5]))
        said.append(model.step(state, steps.flip(0), twice + 1))
        # Some tokens again from an earlier position.
        said.append(model.extend(state, [0, 3], tokens[:2, 6:9], torch.tensor([3, 2])))
        found.append(said)
    for ours, theirs in zip(*found, strict=True):
        close(ours, theirs)


def test_they_align_as_the_fast_ones(network: Any) -> None:
    features = windows(2, seed=2)[:, : network.get_encoder().num_mel_bins]
    tokens, lengths = sequences(2, 7, seed=2).clamp(min=3), [7, 4]
    found: list[tuple[Tensor, Tensor]] = []
    for model in both(network):
        state = model.new_state(2)
        model.fill(state, [0, 1], model.encode(features))
        weights, hidden = model.align(state, [0, 1], tokens, lengths, [(1, 0), (0, 3)])
        found.append((weights, model.logits(hidden)))
        with pytest.raises(ValueError, match="head 4 of decoder layer 0"):
            model.align(state, [0, 1], tokens, lengths, [(0, 4)])
    for row, length in enumerate(lengths):
        close(found[0][0][row, :, :length], found[1][0][row, :, :length])
        close(found[0][1][row, :length], found[1][1][row, :length])


def test_padded_batches_are_encoded_as_by_the_fast_ones(network: Any) -> None:
    if not isinstance(network, Speech2TextForConditionalGeneration):
        pytest.skip("windows of this family are whole")
    features, frames = windows(2, seed=3), [FRAMES, 77]
    fast, slow = (model.for_windows(FRAMES) for model in both(network))
    features[1, :, 77:] = 0
    ours, theirs = (m.encode_padded(features, num_frames=frames) for m in (slow, fast))
    [end] = slow.positions_heard([77], windows=1)
    close(ours[0], theirs[0])
    close(ours[1, :end], theirs[1, :end])
    close(slow.encode(features, num_frames=frames), fast.encode(features, num_frames=frames))


def test_a_layer_without_attention_weights_is_named(tmp_path: Path) -> None:
    network: Any = load(tmp_path)

    class Silent(torch.nn.Module):
        def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
            return hidden

    network.model.decoder.layers[0] = Silent()
    model = network.module_slots()
    state = model.new_state(1)
    model.fill(state, [0], model.encode(windows(1)))
    with pytest.raises(ValueError, match="found the cross-attention weights of 1 decoder layers"):
        model.align(state, [0], sequences(1, 4), [4], [(1, 0)])
