"""Every argument of the networks against transformers: states, attentions, losses, gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from tests.support.checkpoints import tiny_whisper

TOLERANCE = 1e-5
# Sums over all tokens and windows, of float32 products in another order.
GRADIENT_TOLERANCE = 1e-4

Ours = WhisperForConditionalGeneration
Theirs = transformers.WhisperForConditionalGeneration
VOCAB, FRAMES, TOKENS = 120, 60, 7

STATES = (
    "decoder_hidden_states", "decoder_attentions", "cross_attentions", "encoder_hidden_states",
    "encoder_attentions",
)  # fmt: skip


def write(folder: Path, **settings: Any) -> Path:
    return tiny_whisper(
        folder,
        d_model=24,
        layers=3,
        heads=2,
        vocab_size=VOCAB,
        max_source_positions=FRAMES // 2,
        max_target_positions=16,
        **settings,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("checkpoint"))


def both(folder: Path, attention: str = "eager") -> tuple[Any, Any]:
    ours = Ours.from_pretrained(folder, attn_implementation=attention)
    return ours, Theirs.from_pretrained(folder, attn_implementation=attention).eval()


def inputs(rows: int = 2, seed: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, VOCAB - 2, (rows, TOKENS), generator=generator)
    labels[0, -2:] = -100
    return {
        "input_features": torch.randn(rows, 80, FRAMES, generator=generator),
        "labels": labels,
    }


def close(found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_losses_states_and_attentions_are_those_of_transformers(folder: Path) -> None:
    ours, theirs = both(folder)
    options = {"output_attentions": True, "output_hidden_states": True}
    with torch.no_grad():
        found = ours(**inputs(), **options)
        expected = theirs(**inputs(), **options)
    assert list(found) == list(expected)
    close(found.loss, expected.loss)
    close(found.logits, expected.logits)
    close(found.encoder_last_hidden_state, expected.encoder_last_hidden_state)
    for name in STATES:
        close(found[name], expected[name])
    assert len(found) == len(expected)
    for at in range(len(found)):
        assert type(found[at]) is type(expected[at]) or list(found)[at] == "past_key_values"


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_asking_for_attentions_needs_no_other_implementation(folder: Path, attention: str) -> None:
    ours = Ours.from_pretrained(folder, attn_implementation=attention)
    _, theirs = both(folder)
    with torch.no_grad():
        found = ours(**inputs(), output_attentions=True)
        expected = theirs(**inputs(), output_attentions=True)
        plain = ours(**inputs())
    close(found.cross_attentions, expected.cross_attentions)
    close(plain.logits, expected.logits)
    assert plain.cross_attentions is None


def test_the_configuration_says_what_is_returned(folder: Path) -> None:
    asked: dict[str, Any] = {
        "output_attentions": True,
        "output_hidden_states": True,
        "use_cache": False,
    }
    ours = Ours.from_pretrained(folder, **asked)
    theirs = Theirs.from_pretrained(folder, attn_implementation="eager", **asked)
    with torch.no_grad():
        assert list(ours(**inputs())) == list(theirs(**inputs()))
        for name in asked:
            setattr(ours.config, name, False)
        ours.config.return_dict = False
        found = ours(**inputs())
    assert [type(value) for value in found] == [Tensor] * 3


def test_a_tuple_holds_the_same_in_the_same_order(folder: Path) -> None:
    ours, theirs = both(folder)
    options = {"output_attentions": True, "output_hidden_states": True, "return_dict": False}
    with torch.no_grad():
        found = ours(**inputs(), use_cache=False, **options)
        expected = theirs(**inputs(), use_cache=False, **options)
    close(found, expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gradients_are_those_of_transformers(folder: Path, attention: str) -> None:
    ours, theirs = both(folder, attention)
    ours(**inputs()).loss.backward()
    theirs(**inputs()).loss.backward()
    for (name, found), (other, expected) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert name == other
        if name == "model.encoder.embed_positions.weight":
            assert found.grad is None  # fixed; loading makes transformers forget it
        else:
            close(found.grad, expected.grad, GRADIENT_TOLERANCE)


DROPPED: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.3},
    "attention dropout": {"attention_dropout": 0.3},
    "activation dropout": {"activation_dropout": 0.3},
    "layerdrop": {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5},
    "SpecAugment in time": {"apply_spec_augment": True, "mask_time_prob": 0.3},
    "SpecAugment in both": {
        "apply_spec_augment": True,
        "mask_time_prob": 0.1,
        "mask_time_length": 7,
        "mask_feature_prob": 0.2,
        "mask_feature_length": 9,
        "mask_feature_min_masks": 1,
    },
    "everything": {
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "activation_dropout": 0.1,
        "encoder_layerdrop": 0.2,
        "decoder_layerdrop": 0.2,
        "apply_spec_augment": True,
    },
}


@pytest.mark.parametrize("name", DROPPED)
def test_training_drops_the_same_under_the_same_seeds(tmp_path: Path, name: str) -> None:
    ours, theirs = both(write(tmp_path, **DROPPED[name]))
    ours.train()
    theirs.train()
    losses = []
    for model in (ours, theirs):
        torch.manual_seed(5)
        np.random.seed(5)
        losses.append(torch.stack([model(**inputs(seed=seed)).loss for seed in range(4)]))
    close(losses[0], losses[1])
    ours.eval()
    theirs.eval()
    close(ours(**inputs()).loss, theirs(**inputs()).loss)
    assert (losses[0][3] - ours(**inputs()).loss).abs() > TOLERANCE


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    folder = write(tmp_path, dropout=0.2, attention_dropout=0.2)
    gradients = []
    for checkpointing in (False, True):
        model = Ours.from_pretrained(folder).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing == checkpointing
        torch.manual_seed(5)
        output = model(**inputs())
        assert (output.past_key_values is None) == checkpointing
        output.loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        model.gradient_checkpointing_disable()
        assert not model.is_gradient_checkpointing
    close(gradients[0], gradients[1])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("padded", ["left", "right", "one row wholly", "none"])
def test_hidden_tokens_are_not_seen(folder: Path, attention: str, padded: str) -> None:
    ours, theirs = both(folder, attention)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    hidden = {"left": slice(0, 3), "right": slice(-3, None), "none": slice(0, 0)}
    mask[1, hidden.get(padded, slice(None))] = 0
    given = {**inputs(), "decoder_attention_mask": mask, "output_hidden_states": True}
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        for more in ({}, {"decoder_position_ids": positions}):
            found, expected = ours(**given, **more), theirs(**given, **more)
            # What hidden tokens themselves give means nothing.
            close(found.logits[mask.bool()], expected.logits[mask.bool()])
            assert found.logits.isfinite().all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_tokens_one_by_one_and_in_parts_equal_the_whole(folder: Path, attention: str) -> None:
    ours, theirs = both(folder, attention)
    features, labels = inputs()["input_features"], inputs()["labels"].clamp(min=0)
    with torch.no_grad():
        whole = theirs(features, decoder_input_ids=labels).logits
        for parts in ([1] * TOKENS, [3, 1, 3], [TOKENS - 1, 1]):
            past: Any = None
            found = []
            encoded = ours.get_encoder()(features)
            for tokens in labels.split(parts, dim=1):
                step = ours(encoder_outputs=encoded, decoder_input_ids=tokens, past_key_values=past)
                past = step.past_key_values
                found.append(step.logits)
            close(torch.cat(found, dim=1), whole)
            assert past.get_seq_length() == TOKENS


def test_a_cache_goes_on_under_a_mask_as_in_transformers(folder: Path) -> None:
    ours, theirs = both(folder)
    given = inputs()
    features, tokens = given["input_features"], given["labels"].clamp(min=0)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, :2] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    results = []
    with torch.no_grad():
        for model in (ours, theirs):
            past, logits = None, []
            for start, end in ((0, 4), (4, 5), (5, 7)):
                step = model(
                    features,
                    decoder_input_ids=tokens[:, start:end],
                    decoder_attention_mask=mask[:, :end],
                    decoder_position_ids=positions[:, start:end],
                    past_key_values=past,
                    output_attentions=True,
                )
                past = step.past_key_values
                logits.append(step.logits)
            results.append((torch.cat(logits, dim=1)[mask.bool()], step.decoder_attentions))
    close(results[0], results[1])


def test_cached_values_are_those_of_transformers(folder: Path) -> None:
    ours, theirs = both(folder)
    with torch.no_grad():
        found = ours(**inputs()).past_key_values
        expected = theirs(**inputs()).past_key_values
    for at, layer in enumerate(found):
        own = expected.self_attention_cache.layers[at]
        cross = expected.cross_attention_cache.layers[at]
        close(layer, (own.keys, own.values, cross.keys, cross.values))


def test_old_tuples_of_keys_and_values_are_taken(folder: Path) -> None:
    ours, _ = both(folder)
    features, tokens = inputs()["input_features"], inputs()["labels"].clamp(min=0)
    with torch.no_grad():
        whole = ours(features, decoder_input_ids=tokens).logits
        past = ours(features, decoder_input_ids=tokens[:, :4]).past_key_values.to_legacy_cache()
        assert len(past) == 3
        assert {len(layer) for layer in past} == {4}
        step = ours(features, decoder_input_ids=tokens[:, 4:], past_key_values=past)
    close(step.logits, whole[:, 4:])


def test_rows_of_a_cache_can_be_chosen_and_cropped(folder: Path) -> None:
    ours, _ = both(folder)
    features, tokens = inputs()["input_features"], inputs()["labels"].clamp(min=0)
    rows = torch.tensor([1, 1])
    with torch.no_grad():
        whole = ours(features[rows], decoder_input_ids=tokens[rows]).logits
        past = ours(features, decoder_input_ids=tokens).past_key_values
        past.reorder_cache(rows)
        past.crop(5)
        past.crop(-1)
        step = ours(features[rows], decoder_input_ids=tokens[rows][:, 4:], past_key_values=past)
    close(step.logits, whole[:, 4:])


def embedded(model: Any, given: dict[str, Tensor]) -> dict[str, Any]:
    tokens = given["labels"].clamp(min=0)
    embeddings = model.get_input_embeddings()(tokens)
    return {"input_features": given["input_features"], "decoder_inputs_embeds": embeddings}


def test_embeddings_may_be_given_instead_of_tokens(folder: Path) -> None:
    ours, theirs = both(folder)
    with torch.no_grad():
        close(ours(**embedded(ours, inputs())).logits, theirs(**embedded(theirs, inputs())).logits)


FORMS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda encoded: encoded,
    "tuple": lambda encoded: (encoded.last_hidden_state,),
    "whole tuple": lambda encoded: encoded.to_tuple(),
    "list": lambda encoded: [encoded.last_hidden_state, None, None],
    "mapping": dict,
    "alone": lambda encoded: encoded.last_hidden_state,
}


@pytest.mark.parametrize("form", FORMS)
def test_an_encoding_may_be_given_instead_of_features(folder: Path, form: str) -> None:
    ours, theirs = both(folder)
    given = inputs()
    features, labels = given.pop("input_features"), given["labels"]
    with torch.no_grad():
        encoded = ours.get_encoder()(features, output_hidden_states=True, output_attentions=True)
        found = ours(encoder_outputs=FORMS[form](encoded), labels=labels)
        close(found.logits, theirs(features, labels=labels).logits)


@pytest.mark.parametrize("which", ["head_mask", "decoder_head_mask", "cross_attn_head_mask"])
def test_a_masked_head_says_nothing(folder: Path, which: str) -> None:
    """As in old releases; the oracle is a network whose head has no way out."""
    ours, _ = both(folder, "sdpa")
    crippled, _ = both(folder, "sdpa")
    mask = torch.ones(3, 2)
    mask[1, 0] = 0.0
    tower = crippled.get_encoder() if which == "head_mask" else crippled.get_decoder()
    block = tower.layers[1]
    attention = block.encoder_attn if which == "cross_attn_head_mask" else block.self_attn
    with torch.no_grad():
        attention.out_proj.weight[:, :12] = 0.0
        found = ours(**inputs(), **{which: mask}).logits
        close(found, crippled(**inputs()).logits)
        assert not torch.allclose(found, ours(**inputs()).logits)
        close(ours(**inputs(), **{which: torch.ones(3, 2)}).logits, ours(**inputs()).logits)


def test_positions_may_be_given_as_where_the_cache_goes_on(folder: Path) -> None:
    ours, _ = both(folder)
    tokens = inputs()["labels"].clamp(min=0)
    features = inputs()["input_features"]
    with torch.no_grad():
        past = ours(features, decoder_input_ids=tokens[:, :4]).past_key_values
        step = ours(
            features,
            decoder_input_ids=tokens[:, 4:],
            past_key_values=past,
            cache_position=torch.arange(4, TOKENS),
        )
        close(step.logits, ours(features, decoder_input_ids=tokens).logits[:, 4:])


def test_bfloat16_training_learns(folder: Path) -> None:
    model = Ours.from_pretrained(folder, dtype="bfloat16").train()
    given = inputs()
    given["input_features"] = given["input_features"].to(model.dtype)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(**given).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
