"""`generate` with modules that are not the family's own: adapters, hooks, other layers, weights."""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from corpus_asr.models.generation.slots import changed_module
from corpus_asr.models.speech2text import Speech2TextForConditionalGeneration
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from tests.support.checkpoints import tiny_speech2text, tiny_whisper
from tests.support.references import WINDOW, same, sound
from tests.support.tokenizers import tiny_tokenizer

CALLED = "decoding is several times slower"
MELS = 16
# Searches of one window, and of several for Whisper.
SEARCHES: list[dict[str, Any]] = [
    {"max_new_tokens": 12},
    {"num_beams": 3, "max_new_tokens": 12},
    {"do_sample": True, "max_new_tokens": 12},
]
WHISPER_SEARCHES: list[dict[str, Any]] = [
    *({"return_timestamps": True, **search} for search in SEARCHES),
    {"return_token_timestamps": True, "max_new_tokens": 9},
]
LAYER = "model.decoder.layers.1."


class Whisper:
    """A tiny Whisper and what it is given."""

    def __init__(self, folder: Path) -> None:
        tiny_tokenizer(folder / "tokenizer")
        tiny_whisper(
            folder / "model",
            seed=1,
            tokenizer=folder / "tokenizer",
            spread=0.25,
            d_model=32,
            heads=2,
            max_source_positions=WINDOW // 2,
            max_target_positions=40,
        )
        self.network: Any = WhisperForConditionalGeneration.from_pretrained(folder / "model")
        self.network.generation_config.alignment_heads = [[0, 1], [1, 0]]

    def say(self, network: Any) -> list[Any]:
        """Generate in many ways."""
        short, long = sound(3, WINDOW, seed=1), sound(1, 2 * WINDOW + 30, seed=2)
        found = [said(network, short, **search) for search in WHISPER_SEARCHES]
        found.append(said(network, long, return_timestamps=True, max_new_tokens=12))
        found.append(said(network, short, assistant_model=self.network, max_new_tokens=12))
        return [*found, network.detect_language(short)]

    def begin(self, network: Any) -> list[Any]:
        """Generate in one way, where it is the modules and not the searches that differ."""
        return [said(network, sound(3, WINDOW, seed=1), **WHISPER_SEARCHES[0])]


class Speech2Text:
    """A tiny Speech2Text and what it is given."""

    def __init__(self, folder: Path) -> None:
        tiny_speech2text(
            folder,
            seed=1,
            d_model=32,
            vocab_size=90,
            spread=0.25,
            input_feat_per_channel=MELS,
            tie_word_embeddings=False,
        )
        self.network: Any = Speech2TextForConditionalGeneration.from_pretrained(folder)

    def say(self, network: Any, searches: Sequence[dict[str, Any]] = SEARCHES) -> list[Any]:
        """Generate in many ways."""
        lengths = torch.tensor([100, 63, 7])
        mask = (torch.arange(100)[None] < lengths[:, None]).long()
        features = torch.randn(3, 100, MELS, generator=torch.Generator().manual_seed(0))
        return [
            said(network, features * mask[:, :, None], attention_mask=mask, **search)
            for search in searches
        ]

    def begin(self, network: Any) -> list[Any]:
        """Generate in one way, where it is the modules and not the searches that differ."""
        return self.say(network, SEARCHES[:1])


def said(network: Any, features: Tensor, **arguments: Any) -> Any:
    torch.manual_seed(7)
    return network.generate(features, **arguments)


Family = Whisper | Speech2Text


@pytest.fixture(scope="module", params=[Whisper, Speech2Text], ids=lambda kind: kind.__name__)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    kind: type[Family] = request.param
    return kind(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def usual(family: Family) -> list[Any]:
    """What the plain network says."""
    return family.say(family.network)


TARGETS = r".*(q_proj|v_proj|fc1|out_proj)"
LORA = peft.LoraConfig(
    r=2, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False, lora_dropout=0.5
)


def adapted(family: Family, config: Any) -> Any:
    torch.manual_seed(0)
    # PEFT notes in its configuration what it adapts.
    return peft.get_peft_model(copy.deepcopy(family.network), copy.deepcopy(config))


@pytest.mark.long
def test_an_adapter_of_peft_says_what_it_says_merged(family: Family, usual: list[Any]) -> None:
    network = adapted(
        family,
        peft.IA3Config(
            target_modules=TARGETS, feedforward_modules=r".*fc1", init_ia3_weights=False
        ),
    )
    with pytest.warns(UserWarning, match=f"model.encoder.layers.0.*{CALLED}"):
        found = family.begin(network)
    with network.disable_adapter():
        same(family.begin(network), usual[:1])
    same(found, family.begin(network.merge_and_unload()))


@pytest.mark.long
@pytest.mark.parametrize("use_dora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_lora_is_merged_into_a_copy(family: Family, usual: list[Any], use_dora: bool) -> None:
    network = adapted(family, dataclasses.replace(LORA, use_dora=use_dora))
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    # No warning: warnings are errors here.
    first = family.say(network)
    assert first[0].tolist() != usual[0].tolist()
    with network.disable_adapter():
        same(family.begin(network), usual[:1])
    network.add_adapter("second", dataclasses.replace(LORA, r=3))
    network.set_adapter("second")
    assert family.begin(network)[0].tolist() != first[0].tolist()
    network.set_adapter("default")
    # Nothing of the network itself was touched: it is trained on, merged and unmerged.
    for name, weight in before.items():
        assert torch.equal(network.state_dict()[name], weight), name
    network.merge_adapter()
    same(family.begin(network), first[:1])
    network.unmerge_adapter()
    same(family.say(network.merge_and_unload()), first)


def test_a_hooked_adapter_is_called(family: Family) -> None:
    network = adapted(family, LORA).eval()
    calls: list[int] = []
    layer = network.get_base_model().get_submodule(LAYER + "self_attn.q_proj")
    layer.lora_A["default"].register_forward_hook(lambda *_: calls.append(1))
    found = family.begin(copy.deepcopy(network).merge_and_unload())
    with pytest.warns(UserWarning, match=f"layers.1.self_attn.q_proj is a peft.*{CALLED}"):
        same(family.begin(network), found)
    assert calls


def test_under_autocast_the_text_stays(family: Family, usual: list[Any]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        same(family.begin(family.network), usual[:1])


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:generating text")
def test_hooks_are_run(family: Family, usual: list[Any]) -> None:
    network = copy.deepcopy(family.network)
    for name in ("", "model.encoder.layers.0", "model.decoder.layers.1.fc1", network._projection):
        module = network.get_submodule(name)
        calls: list[str] = []
        before = module.register_forward_pre_hook(lambda *_, calls=calls: calls.append("before"))
        after = module.register_forward_hook(lambda *_, calls=calls: calls.append("after"))
        same(family.begin(network), usual[:1])
        assert {*calls} == {"before", "after"}, name
        before.remove()
        after.remove()
    assert changed_module(network) is None


@pytest.mark.filterwarnings("ignore:generating text")
def test_what_changed_modules_cannot_do_is_done_without_them(family: Family) -> None:
    if isinstance(family, Speech2Text):
        return
    network, features = copy.deepcopy(family.network), sound(3, WINDOW, seed=1)
    network.get_submodule(LAYER + "fc1").register_forward_hook(lambda *_: None)
    assert torch.equal(network.detect_language(features), family.network.detect_language(features))
    # It would draft for the network, whose text is the same without.
    same(said(family.network, features, assistant_model=network, max_new_tokens=12),
         said(family.network, features, max_new_tokens=12))  # fmt: skip
