"""The reference's examples, run with its imports and with ours: both must say the same.

Each example gets the library as `lib`: `transformers`, or the package that stands in for it. Names
on the hub are folders with random weights, data sets are lists, and GPUs are the CPU.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from corpus_asr.models import speech2text, whisper
from tests.support.checkpoints import tiny_speech2text, tiny_whisper
from tests.support.references import same
from tests.support.tokenizers import TARGETS, tiny_speech2text_tokenizer, tiny_tokenizer

RATE = 16_000
WINDOW_S = 2
CLASSES = {0: "Afrikaans", 1: "Welsh", 2: "Zulu"}


def recording(seconds: float, seed: int) -> dict[str, dict[str, Any]]:
    """A row of a data set: noise whose loudness and colour change, as those of speech do."""
    rng = np.random.default_rng(seed)
    noise = np.cumsum(rng.standard_normal(int(seconds * RATE)))
    noise -= np.convolve(noise, np.ones(400) / 400, mode="same")
    loudness = np.repeat(rng.uniform(0, 1, int(seconds * 10) + 1), RATE // 10)[: len(noise)]
    array = (noise / np.abs(noise).max() * loudness).astype(np.float32)
    return {"audio": {"array": array, "sampling_rate": RATE}}


DATA_SET = [recording(1.7, 0), recording(1.2, 1)]
LONG = [recording(5.3, 2), recording(3.1, 3)]


class Folders:
    """What the examples call by names of the hub."""

    def __init__(self, root: Path) -> None:
        sizes: dict[str, Any] = {"d_model": 32, "layers": 2, "heads": 2, "spread": 0.25}
        sizes |= {"max_source_positions": 50 * WINDOW_S, "max_target_positions": 40}
        for name, multilingual in (("whisper-large-v2", True), ("whisper-tiny.en", False)):
            tokens = root / f"{name}-tokens"
            tiny_tokenizer(tokens, multilingual)
            tiny_whisper(root / name, tokenizer=tokens, **sizes)
        tokens = root / "whisper-large-v2-tokens"
        tiny_whisper(root / "distil-large-v2", tokenizer=tokens, seed=1, **sizes)
        extractor = transformers.WhisperFeatureExtractor(chunk_length=WINDOW_S)
        names = ("whisper-large-v2", "whisper-tiny.en", "distil-large-v2", "whisper-lang-id")
        for name in names:
            extractor.save_pretrained(root / name)
        config = transformers.WhisperConfig.from_pretrained(root / names[0], id2label=CLASSES)
        torch.manual_seed(0)
        transformers.WhisperForAudioClassification(config).save_pretrained(root / names[3])
        self.multilingual, self.english, self.draft, self.classifier = (root / n for n in names)
        self.small = root / "s2t-small-librispeech-asr"
        self.translating = root / "s2t-medium-mustc-multilingual-st"
        several: dict[str, Any] = {"languages": TARGETS, "lang_codes": "mustc", "tgt_lang": "pt"}
        for folder, settings in ((self.small, {}), (self.translating, several)):
            tokens = tiny_speech2text_tokenizer(root / f"{folder.name}-tokens", **settings)
            tiny_speech2text(folder, tokenizer=tokens, max_target_positions=40)
            transformers.Speech2TextFeatureExtractor().save_pretrained(folder)
            # As the published ones, in their config.json.
            generation = transformers.GenerationConfig.from_pretrained(folder)
            generation.max_length, generation.num_beams, generation.early_stopping = 30, 5, True
            generation.save_pretrained(folder)


Example = Callable[[Any, Folders], Any]


def transcribe_by_pipeline(lib: Any, folders: Folders) -> Any:
    pipe = lib.pipeline(
        task="automatic-speech-recognition",
        model=str(folders.english),
        dtype=torch.float32,
        device="cpu",
    )
    return pipe(DATA_SET[0]["audio"]["array"])


def transcribe_by_classes(lib: Any, folders: Folders) -> Any:
    processor = lib.AutoProcessor.from_pretrained(folders.multilingual)
    model = lib.WhisperForConditionalGeneration.from_pretrained(
        folders.multilingual,
        dtype=torch.float32,
        attn_implementation="sdpa",
        **({"device_map": "auto"} if lib is whisper else {}),  # there it needs accelerate
    )
    sample = DATA_SET[0]["audio"]
    input_features = processor(
        sample["array"], sampling_rate=sample["sampling_rate"], return_tensors="pt"
    ).input_features
    input_features = input_features.to(model.device, dtype=torch.float32)
    predicted_ids = model.generate(input_features, cache_implementation="static")
    return predicted_ids, processor.batch_decode(predicted_ids, skip_special_tokens=True)[0]


def transcribe_a_short_recording(lib: Any, folders: Folders) -> Any:
    processor = lib.WhisperProcessor.from_pretrained(folders.english)
    model = lib.WhisperForConditionalGeneration.from_pretrained(folders.english)
    sample = DATA_SET[0]["audio"]
    inputs = processor(sample["array"], return_tensors="pt", sampling_rate=RATE)
    # transformers 5.23 refuses the name that its own example has.
    name = "inputs" if lib is whisper else "input_features"
    generated_ids = model.generate(**{name: inputs.input_features})
    return processor.batch_decode(generated_ids, skip_special_tokens=True)[0]


def change_the_prefix(lib: Any, folders: Folders) -> Any:
    found = []
    for made in (lib.WhisperTokenizer, lib.WhisperTokenizerFast):
        tokenizer = made.from_pretrained(folders.multilingual, language="spanish")
        found.append(tokenizer("hola").input_ids)
        tokenizer.set_prefix_tokens(language="french")
        found.append(tokenizer("bonjour").input_ids)
    return found


def run_the_bare_model(lib: Any, folders: Folders) -> Any:
    model = lib.WhisperModel.from_pretrained(folders.multilingual)
    feature_extractor = lib.AutoFeatureExtractor.from_pretrained(folders.multilingual)
    sample = DATA_SET[0]["audio"]["array"]
    inputs = feature_extractor(sample, return_tensors="pt", sampling_rate=RATE)
    decoder_input_ids = torch.tensor([[1, 1]]) * model.config.decoder_start_token_id
    outputs = model(inputs.input_features, decoder_input_ids=decoder_input_ids)
    assert list(outputs.last_hidden_state.shape) == [1, 2, 32]
    return outputs.last_hidden_state.detach()


def transcribe_long_recordings(lib: Any, folders: Folders) -> Any:
    processor = lib.AutoProcessor.from_pretrained(folders.english)
    model = lib.WhisperForConditionalGeneration.from_pretrained(folders.english)
    audio = [row["audio"]["array"] for row in LONG]
    inputs = processor(
        audio,
        return_tensors="pt",
        truncation=False,
        padding="longest",
        return_attention_mask=True,
        sampling_rate=16_000,
    )
    inputs = inputs.to("cpu", torch.float32)
    generated_ids = model.generate(**inputs, return_timestamps=True)
    transcribed: list[list[float]] = []

    def monitor_progress(progress: torch.Tensor) -> None:
        row = progress[torch.argmax(progress[:, 1])]
        transcribed.append(row.detach().cpu().tolist())

    again = model.generate(**inputs, return_timestamps=True, monitor_progress=monitor_progress)
    assert torch.equal(again, generated_ids)
    # Rows of a batch do not wait for one another here, so only the ends of a report are the same.
    ends = transcribed[0][1], transcribed[-1][1]
    return ends, processor.batch_decode(generated_ids, skip_special_tokens=True)


def transcribe_with_a_draft(lib: Any, folders: Folders) -> Any:
    processor = lib.WhisperProcessor.from_pretrained(folders.multilingual)
    model = lib.WhisperForConditionalGeneration.from_pretrained(folders.multilingual)
    assistant_model = lib.WhisperForCausalLM.from_pretrained(folders.draft)
    sample = DATA_SET[1]["audio"]
    input_features = processor(
        sample["array"], sampling_rate=sample["sampling_rate"], return_tensors="pt"
    ).input_features
    predicted_ids = model.generate(input_features, assistant_model=assistant_model)
    return processor.batch_decode(predicted_ids, skip_special_tokens=True)[0]


def classify(lib: Any, folders: Folders) -> Any:
    feature_extractor = lib.AutoFeatureExtractor.from_pretrained(folders.classifier)
    model = lib.WhisperForAudioClassification.from_pretrained(folders.classifier)
    sample = next(iter(DATA_SET))
    inputs = feature_extractor(
        sample["audio"]["array"],
        sampling_rate=sample["audio"]["sampling_rate"],
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(inputs.input_features).logits
    return logits, model.config.id2label[torch.argmax(logits).item()]


def speech2text_inputs(processor: Any) -> Any:
    audio = DATA_SET[0]["audio"]
    return processor(audio["array"], sampling_rate=audio["sampling_rate"], return_tensors="pt")


def transcribe_by_speech2text(lib: Any, folders: Folders) -> Any:
    model = lib.Speech2TextForConditionalGeneration.from_pretrained(folders.small)
    processor = lib.Speech2TextProcessor.from_pretrained(folders.small)
    inputs = speech2text_inputs(processor)
    generated_ids = model.generate(
        inputs["input_features"], attention_mask=inputs["attention_mask"]
    )
    transcription = processor.batch_decode(generated_ids, skip_special_tokens=True)
    return generated_ids, transcription


def translate(lib: Any, folders: Folders) -> Any:
    model = lib.Speech2TextForConditionalGeneration.from_pretrained(folders.translating)
    processor = lib.Speech2TextProcessor.from_pretrained(folders.translating)
    inputs = speech2text_inputs(processor)
    generated_ids = model.generate(
        inputs["input_features"],
        attention_mask=inputs["attention_mask"],
        forced_bos_token_id=processor.tokenizer.lang_code_to_id["fr"],
    )
    translation = processor.batch_decode(generated_ids, skip_special_tokens=True)
    return generated_ids, translation


def run_the_bare_speech2text(lib: Any, folders: Folders) -> Any:
    model = lib.Speech2TextModel.from_pretrained(folders.small)
    feature_extractor = lib.AutoFeatureExtractor.from_pretrained(folders.small)
    inputs = speech2text_inputs(feature_extractor)
    input_features = inputs.input_features
    decoder_input_ids = torch.tensor([[1, 1]]) * model.config.decoder_start_token_id
    model.eval()
    last_hidden_state = model(input_features, decoder_input_ids=decoder_input_ids).last_hidden_state
    return last_hidden_state.detach()


def train_speech2text(lib: Any, folders: Folders) -> Any:
    model = lib.Speech2TextForConditionalGeneration.from_pretrained(folders.small)
    processor = lib.Speech2TextProcessor.from_pretrained(folders.small)
    inputs = speech2text_inputs(processor)
    inputs["labels"] = processor(text="ba der fi", return_tensors="pt").input_ids
    model.eval()
    loss = model(**inputs).loss
    return loss.detach()


WHISPER: tuple[Example, ...] = (
    transcribe_by_pipeline,
    transcribe_by_classes,
    transcribe_a_short_recording,
    change_the_prefix,
    run_the_bare_model,
    transcribe_long_recordings,
    transcribe_with_a_draft,
    classify,
)
SPEECH2TEXT: tuple[Example, ...] = (
    transcribe_by_speech2text,
    translate,
    run_the_bare_speech2text,
    train_speech2text,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("hub"))


@pytest.mark.long
@pytest.mark.parametrize("example", [*WHISPER, *SPEECH2TEXT])
@pytest.mark.filterwarnings("ignore")  # what transformers warns of is its own
def test_an_example_gives_what_it_gives_with_the_other_import(
    example: Example, folders: Folders
) -> None:
    package = whisper if example in WHISPER else speech2text
    same(example(package, folders), example(transformers, folders), where=str(example))
