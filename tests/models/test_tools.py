"""What torch, accelerate, datasets and transformers do with networks and processors of here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from corpus_asr.models import speech2text, whisper
from tests.support.checkpoints import tiny_families, tiny_whisper
from tests.support.tokenizers import tiny_tokenizer

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]
SIZES: dict[str, Any] = {"d_model": 16, "heads": 2, "layers": 1}
IDS = torch.tensor([[5, 6], [7, 8]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_families(tmp_path_factory.mktemp("checkpoints"), **SIZES)


def named(package: Any, name: str, folders: dict[str, Path], kind: str) -> Any:
    return getattr(package, name + kind).from_pretrained(folders[name])


Case = tuple[Any, Tensor]


@pytest.fixture(params=["Whisper", "Speech2Text"])
def case(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Case:
    """A network and features for it."""
    name = request.param
    package = whisper if name == "Whisper" else speech2text
    network = named(package, name, folders, "ForConditionalGeneration")
    shape = (2, 80, 100) if name == "Whisper" else (2, 100, 80)
    return network, torch.randn(shape, generator=torch.Generator().manual_seed(0))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def exported(module: Any, features: Tensor, **inputs: Any) -> Callable[..., Any]:
    program = torch.export.export(module, (features,), inputs, strict=False)
    return program.module()


@torch.no_grad()
def test_encoders_and_models_are_exported(case: Case) -> None:
    network, features = case
    encoder = network.get_encoder()
    other = 2 * features
    # What is traced has the checks of shapes alone: none depends on values.
    close(exported(encoder, features)(other).last_hidden_state, encoder(other).last_hidden_state)
    inputs = {"decoder_input_ids": IDS, "use_cache": False}
    found = exported(network, features, **inputs)(other, **inputs)
    assert type(found) is type(network(other, **inputs))
    close(found.logits, network(other, **inputs).logits)
    # Nothing of a trace stays in the network.
    assert network.generate(features, max_new_tokens=3).shape[0] == 2


def test_offloaded_weights_are_brought_where_they_are_needed(case: Case) -> None:
    network, features = case
    expected = network.generate(features, max_new_tokens=4)
    accelerate.cpu_offload(network, execution_device=torch.device("cpu"))
    with pytest.warns(UserWarning, match="decoding is several times slower"):
        found = network.generate(features, max_new_tokens=4)
    assert torch.equal(found, expected)
    assert network.device == torch.device("cpu")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Whisper", "Speech2Text"])
def test_pipelines_take_each_others_parts(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    if name == "Whisper":  # with the windows that the feature extractor makes, several with text
        tiny_tokenizer(tmp_path)
        tiny_whisper(tmp_path, tokenizer=tmp_path, seed=34, **SIZES)
        folders = {name: tmp_path}
    package = whisper if name == "Whisper" else speech2text
    models = [
        named(of, name, folders, "ForConditionalGeneration") for of in (transformers, package)
    ]
    parts = [named(of, name, folders, "Processor") for of in (transformers, package)]
    sound = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) / 10
    found = []
    # The pipeline of here is that of Whisper.
    for make in (transformers.pipeline, whisper.pipeline)[: 2 if name == "Whisper" else 1]:
        for model in models:
            for processor in parts:
                pipe = make(
                    "automatic-speech-recognition",
                    model=model,
                    tokenizer=processor.tokenizer,
                    feature_extractor=processor.feature_extractor,
                )
                found.append(pipe(sound.copy(), generate_kwargs={"max_new_tokens": 8}))
    assert found == [found[0]] * len(found)
    assert name != "Whisper" or len(found[0]["text"]) > 8
