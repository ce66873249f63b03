"""Rare settings of `generate` are those of transformers, which the usual ones never import."""

import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor

from corpus_asr.models.speech2text import Speech2TextForConditionalGeneration
from corpus_asr.models.whisper import WhisperForCausalLM
from tests.support import references
from tests.support.checkpoints import tiny_speech2text
from tests.support.references import WINDOW, Pair, Streamer, same, sound

pytestmark = pytest.mark.filterwarnings("ignore:Using the model-agnostic default:UserWarning")

MELS = 16
SHORT, LONG = sound(2, WINDOW, seed=1), sound(1, 2 * WINDOW + 36, seed=4)
NAMED: dict[str, Any] = {
    "return_dict_in_generate": True, "output_scores": True, "output_attentions": True,
    "output_hidden_states": True, "num_beams": 3,
}  # fmt: skip
IDS = torch.tensor([[457, 5, 6], [457, 8, 9]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whisper")


@pytest.fixture(scope="module")
def whisper(folder: Path) -> Pair:
    both = references.pair(folder, seed=5)
    both.set(max_new_tokens=9, alignment_heads=[[0, 1], [1, 0]])
    # Its fused kernels keep no weights to return.
    both.theirs.set_attn_implementation("eager")
    return both


@pytest.fixture(scope="module")
def speech2text(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("speech2text")
    sizes: dict[str, Any] = {"d_model": 32, "vocab_size": 90, "input_feat_per_channel": MELS}
    tiny_speech2text(
        folder, seed=1, spread=0.25, max_source_positions=400, tie_word_embeddings=False, **sizes
    )
    theirs = transformers.Speech2TextForConditionalGeneration
    ours: Any = Speech2TextForConditionalGeneration.from_pretrained(folder)
    return Pair(ours, theirs.from_pretrained(folder, attn_implementation="eager").eval())


def spoken(rows: int) -> Tensor:
    return torch.randn(rows, 80, MELS, generator=torch.Generator().manual_seed(0))


def agree(both: Pair, features: Tensor, **options: Any) -> Any:
    texts = []
    for generate in (both.say, both.said):
        torch.manual_seed(3)
        texts.append(generate(features, **options))
    same(*texts)
    return texts[0]


@pytest.mark.parametrize(
    ("features", "options"),
    [
        (SHORT, {"temperature": 0.7, "typical_p": 0.6}),
        (SHORT, {"sequence_bias": [[[5], 3.0]], "num_beams": 3, "return_timestamps": True}),
        (SHORT, NAMED),
        (LONG, {"return_timestamps": True, "min_new_tokens": 3, "return_segments": True}),
        (SHORT, {"cache_implementation": "static", "min_new_tokens": 4}),
    ],
    ids=["sampled", "beams", "by name", "many windows", "static cache"],
)
def test_whisper_says_what_it_says_in_transformers(
    whisper: Pair, features: Tensor, options: dict[str, Any]
) -> None:
    found = agree(whisper, features, **options)
    if "output_scores" in options:
        scores = whisper.ours.compute_transition_scores(found.sequences, found.scores)
        assert len(scores) == 2


@pytest.mark.parametrize("option", [{"min_length": 4}, {"min_new_tokens": 4}, {"max_time": 9.0}])
def test_a_static_cache_of_a_checkpoint_is_taken(
    whisper: Pair, monkeypatch: pytest.MonkeyPatch, option: dict[str, Any]
) -> None:
    for model in (whisper.ours, whisper.theirs):
        monkeypatch.setattr(model.generation_config, "cache_implementation", "static")
    agree(whisper, SHORT, **option)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "eta_cutoff": 0.05, "num_return_sequences": 2},
        {"do_sample": True, "num_beams": 3},
        {"eos_token_id": [2, 42], "bad_words_ids": [[3], [4, 5]]},
        {**NAMED, "max_new_tokens": 8},
    ],
    ids=["sampled", "sampled beams", "ends", "by name"],
)
def test_speech2text_says_what_it_says_in_transformers(
    speech2text: Pair, options: dict[str, Any]
) -> None:
    mask = (torch.arange(80)[None] < torch.tensor([80, 50, 20])[:, None]).long()
    agree(speech2text, spoken(3), attention_mask=mask, **options)


def test_a_cache_and_a_streamer_are_taken(speech2text: Pair) -> None:
    prompt = torch.tensor([[2, 5, 6]])
    plain = speech2text.say(spoken(1), decoder_input_ids=prompt, max_new_tokens=6)
    with torch.no_grad():
        output = speech2text.ours(spoken(1), decoder_input_ids=prompt[:, :2], use_cache=True)
    asked = {"decoder_input_ids": prompt, "max_new_tokens": 6}
    same(speech2text.say(spoken(1), past_key_values=output.past_key_values, **asked), plain)
    streamer = Streamer()
    same(speech2text.say(spoken(1), streamer=streamer, **asked), plain)
    assert [token for part in streamer.tokens[:-1] for token in part] == plain[0].tolist()


