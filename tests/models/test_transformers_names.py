"""Methods and attributes by which programs for transformers know a network or a tokenizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.speech_to_text import modeling_speech_to_text
from transformers.models.whisper import modeling_whisper

from corpus_asr.families.speech2text.encoder import Speech2TextEncoder
from corpus_asr.families.speech2text.model import Speech2TextDecoder
from corpus_asr.families.whisper.encoder import WhisperEncoder
from corpus_asr.families.whisper.model import WhisperDecoder
from corpus_asr.models import speech2text, whisper
from tests.support.checkpoints import tiny_families

SIZES: dict[str, Any] = {"d_model": 16, "heads": 2, "layers": 1}
IDS = torch.tensor([[5, 6, 7], [8, 9, 10]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_families(tmp_path_factory.mktemp("checkpoints"), **SIZES)


@pytest.fixture(params=["Whisper", "Speech2Text"])
def network(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Any:
    package = whisper if request.param == "Whisper" else speech2text
    kind = getattr(package, f"{request.param}ForConditionalGeneration")
    return kind.from_pretrained(folders[request.param])


def features_of(network: Any) -> Tensor:
    shape = (2, 80, 100) if type(network).__name__.startswith("Whisper") else (2, 100, 80)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


PARTS = {
    WhisperEncoder: modeling_whisper.WhisperEncoder,
    WhisperDecoder: modeling_whisper.WhisperDecoder,
    Speech2TextEncoder: modeling_speech_to_text.Speech2TextEncoder,
    Speech2TextDecoder: modeling_speech_to_text.Speech2TextDecoder,
}


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_an_encoder_or_a_decoder_is_saved_and_loaded_by_itself(
    network: Any, part: str, tmp_path: Path
) -> None:
    held = network.get_encoder() if part == "encoder" else network.get_decoder()
    held.save_pretrained(tmp_path)
    inputs = features_of(network) if part == "encoder" else IDS
    expected = held(inputs).last_hidden_state
    loaded = type(held).from_pretrained(tmp_path)
    assert torch.equal(loaded(inputs).last_hidden_state, expected)
    theirs = PARTS[type(held)].from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(inputs).last_hidden_state, expected)
    assert (held.dtype, held.device) == (torch.float32, torch.device("cpu"))
    assert not held.can_generate()
    assert held.main_input_name == ("input_features" if part == "encoder" else "input_ids")


def test_a_part_of_its_own_is_drawn_as_in_a_whole_network() -> None:
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    config = whisper.WhisperConfig(d_model=48, **layers)
    encoder: Any = WhisperEncoder(config)
    whole: Any = whisper.WhisperModel(config)
    assert torch.equal(encoder.embed_positions.weight, whole.encoder.embed_positions.weight)
    assert not encoder.embed_positions.weight.requires_grad
    assert float(encoder.layers[0].fc1.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(WhisperDecoder(config).embed_tokens.weight.detach().std()) == pytest.approx(
        0.02, rel=0.1
    )


def test_what_networks_say_of_themselves_is_what_those_of_transformers_say(
    network: Any, folders: dict[str, Path]
) -> None:
    name = type(network).__name__
    theirs = getattr(transformers, name).from_pretrained(folders[name.partition("For")[0]])
    assert type(network.base_model).__name__ == type(theirs.base_model).__name__
    assert network.base_model is network.model
    # transformers keeps tables of positions that are computed as buffers of Speech2Text.
    of_weights = network.get_memory_footprint(return_buffers=False)
    assert of_weights == theirs.get_memory_footprint(return_buffers=False)
    assert network.get_memory_footprint() == of_weights
    assert network._tied_weights_keys == theirs._tied_weights_keys
    for frames in (7, 100, torch.tensor([1, 8])):
        ours, expected = (
            each._get_feat_extract_output_lengths(frames) for each in (network, theirs)
        )
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(expected))
    network.add_model_tags(["speech"])
    network.add_model_tags("speech")
    assert network.model_tags == ["speech"]


def test_dummy_inputs_can_be_run(network: Any) -> None:
    assert network(**network.dummy_inputs).logits.shape[:2] == (1, 1)


def test_weights_that_were_lost_are_drawn(network: Any) -> None:
    config = network.config
    with torch.device("meta"):
        empty = type(network)(config)
    empty.to_empty(device="cpu")
    empty.init_weights()
    assert empty.get_output_embeddings().weight is empty.get_input_embeddings().weight
    logits = empty.eval()(features_of(network), decoder_input_ids=IDS).logits
    assert bool(logits.isfinite().all())
    weight = network.get_output_embeddings().weight
    before = weight.clone()
    network.post_init()
    assert torch.equal(weight, before)


def test_a_network_of_fresh_weights_takes_type_and_attention(network: Any) -> None:
    config = type(network.config).from_dict(network.config.to_dict())
    made = type(network)._from_config(config, attn_implementation="eager", dtype=torch.bfloat16)
    assert made.dtype == torch.bfloat16
    assert made.config._attn_implementation == "eager"
    made.config._attn_implementation = "sdpa"
    assert made.config.attn_implementation == "sdpa"


def test_the_first_layer_of_an_encoder_can_require_gradients(folders: dict[str, Path]) -> None:
    config = whisper.WhisperConfig.from_pretrained(folders["Whisper"], num_labels=3)
    model = whisper.WhisperForAudioClassification(config)
    model.requires_grad_(False)
    model.enable_input_require_grads()
    assert model(torch.zeros(1, 80, 100)).logits.requires_grad
    model.disable_input_require_grads()
    assert not model(torch.zeros(1, 80, 100)).logits.requires_grad
    assert model.get_output_embeddings() is None
    assert isinstance(model.get_input_embeddings(), nn.Conv1d)


def test_a_configuration_names_its_settings_and_asks_for_checkpointing(network: Any) -> None:
    config = type(network.config).from_dict(network.config.to_dict())
    assert {"d_model", "vocab_size", "is_encoder_decoder"} <= set(config)
    config.dtype = torch.float16
    assert config.dtype == torch.float16 == config.torch_dtype
    assert config.dtype == "float16"
    assert config.dtype != torch.float32
    assert config.to_dict()["dtype"] == "float16"
    named = type(config)(id2label={0: "a"}, label2id={"a": "0"}, torch_dtype="bfloat16")
    assert (named.label2id, named.dtype) == ({"a": "0"}, torch.bfloat16)
    config.gradient_checkpointing = True
    assert type(network)(config).is_activation_checkpointing


def test_a_cache_shows_what_each_attention_keeps(network: Any) -> None:
    output = network(features_of(network), decoder_input_ids=IDS, use_cache=True)
    cache = output.past_key_values
    own, cross = cache.self_attention_cache, cache.cross_attention_cache
    assert len(own) == len(cross) == 1
    heads, width = network.config.decoder_attention_heads, network.config.d_model
    assert own.layers[0].keys.shape == (2, heads, 3, width // heads)
    positions = output.encoder_last_hidden_state.shape[1]
    assert cross.layers[0].values.shape == (2, heads, positions, width // heads)
    assert (own.get_seq_length(), cross.get_seq_length()) == (3, positions)
    assert cache.is_updated == {0: True}
    first = own.layers[0].keys
    assert cache.layers[0].keys is first
    cache.batch_repeat_interleave(2)
    assert torch.equal(cache.self_attention_cache.layers[0].keys, first.repeat_interleave(2, dim=0))
    cache.batch_select_indices(torch.tensor([3, 0]))
    assert torch.equal(cache.self_attention_cache.layers[0].keys, first.flip(0))


def test_labels_of_one_row_are_those_of_every_window(network: Any) -> None:
    features, labels = features_of(network), IDS[:1]
    loss = network(features, decoder_input_ids=IDS[:1].expand(2, -1), labels=labels).loss
    whole = network(features, decoder_input_ids=IDS[:1].expand(2, -1), labels=labels.expand(2, -1))
    torch.testing.assert_close(loss, whole.loss)


TEXTS = ["the quick fox", "jumps"]


@pytest.mark.parametrize("pair", [None, ["over it", "a lazy dog"]])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_tokenizer_know_where_tokens_come_from(
    folders: dict[str, Path], pair: list[str] | None, side: str
) -> None:
    made = [
        kind.from_pretrained(folders["Whisper"], padding_side=side)
        for kind in (whisper.WhisperTokenizer, transformers.WhisperTokenizer)
    ]
    for one in made:
        one.pad_token = one.eos_token
    ours: Any
    theirs: Any
    ours, theirs = (one(TEXTS, pair, padding=True) for one in made)
    assert ours["input_ids"] == theirs["input_ids"]
    assert ours.is_fast
    for row, (text, second) in enumerate(zip(TEXTS, pair or ["", ""], strict=True)):
        assert ours.word_ids(row) == theirs.word_ids(row)
        assert ours.sequence_ids(row) == theirs.sequence_ids(row)
        for char in range(len(text)):
            assert ours.char_to_token(row, char) == theirs.char_to_token(row, char)
        for char in range(len(second)):
            found = [one.char_to_token(row, char, sequence_index=1) for one in (ours, theirs)]
            assert found[0] == found[1]
        for token in range(len(ours["input_ids"][row])):
            assert ours.token_to_word(row, token) == theirs.token_to_word(row, token)
            span, expected = ours.token_to_chars(row, token), theirs.token_to_chars(row, token)
            if ours.sequence_ids(row)[token] is not None:
                assert span == (expected.start, expected.end)
    first = ours.char_to_token(0, 0)
    assert ours.tokens(0)[first] == theirs.tokens(0)[first]
    single = made[0](TEXTS[0])
    assert single.char_to_token(4) == made[1](TEXTS[0]).char_to_token(4)


def test_a_tokenizer_without_such_rows_says_so(folders: dict[str, Path]) -> None:
    batch = speech2text.Speech2TextTokenizer.from_pretrained(folders["Speech2Text"])("a b")
    assert not batch.is_fast
    with pytest.raises(ValueError, match="whose is_fast is true"):
        batch.word_ids()


@pytest.mark.parametrize("name", ["Whisper", "Speech2Text"])
def test_tokenizers_know_roles_and_settings(folders: dict[str, Path], name: str) -> None:
    package = whisper if name == "Whisper" else speech2text
    tokenizer = getattr(package, f"{name}Tokenizer").from_pretrained(folders[name])
    for role in ("sep_token", "cls_token", "mask_token"):
        assert getattr(tokenizer, role) is None
        assert getattr(tokenizer, f"{role}_id") is None
        setattr(tokenizer, f"{role}_id", 0)
        assert getattr(tokenizer, role) == tokenizer.convert_ids_to_tokens(0)
    tokenizer.bos_token_id = None
    assert tokenizer.bos_token is None
    assert tokenizer.init_inputs == ()
    assert tokenizer.init_kwargs["model_max_length"] == tokenizer.model_max_length
    assert tokenizer.init_kwargs["name_or_path"] == str(folders[name])
    assert tokenizer.extra_special_tokens == tokenizer.additional_special_tokens
    tokenizer.extra_special_tokens_ids = [1]
    assert tokenizer.extra_special_tokens == [tokenizer.convert_ids_to_tokens(1)]
    assert tokenizer.extra_special_tokens_ids == [1]
    added = tokenizer.add_special_tokens(
        {"extra_special_tokens": ["<new>"]}, replace_extra_special_tokens=False
    )
    assert added == 1
    with pytest.raises(AttributeError, match="which is a method"):
        type(tokenizer).from_pretrained(folders[name], get_vocab=True)
    type(tokenizer).from_pretrained(folders[name], do_lower_case=True)


def test_a_vocabulary_is_listed_by_its_ids(folders: dict[str, Path]) -> None:
    tokenizer = speech2text.Speech2TextTokenizer.from_pretrained(folders["Speech2Text"])
    ids = list(tokenizer.encoder.values())
    assert ids == sorted(ids)
