"""The decoder alone and the classifier against transformers, and checkpoints both ways."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.whisper import modeling_whisper

from corpus_asr.families.whisper.classifier import WhisperForAudioClassification
from corpus_asr.families.whisper.model import WhisperForCausalLM, WhisperModel
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from tests.support.checkpoints import tiny_whisper

TOLERANCE = 1e-5
VOCAB, FRAMES, TOKENS = 120, 60, 7
SIZES: dict[str, Any] = {
    "d_model": 24,
    "layers": 3,
    "heads": 2,
    "vocab_size": VOCAB,
    "max_source_positions": FRAMES // 2,
    "max_target_positions": 16,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("checkpoint"), **SIZES)


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def tokens() -> Tensor:
    return torch.randint(0, VOCAB, (2, TOKENS), generator=torch.Generator().manual_seed(1))


def features() -> Tensor:
    return torch.randn(3, 80, FRAMES, generator=torch.Generator().manual_seed(2))


def decoders(folder: Path) -> tuple[WhisperForCausalLM, Any]:
    """Both from a whole checkpoint, whose encoder they leave out."""
    theirs = transformers.WhisperForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return WhisperForCausalLM.from_pretrained(folder), theirs.eval()


def test_a_decoder_alone_gives_what_that_of_transformers_gives(
    folder: Path, tmp_path: Path
) -> None:
    ours, theirs = decoders(folder)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert not ours.config.is_encoder_decoder
    encoded = torch.randn(2, FRAMES // 2, 24)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[0, -2:] = 0
    options = {"output_attentions": True, "output_hidden_states": True, "labels": tokens()}
    for given in (encoded, (encoded,), None):
        for more in ({}, {"attention_mask": mask}):
            with torch.no_grad():
                found = ours(tokens(), encoder_outputs=given, **options, **more)
                expected = theirs(tokens(), encoder_outputs=given, **options, **more)
            assert list(found) == [name for name in expected if expected[name] != ()]
            close(found.loss, expected.loss)
            seen = mask.bool() if more else ...  # hidden tokens themselves mean nothing
            close(found.logits[seen], expected.logits[seen])
            for name in set(found) - {"past_key_values", "loss", "logits"} if not more else ():
                close(found[name], expected[name])
    for kind, saved in ((type(theirs), ours), (type(ours), theirs)):
        saved.save_pretrained(tmp_path / kind.__module__)
        loaded: Any = kind.from_pretrained(tmp_path / kind.__module__).eval()
        with torch.no_grad():
            close(loaded(tokens()).logits, ours(tokens()).logits)


CLASSIFIERS: dict[str, dict[str, Any]] = {
    "plain": {"num_labels": 5},
    "weighted layers": {"num_labels": 5, "use_weighted_layer_sum": True},
    "narrow": {"num_labels": 2, "classifier_proj_size": 3},
}


def classifiers(
    tmp_path: Path, settings: dict[str, Any]
) -> tuple[WhisperForAudioClassification, Any]:
    tiny_whisper(tmp_path / "base", **SIZES)
    config = transformers.WhisperConfig.from_pretrained(tmp_path / "base", **settings)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    theirs = transformers.WhisperForAudioClassification(config).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "classifier")
    return WhisperForAudioClassification.from_pretrained(tmp_path / "classifier"), theirs


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_gives_what_that_of_transformers_gives(tmp_path: Path, kind: str) -> None:
    ours, theirs = classifiers(tmp_path, CLASSIFIERS[kind])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    labels = torch.tensor([0, 1, 1])
    options = {"output_attentions": True, "output_hidden_states": True}
    for more in ({}, options):
        found, expected = (model(features(), labels=labels, **more) for model in (ours, theirs))
        assert list(found) == list(expected)
        for name in found:
            close(found[name], expected[name])
    encoded = ours.get_encoder()(features(), output_hidden_states=True)
    close(ours(encoder_outputs=encoded).logits, expected.logits)
    close(ours(encoder_outputs=encoded.to_tuple()).logits, expected.logits)
    close(ours(features(), return_dict=False)[0], expected.logits)
    for model in (ours, theirs):
        model(features(), labels=labels).loss.backward()
    for (name, mine), reference in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if name != "encoder.embed_positions.weight":
            assert mine.grad is not None, name
            close(mine.grad, reference.grad)
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.WhisperForAudioClassification.from_pretrained(tmp_path / "ours").eval()
    close(again(features()).logits, theirs(features()).logits)
    assert again.config.id2label == ours.config.id2label


def test_a_classifier_starts_from_a_checkpoint_for_transcription(folder: Path) -> None:
    names: dict[str, Any] = {"id2label": {0: "no", 1: "yes", 2: "perhaps"}}
    with pytest.warns(UserWarning, match=r"no weights for projector\.weight, .*classifier\.bias"):
        model = WhisperForAudioClassification.from_pretrained(folder, **names)
    whole = WhisperModel.from_pretrained(folder)
    assert model(features()).logits.shape == (3, 3)
    assert model.config.id2label == names["id2label"]
    close(model.encoder.conv1.weight, whole.encoder.conv1.weight)
    assert float(model.classifier.weight.detach().std()) > 0
    assert not model.classifier.bias.any()


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_an_encoder_or_a_decoder_is_saved_and_loaded_by_itself(
    folder: Path, tmp_path: Path, part: str
) -> None:
    held: Any = getattr(WhisperModel.from_pretrained(folder), part)
    held.save_pretrained(tmp_path)
    inputs = features() if part == "encoder" else tokens()
    theirs = getattr(modeling_whisper, type(held).__name__).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        for loaded in (type(held).from_pretrained(tmp_path), theirs):
            close(loaded(inputs).last_hidden_state, held(inputs).last_hidden_state)


@pytest.mark.parametrize("weights", ["one file", "shards", "pickled", "pickled shards"])
def test_a_saved_model_is_loaded_by_both(folder: Path, tmp_path: Path, weights: str) -> None:
    ours = WhisperForConditionalGeneration.from_pretrained(folder)
    ours.save_pretrained(
        tmp_path,
        max_shard_size="40KB" if "shards" in weights else "5GB",
        safe_serialization="pickled" not in weights,
    )
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "generation_config.json"} < names
    assert any("-of-" in name for name in names) == ("shards" in weights)
    stem = "pytorch_model.bin" if "pickled" in weights else "model.safetensors"
    if "shards" in weights:
        index = json.loads((tmp_path / f"{stem}.index.json").read_text())
        assert set(index["weight_map"]) == set(ours.state_dict()) - {"proj_out.weight"}
    again = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.architectures == ["WhisperForConditionalGeneration"]
    assert again.generation_config == ours.generation_config
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name]), name
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path).eval()
    window = features()[:2]
    with torch.no_grad():
        close(
            ours(window, decoder_input_ids=tokens()).logits,
            theirs(window, decoder_input_ids=tokens()).logits,
        )
