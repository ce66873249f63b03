"""Parakeet's networks against transformers': files, states, scores, losses, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from corpus_asr.errors import CheckpointError
from corpus_asr.families.parakeet import config as configs
from corpus_asr.families.parakeet.encoder import ParakeetEncoder
from corpus_asr.models.generation import parakeet as networks
from tests.support.parakeet import BINS, BLANK, ENCODER, KINDS, Pair, features, parakeet_pair

# float32 of some layers of width 16.
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
LENGTHS = (200, 90, 9, 8, 1)
LABELS = [[1, 3, 4, 4], [5, 5, -1, -1], [1, -1, -1, -1], [3, -1, -1, -1], [7, -1, -1, -1]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return {kind: parakeet_pair(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs[request.param]


def labels_for(pair: Pair, *, filler: int | None = None) -> dict[str, torch.Tensor]:
    """Labels as each kind's processor fills them up, and what a transducer reads."""
    filler = {"CTC": -100, "RNNT": BLANK, "TDT": 2}[pair.kind] if filler is None else filler
    labels = torch.tensor(LABELS)
    read = torch.cat([torch.full((len(labels), 1), BLANK), labels.clamp(min=0)], dim=1)
    given = {"labels": labels.masked_fill(labels < 0, filler)}
    return given if pair.kind == "CTC" else given | {"decoder_input_ids": read}


def test_names_of_parameters_and_settings_are_those_of_transformers(pair: Pair) -> None:
    assert list(pair.ours.state_dict()) == list(pair.theirs.state_dict())
    assert pair.ours.config.to_dict().keys() >= pair.theirs.config.to_diff_dict().keys()


@pytest.mark.parametrize("masked", [True, False])
def test_states_scores_and_positions_are_those_of_transformers(pair: Pair, masked: bool) -> None:
    values, mask = features(*LENGTHS)
    given = {"attention_mask": mask} if masked else {}
    read = (
        {} if pair.kind == "CTC" else {"decoder_input_ids": labels_for(pair)["decoder_input_ids"]}
    )
    with torch.no_grad():
        theirs = pair.theirs(values, **given, **read, output_hidden_states=True)
        ours = pair.ours(values, **given, **read, output_hidden_states=True)
    encoded = pair.ours.encoder(values, **given)
    valid = encoded.attention_mask.bool() if masked else torch.ones(ours.logits.shape[:2]).bool()
    torch.testing.assert_close(ours.logits[valid], theirs.logits[valid], **CLOSE)
    for found, expected in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(found[valid], expected[valid], **CLOSE)
    if masked:
        expected = pair.theirs.encoder(values, **given).attention_mask
        assert torch.equal(encoded.attention_mask, expected)


def test_attention_weights_are_those_of_transformers_and_eager_gives_the_same(
    pairs: dict[str, Pair],
) -> None:
    pair, (values, mask) = pairs["CTC"], features(60, 60)
    pair.theirs.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = pair.theirs(values, mask, output_attentions=True)
        ours = pair.ours(values, mask, output_attentions=True)
        pair.ours.set_attn_implementation("eager")
        eager = pair.ours(values, mask)
    pair.ours.set_attn_implementation("sdpa")
    pair.theirs.set_attn_implementation("sdpa")
    for found, expected in zip(ours.attentions, theirs.attentions, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(eager.logits, theirs.logits, **CLOSE)


def test_a_row_gives_what_it_gives_alone_whatever_follows_it(pair: Pair) -> None:
    values, mask = features(*LENGTHS)
    noisy = torch.where(mask[..., None] == 1, values, 9.0)
    together, counts = pair.ours.encoder.encode(noisy, num_frames=list(LENGTHS))
    for row, length in enumerate(LENGTHS):
        alone, count = pair.ours.encoder.encode(values[row : row + 1, :length], num_frames=[length])
        assert int(count) == int(counts[row]) == alone.shape[1]
        torch.testing.assert_close(together[row, : int(count)], alone[0], **CLOSE)


@pytest.mark.parametrize("kind", ["CTC", "TDT"])  # transformers' RNN-T loss needs torchaudio
def test_losses_and_their_gradients_are_those_of_transformers(
    pairs: dict[str, Pair], kind: str
) -> None:
    pair, (values, mask) = pairs[kind], features(*LENGTHS)
    given = labels_for(pair)
    theirs = pair.theirs(values, attention_mask=mask, **given)
    ours = pair.ours(values, mask, **given)
    torch.testing.assert_close(ours.loss, theirs.loss, **CLOSE)
    theirs.loss.backward()
    ours.loss.backward()
    expected = dict(pair.theirs.named_parameters())
    for name, parameter in pair.ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-4)
    pair.theirs.zero_grad()
    pair.ours.zero_grad()


