"""The reference's examples, run with its imports and with ours: both must say the same.

As for Whisper: each example gets the library as `lib`, names on the hub are folders with random
weights, and data sets are lists.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import corpus_asr.models.speech2text as package
from tests.support.checkpoints import tiny_speech2text
from tests.support.references import same
from tests.support.tokenizers import TARGETS, tiny_speech2text_tokenizer

RATE = 16_000


def recording(seconds: float, seed: int) -> dict[str, dict[str, Any]]:
    """A row of a data set: noise whose loudness changes, as that of speech does."""
    draw = np.random.default_rng(seed)
    loudness = np.repeat(draw.uniform(0, 0.3, int(seconds * 10)), RATE // 10)
    array = (draw.standard_normal(len(loudness)) * loudness).astype(np.float32)
    return {"audio": {"array": array, "sampling_rate": RATE}}


DATA_SET = [recording(1.7, 0), recording(1.2, 1)]


class Folders:
    """What the examples call by names of the hub."""

    def __init__(self, root: Path) -> None:
        self.small = root / "s2t-small-librispeech-asr"
        self.multilingual = root / "s2t-medium-mustc-multilingual-st"
        several: dict[str, Any] = {"languages": TARGETS, "lang_codes": "mustc", "tgt_lang": "pt"}
        for folder, settings in ((self.small, {}), (self.multilingual, several)):
            tokens = tiny_speech2text_tokenizer(root / f"{folder.name}-tokens", **settings)
            tiny_speech2text(folder, tokenizer=tokens, max_target_positions=40)
            transformers.Speech2TextFeatureExtractor().save_pretrained(folder)
            # As the published ones, in their config.json.
            generation = transformers.GenerationConfig.from_pretrained(folder)
            generation.max_length, generation.num_beams, generation.early_stopping = 30, 5, True
            generation.save_pretrained(folder)


Example = Callable[[Any, Folders], Any]


def transcribe(lib: Any, folders: Folders) -> Any:
    model = lib.Speech2TextForConditionalGeneration.from_pretrained(folders.small)
    processor = lib.Speech2TextProcessor.from_pretrained(folders.small)
    ds = DATA_SET
    inputs = processor(
        ds[0]["audio"]["array"],
        sampling_rate=ds[0]["audio"]["sampling_rate"],
        return_tensors="pt",
    )
    generated_ids = model.generate(
        inputs["input_features"], attention_mask=inputs["attention_mask"]
    )
    transcription = processor.batch_decode(generated_ids, skip_special_tokens=True)
    return generated_ids, transcription


def translate(lib: Any, folders: Folders) -> Any:
    model = lib.Speech2TextForConditionalGeneration.from_pretrained(folders.multilingual)
    processor = lib.Speech2TextProcessor.from_pretrained(folders.multilingual)
    ds = DATA_SET
    inputs = processor(
        ds[0]["audio"]["array"],
        sampling_rate=ds[0]["audio"]["sampling_rate"],
        return_tensors="pt",
    )
    generated_ids = model.generate(
        inputs["input_features"],
        attention_mask=inputs["attention_mask"],
        forced_bos_token_id=processor.tokenizer.lang_code_to_id["fr"],
    )
    translation = processor.batch_decode(generated_ids, skip_special_tokens=True)
    return generated_ids, translation


def configure(lib: Any, folders: Folders) -> Any:
    configuration = lib.Speech2TextConfig()
    configuration.encoder_layers = configuration.decoder_layers = 1
    model = lib.Speech2TextModel(configuration)
    configuration = model.config
    return configuration.d_model, sorted(model.state_dict())


def last_hidden_state(lib: Any, folders: Folders) -> Any:
    model = lib.Speech2TextModel.from_pretrained(folders.small)
    feature_extractor = lib.AutoFeatureExtractor.from_pretrained(folders.small)
    ds = DATA_SET
    inputs = feature_extractor(
        ds[0]["audio"]["array"],
        sampling_rate=ds[0]["audio"]["sampling_rate"],
        return_tensors="pt",
    )
    input_features = inputs.input_features
    decoder_input_ids = torch.tensor([[1, 1]]) * model.config.decoder_start_token_id
    model.eval()
    last_hidden_state = model(input_features, decoder_input_ids=decoder_input_ids).last_hidden_state
    return last_hidden_state.detach()


def learn(lib: Any, folders: Folders) -> Any:
    model = lib.Speech2TextForConditionalGeneration.from_pretrained(folders.small)
    processor = lib.Speech2TextProcessor.from_pretrained(folders.small)
    ds = DATA_SET
    inputs = processor(
        ds[0]["audio"]["array"],
        sampling_rate=ds[0]["audio"]["sampling_rate"],
        return_tensors="pt",
    )
    inputs["labels"] = processor(text="ba der fi", return_tensors="pt").input_ids
    model.eval()
    loss = model(**inputs).loss
    return loss.detach()


EXAMPLES: tuple[Example, ...] = (transcribe, translate, configure, last_hidden_state, learn)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("hub"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)
def test_examples_say_the_same(example: Example, folders: Folders) -> None:
    same(example(package, folders), example(transformers, folders))
