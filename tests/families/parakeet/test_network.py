"""Parakeet's networks against transformers': files, states, scores, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from corpus_asr.errors import CheckpointError
from corpus_asr.families.parakeet.model import ParakeetCTC, ParakeetTDT
from tests.support.parakeet import BINS, BLANK, KINDS, Pair, features, parakeet_pair

# float32 of some layers of width 16.
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
LENGTHS = (200, 90, 9, 8, 1)
READ = [[BLANK, 1, 3, 4, 4], [BLANK, 5, 5, 2, 2], [BLANK, 1, 2, 2, 2], [BLANK] * 5, [BLANK] * 5]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return {kind: parakeet_pair(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs[request.param]


def scored(network: Any, values: Tensor, frames: list[int]) -> Tensor:
    """Score every position; of transducers, what follows each of the tokens read."""
    if isinstance(network, ParakeetCTC):
        scores: Tensor = network(values, num_frames=frames)[0]
        return scores
    states, _ = network.encoder.encode(values, num_frames=frames)
    predicted, state = [], None
    for tokens in torch.tensor(READ).T:
        output, state = network.predict(tokens, state)
        predicted.append(output)
    joined: Tensor = network.join(
        network.encoder_projector(states)[:, :, None], torch.stack(predicted, dim=1)[:, None]
    )
    return joined


def test_names_of_parameters_and_settings_are_those_of_transformers(pair: Pair) -> None:
    assert list(pair.ours.state_dict()) == list(pair.theirs.state_dict())
    assert pair.ours.config.to_dict().keys() >= pair.theirs.config.to_diff_dict().keys()


@pytest.mark.parametrize("masked", [True, False])
def test_states_scores_and_positions_are_those_of_transformers(pair: Pair, masked: bool) -> None:
    values, mask = features(*LENGTHS)
    frames = list(LENGTHS) if masked else [max(LENGTHS)] * len(LENGTHS)
    options = {"attention_mask": mask} if masked else {}
    read = {} if pair.kind == "CTC" else {"decoder_input_ids": torch.tensor(READ)}
    with torch.no_grad():
        expected = pair.theirs(values, **options, **read).logits
        encoded = pair.theirs.encoder(values, **options)
        scores = scored(pair.ours, values, frames)
        states, counts = pair.ours.encoder.encode(values, num_frames=frames)
    valid = torch.arange(states.shape[1]) < counts[:, None]
    torch.testing.assert_close(scores[valid], expected[valid], **CLOSE)
    torch.testing.assert_close(states[valid], encoded.last_hidden_state[valid], **CLOSE)
    if masked:
        assert torch.equal(valid, encoded.attention_mask.bool())


def test_a_row_gives_what_it_gives_alone_whatever_follows_it(pair: Pair) -> None:
    values, mask = features(*LENGTHS)
    noisy = torch.where(mask[..., None] == 1, values, 9.0)
    together, counts = pair.ours.encoder.encode(noisy, num_frames=list(LENGTHS))
    for row, length in enumerate(LENGTHS):
        alone, count = pair.ours.encoder.encode(values[row : row + 1, :length], num_frames=[length])
        assert int(count) == int(counts[row]) == alone.shape[1]
        torch.testing.assert_close(together[row, : int(count)], alone[0], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_loads_what_is_saved_here(
    pair: Pair, tmp_path: Path, dtype: torch.dtype
) -> None:
    loaded = type(pair.ours).from_pretrained(pair.folder, dtype=dtype)
    loaded.save_pretrained(tmp_path)
    theirs = getattr(transformers, f"ParakeetFor{pair.kind}").from_pretrained(tmp_path)
    assert theirs.dtype == dtype
    expected = loaded.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert theirs.config.to_diff_dict().items() >= {"vocab_size": 12}.items()
    assert json.loads((tmp_path / "config.json").read_text())["encoder_config"]["hidden_size"] == 16


def change(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["encoder_config"] |= settings.pop("encoder_config", {})
    path.write_text(json.dumps(content | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_config": {"model_type": "canary_encoder"}}, "model_type 'canary_encoder'"),
        ({"encoder_config": {"hidden_size": 15}}, "an even multiple of 2 heads"),
        ({"encoder_config": {"conv_kernel_size": 4}}, "conv_kernel_size is 4, expected an odd"),
        ({"encoder_config": {"subsampling_factor": 6}}, "expected a power of two"),
        ({"encoder_config": {"num_mel_bins": 20}}, "num_mel_bins is 20, expected a multiple of 8"),
        ({"blank_token_id": 12}, "blank_token_id is 12, expected a token of 0 to 11"),
        ({"durations": [0]}, "durations is (0,), expected numbers from 0"),
        ({"vocab_size": 13}, "joint.head.bias is (17,)"),
        ({"model_type": "canary"}, "model_type 'canary', expected 'parakeet_tdt'"),
        ({"max_symbols_per_step": 0}, "max_symbols_per_step is 0"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    folder = parakeet_pair("TDT", tmp_path).folder
    change(folder, **settings)
    with pytest.raises(CheckpointError) as refused:
        ParakeetTDT.from_pretrained(folder)
    assert message in str(refused.value)


def test_a_counter_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    folder = parakeet_pair("CTC", tmp_path).folder
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "encoder.layers.0.conv.norm.num_batches_tracked"
    save_file(tensors | {name: torch.tensor(0.5)}, path)
    with pytest.raises(CheckpointError, match=f"{name} .* is not of whole numbers"):
        ParakeetCTC.from_pretrained(folder)


def test_features_that_do_not_fit_are_refused(pair: Pair) -> None:
    encoder = pair.ours.encoder
    with pytest.raises(ValueError, match=r"found shape \(1, 8, 3\), expected \(batch, frame, 16\)"):
        encoder.encode(torch.zeros(1, 8, 3), num_frames=[8])
    with pytest.raises(ValueError, match=r"encoding parts of 2 windows: found \[8, 0\] frames"):
        encoder.encode(torch.zeros(2, 8, BINS), num_frames=[8, 0])
    with pytest.raises(ValueError, match="expected at most 5000"):
        encoder.encode(torch.zeros(1, 40_008, BINS), num_frames=[40_008])
