"""Every argument of Speech2Text's networks against transformers, over many shapes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from corpus_asr.families.past import DecoderCache
from corpus_asr.families.speech2text.model import Speech2TextModel
from corpus_asr.models.speech2text.model import Speech2TextForConditionalGeneration
from tests.support.checkpoints import tiny_network

# Products of float32 in another order.
TOLERANCE = 2e-5
# Sums over all tokens and positions of such.
GRADIENT_TOLERANCE = 1e-4

Ours = Speech2TextForConditionalGeneration
Theirs = transformers.Speech2TextForConditionalGeneration
VOCAB, FRAMES, TOKENS = 120, 61, 7
LENGTHS = (61, 30, 5)

STATES = (
    "decoder_hidden_states", "decoder_attentions", "cross_attentions", "encoder_hidden_states",
    "encoder_attentions",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_network(tmp_path_factory.mktemp("checkpoint"), layers=3)


def both(folder: Path, attention: str = "eager") -> tuple[Any, Any]:
    ours = Ours.from_pretrained(folder, attn_implementation=attention)
    return ours, Theirs.from_pretrained(folder, attn_implementation="eager").eval()


def inputs(
    lengths: tuple[int, ...] = LENGTHS, *, tokens: int = TOKENS, mel: int = 80, seed: int = 3
) -> dict[str, Tensor]:
    """Features, padded with zeros as the feature extractor does, their mask, and labels."""
    generator = torch.Generator().manual_seed(seed)
    rows, longest = len(lengths), max(lengths)
    mask = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None]).long()
    features = torch.randn(rows, longest, mel, generator=generator) * mask[:, :, None]
    labels = torch.randint(2, VOCAB, (rows, tokens), generator=generator)
    labels[0, tokens - tokens // 3 :] = -100
    return {"input_features": features, "attention_mask": mask, "labels": labels}


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


SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one frame": ({}, {"lengths": (1,)}),
    "rows of every remainder": ({}, {"lengths": (16, 15, 14, 13, 12)}),
    "one token": ({}, {"tokens": 1}),
    "longer than the checkpoint's positions": (
        {"max_source_positions": 8, "max_target_positions": 4},
        {"lengths": (61, 9)},
    ),
    "one convolution": ({"num_conv_layers": 1, "conv_kernel_sizes": [3]}, {}),
    "three convolutions": ({"num_conv_layers": 3, "conv_kernel_sizes": [5, 3, 7]}, {}),
    "two channels": ({"input_channels": 2, "input_feat_per_channel": 20}, {"mel": 40}),
    "embeddings not scaled": ({"scale_embedding": False}, {}),
    "an odd width": ({"d_model": 25, "heads": 5}, {}),
    "one head": ({"heads": 1}, {}),
    "towers that differ": ({"encoder_layers": 3, "decoder_layers": 1}, {}),
    "no layers": ({"encoder_layers": 0, "decoder_layers": 0}, {}),
    "gelu": ({"activation_function": "gelu"}, {}),
    "an output of its own": ({"tie_word_embeddings": False}, {}),
    "padding is token 0": ({"pad_token_id": 0, "bos_token_id": 1}, {}),
    "padding is token 9": ({"pad_token_id": 9}, {}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_gives_what_transformers_gives(tmp_path: Path, name: str) -> None:
    settings, shape = SHAPES[name]
    ours, theirs = both(tiny_network(tmp_path, **settings))
    with torch.no_grad():
        expected = theirs(**inputs(**shape))
        for attention in ("eager", "sdpa"):
            ours.set_attn_implementation(attention)
            found = ours(**inputs(**shape))
            close(found.logits, expected.logits)
            close(found.loss, expected.loss)


def test_padding_among_the_tokens_takes_no_position(folder: Path) -> None:
    ours, theirs = both(folder)
    given = inputs()
    tokens = given.pop("labels").clamp(min=2)
    tokens[0, 2:4] = tokens[1, :3] = ours.config.pad_token_id
    with torch.no_grad():
        found = ours(**given, decoder_input_ids=tokens)
        close(found.logits, theirs(**given, decoder_input_ids=tokens).logits)


def test_the_model_alone_gives_its_states(folder: Path) -> None:
    ours = Speech2TextModel.from_pretrained(folder)
    theirs = transformers.Speech2TextModel.from_pretrained(folder, attn_implementation="eager")
    given = inputs()
    tokens = given.pop("labels").clamp(min=2)
    with torch.no_grad():
        found = ours(**given, decoder_input_ids=tokens, return_dict=False, use_cache=False)
        expected = theirs.eval()(**given, decoder_input_ids=tokens, use_cache=False)
    close(found, expected.to_tuple())


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_transformers(tmp_path: Path, tied: bool) -> None:
    ours, theirs = both(tiny_network(tmp_path, tie_word_embeddings=tied))
    theirs(**inputs()).loss.backward()
    for attention in ("eager", "sdpa"):
        ours.set_attn_implementation(attention)
        ours.zero_grad()
        ours(**inputs()).loss.backward()
        for (name, found), (other, expected) in zip(
            ours.named_parameters(), theirs.named_parameters(), strict=True
        ):
            assert name == other
            close(found.grad, expected.grad, GRADIENT_TOLERANCE)


DROPPED: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.3},
    "attention dropout": {"attention_dropout": 0.3},
    "activation dropout": {"activation_dropout": 0.3},
    "layerdrop": {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5},
}


@pytest.mark.parametrize("name", DROPPED)
def test_training_drops_the_same_under_the_same_seeds(tmp_path: Path, name: str) -> None:
    ours, theirs = both(tiny_network(tmp_path, **DROPPED[name]))
    ours.train()
    theirs.train()
    losses = []
    for model in (ours, theirs):
        torch.manual_seed(5)
        losses.append(torch.stack([model(**inputs(seed=seed)).loss for seed in range(4)]))
    close(losses[0], losses[1])
    ours.eval()
    assert (losses[0][3] - ours(**inputs(seed=3)).loss).abs() > TOLERANCE


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    folder = tiny_network(tmp_path, dropout=0.2, attention_dropout=0.2)
    gradients = []
    for checkpointing in (False, True):
        model = Ours.from_pretrained(folder).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(5)
        output = model(**inputs())
        assert (output.past_key_values is None) == checkpointing
        output.loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    close(gradients[0], gradients[1])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_hidden_tokens_are_not_seen(folder: Path, attention: str) -> None:
    ours, theirs = both(folder, attention)
    # At the start, at the end, a whole row, none.
    for hidden in (slice(0, 3), slice(-3, None), slice(None), slice(0, 0)):
        mask = torch.ones(3, TOKENS, dtype=torch.long)
        mask[1, hidden] = 0
        given = {**inputs(), "decoder_attention_mask": mask}
        with torch.no_grad():
            found, expected = ours(**given), theirs(**given)
        # What hidden tokens themselves give means nothing.
        close(found.logits[mask.bool()], expected.logits[mask.bool()])
        assert found.logits.isfinite().all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_tokens_one_by_one_and_in_parts_equal_the_whole(folder: Path, attention: str) -> None:
    ours, theirs = both(folder, attention)
    given = inputs()
    labels = given.pop("labels").clamp(min=2)
    mask = given["attention_mask"]
    with torch.no_grad():
        whole = theirs(**given, decoder_input_ids=labels).logits
        encoded = ours.get_encoder()(**given)
        for parts in ([1] * TOKENS, [3, 1, 3], [TOKENS - 1, 1]):
            past: Any = None
            found = []
            for tokens in labels.split(parts, dim=1):
                step = ours(
                    encoder_outputs=encoded,
                    attention_mask=mask,
                    decoder_input_ids=tokens,
                    past_key_values=past,
                )
                past = step.past_key_values
                found.append(step.logits)
            close(torch.cat(found, dim=1), whole)
            assert past.get_seq_length() == TOKENS


def test_cached_values_are_those_of_transformers(folder: Path) -> None:
    ours, theirs = both(folder)
    with torch.no_grad():
        found = ours(**inputs()).past_key_values
        expected = theirs(**inputs()).past_key_values
    assert isinstance(found, DecoderCache)
    for at, layer in enumerate(found):
        own = expected.self_attention_cache.layers[at]
        cross = expected.cross_attention_cache.layers[at]
        close(layer, (own.keys, own.values, cross.keys, cross.values))


FORMS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda encoded: encoded,
    "tuple": lambda encoded: (encoded.last_hidden_state,),
    "mapping": dict,
    "alone": lambda encoded: encoded.last_hidden_state,
}


@pytest.mark.parametrize("form", FORMS)
def test_an_encoding_may_be_given_instead_of_features(folder: Path, form: str) -> None:
    ours, theirs = both(folder)
    given = inputs()
    with torch.no_grad():
        expected = theirs(**given).logits
        features, mask = given.pop("input_features"), given["attention_mask"]
        encoded = ours.get_encoder()(features, mask, output_attentions=True)
        close(ours(encoder_outputs=FORMS[form](encoded), **given).logits, expected)


def test_embeddings_may_be_given_instead_of_tokens(folder: Path) -> None:
    ours, _ = both(folder)
    given = inputs()
    tokens = given.pop("labels").clamp(min=2)
    with torch.no_grad():
        embeds = ours.get_input_embeddings()(tokens) * ours.get_decoder().embed_scale
        found = ours(**given, decoder_inputs_embeds=embeds)
        close(found.logits, ours(**given, decoder_input_ids=tokens).logits)


@pytest.mark.parametrize("which", ["head_mask", "decoder_head_mask", "cross_attn_head_mask"])
def test_a_masked_head_says_nothing(folder: Path, which: str) -> None:
    # transformers 5 no longer has these: a head of zeros at its output is the same.
    ours, crippled = Ours.from_pretrained(folder), Ours.from_pretrained(folder)
    mask = torch.ones(3, 2)
    mask[1, 0] = 0.0
    tower = crippled.get_encoder() if which == "head_mask" else crippled.get_decoder()
    block = tower.layers[1]
    attention = getattr(block, "encoder_attn" if which.startswith("cross") else "self_attn")
    with torch.no_grad():
        attention.out_proj.weight[:, : attention.head_dim] = 0.0
        found = ours(**inputs(), **{which: mask}).logits
        close(found, crippled(**inputs()).logits)
        assert not torch.allclose(found, ours(**inputs()).logits)
        close(ours(**inputs(), **{which: torch.ones(3, 2)}).logits, ours(**inputs()).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_give_what_transformers_gives(folder: Path, dtype: torch.dtype) -> None:
    ours = Ours.from_pretrained(folder, dtype=dtype)
    theirs = Theirs.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    given = inputs()
    given["input_features"] = given["input_features"].to(dtype)
    with torch.no_grad():
        found, expected = ours(**given).logits, theirs(**given).logits
    assert found.dtype == dtype
    # 8 bits of mantissa through six blocks; logits lie around 10.
    close(found, expected, 0.5 if dtype == torch.bfloat16 else 1e-6)