@pytest.mark.parametrize("kind", ["RNNT", "TDT"])
def test_a_transducer_reads_its_labels_after_a_blank_and_leaves_out_what_fills_them_up(
    pairs: dict[str, Pair], kind: str
) -> None:
    pair, (values, mask) = pairs[kind], features(*LENGTHS)
    with torch.no_grad():
        expected = pair.ours(values, mask, **labels_for(pair)).loss
        found = pair.ours(values, mask, labels=labels_for(pair, filler=-100)["labels"]).loss
    torch.testing.assert_close(found, expected, **CLOSE)


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


def test_an_encoder_alone_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = transformers.ParakeetEncoder(transformers.ParakeetEncoderConfig(**ENCODER)).eval()
    theirs.save_pretrained(tmp_path)
    ours = ParakeetEncoder.from_pretrained(tmp_path)
    values, mask = features(30, 20)
    found = ours(values, mask).last_hidden_state
    expected = theirs(values, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[0], expected[0], **CLOSE)


def test_fresh_weights_are_drawn_as_transformers_draws_them() -> None:
    config = configs.ParakeetTDTConfig(encoder_config=ENCODER, vocab_size=40, blank_token_id=39)
    drawn = dict(networks.ParakeetForTDT(config).named_parameters())
    theirs = transformers.ParakeetForTDT(
        transformers.ParakeetTDTConfig(encoder_config=ENCODER, vocab_size=40, blank_token_id=39)
    )
    for name, parameter in theirs.named_parameters():
        found, expected = drawn[name].detach(), parameter.detach()
        if expected.numel() < 100 or expected.std() == 0:
            assert (found.std() == 0) == (expected.std() == 0), name
        else:
            assert 0.7 < float(found.std() / expected.std()) < 1.4, name


def test_training_leaves_out_layers_and_may_compute_states_twice(pairs: dict[str, Pair]) -> None:
    pair, (values, mask) = pairs["CTC"], features(60, 30)
    once = type(pair.ours).from_pretrained(
        pair.folder,
        encoder_config={"layerdrop": 0.0, "dropout": 0.0, "activation_dropout": 0.0}
        | {"attention_dropout": 0.0},
    )
    losses = []
    for twice in (False, True):
        once.train().zero_grad()
        if twice:
            once.gradient_checkpointing_enable()
        loss = once(values, mask, labels=torch.tensor([[1, 2], [3, 4]])).loss
        loss.backward()
        losses.append((loss, once.encoder.subsampling.linear.weight.grad.clone()))
    torch.testing.assert_close(losses[0], losses[1], **CLOSE)
    dropping = type(pair.ours).from_pretrained(pair.folder, encoder_config={"layerdrop": 1.0})
    # Every block is left out: the projection alone remains.
    states = dropping.train().encoder(values, mask, output_hidden_states=True).hidden_states
    assert torch.equal(states[0], states[-1])


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
        networks.ParakeetForTDT.from_pretrained(folder)
    assert message in str(refused.value)


def test_a_counter_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    folder = parakeet_pair("CTC", tmp_path).folder
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "encoder.layers.0.conv.norm.num_batches_tracked"
    save_file(tensors | {name: torch.tensor(0.5)}, path)
    with pytest.raises(CheckpointError, match=f"{name} .* is not of whole numbers"):
        networks.ParakeetForCTC.from_pretrained(folder)


def test_features_that_do_not_fit_are_refused(pair: Pair) -> None:
    encoder = pair.ours.encoder
    with pytest.raises(ValueError, match=r"found shape \(1, 8, 3\), expected \(batch, frame, 16\)"):
        encoder(torch.zeros(1, 8, 3))
    with pytest.raises(ValueError, match="without any frame in rows"):
        encoder(torch.zeros(2, 8, BINS), torch.tensor([[1] * 8, [0] * 8]))
    with pytest.raises(ValueError, match="NaN or infinity in the features of rows"):
        encoder(torch.full((1, 8, BINS), torch.nan))
    with pytest.raises(ValueError, match="expected at most 5000"):
        encoder(torch.zeros(1, 40_008, BINS))
    if pair.kind != "CTC":
        with pytest.raises(ValueError, match="found neither decoder_input_ids nor labels"):
            pair.ours(torch.zeros(1, 8, BINS))
        with pytest.raises(ValueError, match="found neither of input_features"):
            pair.ours(decoder_input_ids=torch.zeros(1, 1, dtype=torch.long))