@pytest.mark.filterwarnings("ignore:generating text")
def test_each_row_has_its_adapter(speech2text: Pair, tmp_path: Path) -> None:
    speech2text.ours.save_pretrained(tmp_path)
    base: Any = Speech2TextForConditionalGeneration.from_pretrained(tmp_path)
    lora = peft.LoraConfig(r=2, target_modules=r".*(q_proj|fc1)", init_lora_weights=False)
    torch.manual_seed(0)
    network: Any = peft.get_peft_model(base, lora)
    network.add_adapter("second", lora)
    network.eval()
    features, rows = spoken(1), []
    for name in ("default", "second"):
        network.set_adapter(name)
        rows.append(network.generate(features, max_new_tokens=8))
    assert not torch.equal(*rows)
    mixed = network.generate(
        features[[0, 0]], max_new_tokens=8, adapter_names=["default", "second"]
    )
    same(mixed, torch.cat(rows))


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "top_k": 5}, {"num_beams": 2}], ids=str
)
def test_a_decoder_alone_generates(whisper: Pair, folder: Path, options: dict[str, Any]) -> None:
    ours: Any = WhisperForCausalLM.from_pretrained(folder / "model")
    theirs = transformers.WhisperForCausalLM.from_pretrained(
        folder / "model", attn_implementation="eager"
    )
    with torch.no_grad():
        encoded = whisper.theirs.get_encoder()(SHORT).last_hidden_state
    # Nobody repeats an encoding for the beams of a decoder alone.
    encoded = encoded.repeat_interleave(options.get("num_beams", 1), dim=0)
    agree(Pair(ours, theirs.eval()), IDS, encoder_outputs=(encoded,), max_new_tokens=5, **options)


def test_the_cache_of_a_decoder_alone_has_no_windows(folder: Path, whisper: Pair) -> None:
    ours: Any = WhisperForCausalLM.from_pretrained(folder / "model")
    theirs: Any = transformers.WhisperForCausalLM.from_pretrained(folder / "model")
    for options in ({}, {"num_beams": 2}, {"assistant_model": ours}):
        caches = [
            model.generate(
                IDS, max_new_tokens=5, return_dict_in_generate=True, **given
            ).past_key_values
            for model, given in ((ours, options), (theirs, options | {"assistant_model": None}))
        ]
        shapes = [[layer.keys.shape for layer in cache.layers] for cache in caches]
        assert shapes[0] == shapes[1]
        assert not any(hasattr(cache, "cross_attention_cache") for cache in caches)
    with torch.no_grad():
        assert hasattr(
            whisper.ours(SHORT, decoder_input_ids=IDS).past_key_values, "cross_attention_cache"
        )


def test_without_transformers_the_setting_is_named(
    whisper: Pair, speech2text: Pair, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder: Any = WhisperForCausalLM.from_pretrained(folder / "model")
    plain = whisper.say(SHORT, num_beams=2)
    monkeypatch.setitem(sys.modules, "transformers", None)
    for call, name in (
        (lambda: whisper.say(SHORT, min_p=0.1), "min_p"),
        (lambda: whisper.say(SHORT, **NAMED), "output_scores"),
        (lambda: speech2text.say(spoken(1), do_sample=True, num_beams=2), "do_sample"),
        (lambda: decoder.generate(IDS), r"WhisperForCausalLM\.generate"),
    ):
        with pytest.raises(ImportError, match=f"{name} needs .* pip install transformers"):
            call()
    # What the usual settings say needs no transformers.
    same(whisper.say(SHORT, num_beams=2, min_p=None, typical_p=1.0), plain)
    whisper.say(LONG, return_timestamps=True, temperature=(0.0, 0.4), logprob_threshold=-1.0)
    whisper.say(SHORT, assistant_model=decoder, return_token_timestamps=True)
    whisper.say(SHORT, return_dict_in_generate=True, temperature=0.5, top_k=5, top_p=0.9)
    speech2text.say(spoken(2), num_beams=2, forced_bos_token_id=7)
    speech2text.say(spoken(2), do_sample=True, temperature=0.5, top_k=5, top_p=0.9)


def test_code_of_others_is_not_run(speech2text: Pair) -> None:
    for options in ({"custom_generate": "a/b", "min_p": 0.1}, {"custom_generate": "a/b"}):
        with pytest.raises(ValueError, match="custom_generate"):
            speech2text.say(spoken(1), **options)
