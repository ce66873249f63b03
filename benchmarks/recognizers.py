"""corpus-asr, openai-whisper, faster-whisper and `transformers`: the same weights, one interface.

All compute in float32 on a CPU. In mode `default` each engine has its own defaults; in mode
`greedy` all decode greedily once, without thresholds, speech detection, previous text or a stop at
repetitions.
"""

import importlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from benchmarks.worker import read_samples
from corpus_asr.config.decoding import ComputeType
from corpus_asr.config.options import options_from
from corpus_asr.families.whisper.features import WhisperPartFeatures
from corpus_asr.models.convert import convert
from corpus_asr.report.scoring import TimedWord
from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.segments import Segment
from corpus_asr.transcription.engine import Engine
from corpus_asr.transcription.windows import PartRequest
from corpus_asr.units import HOP_SAMPLES, SAMPLE_RATE_HZ, WINDOW_FRAMES, WINDOW_SAMPLES
from tests.support.audio import read_manifest
from tests.support.references import align_with

Mode = Literal["default", "greedy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """The output of an engine for one recording."""

    text: str
    language: str | None
    words: tuple[TimedWord, ...] = ()


class Recognizer(Protocol):
    """A loaded engine."""

    def __call__(self, file: Path, *, language: str | None, word_times: bool) -> Hypothesis:
        """Transcribe a recording; detects its language where none is given."""


class Loader(Protocol):
    """Loads an engine with a checkpoint; `scratch` is for converted ones."""

    def __call__(self, model: Path, scratch: Path, mode: Mode) -> Recognizer: ...


_GREEDY: Mapping[str, Any] = {
    "temperature": 0.0,
    "compression_ratio_threshold": None,
    "no_speech_threshold": None,
}
_GREEDY_OURS: Mapping[str, Any] = {
    **_GREEDY, "logprob_threshold": None, "stop_loops": False, "beam_size": 1
}  # fmt: skip
_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def ours(
    model: Path, scratch: Path, mode: Mode, *,
    compute_type: ComputeType = "float32", vad_filter: bool = True,
) -> Recognizer:  # fmt: skip
    """Load `Transcriber`."""
    transcriber = Transcriber.from_pretrained(
        str(model),
        device="cpu",
        compute_type=compute_type,
        num_threads=torch.get_num_threads(),
        vad_filter=vad_filter and mode != "greedy",
        **(_GREEDY_OURS if mode == "greedy" else {}),
    )

    def recognize(file: Path, *, language: str | None, word_times: bool) -> Hypothesis:
        found = transcriber.transcribe(str(file), language=language, word_timestamps=word_times)
        return _hypothesis(found.text, found.language, found.segments)

    return recognize


def _hypothesis(text: str, language: str | None, segments: Sequence[Segment]) -> Hypothesis:
    words = (word for segment in segments for word in segment.words or ())
    timed = tuple(TimedWord(word.word, word.start_s, word.end_s) for word in words)
    return Hypothesis(text=text.strip(), language=language, words=timed)


def ours_filled_with_zeros(model: Path, scratch: Path, mode: Mode) -> Recognizer:
    """Load the engine alone; a short clip's features are filled up to 30 s as openai-whisper does.

    Ours, as `transformers`, fills up its samples: the features of silence are below 0.
    """
    options: Mapping[str, Any] = _GREEDY_OURS if mode == "greedy" else {}
    extract = WhisperPartFeatures.from_folder(model)
    engine = Engine.from_folder(
        model,
        decoding=options_from(options).decoding,
        device="cpu",
        dtype="float32",
        num_threads=torch.get_num_threads(),
    )

    def recognize(file: Path, *, language: str | None, word_times: bool) -> Hypothesis:
        samples = read_samples(str(file))
        part = PartRequest(
            recording_id=file.name, part=0, num_samples=len(samples), pad_value=0.0, start_s=0.0,
            features=extract(samples).values[: len(samples) // HOP_SAMPLES], speech=None,
        )  # fmt: skip
        wanted = {**options, "language": language, "word_timestamps": word_times}
        settings = options_from(wanted).decoding
        found = engine.submit(replace(part, decoding=settings)).result()
        text = "".join(segment.text for segment in found.segments)
        return _hypothesis(text, found.language, found.segments)

    return recognize


def openai(model: Path, scratch: Path, mode: Mode) -> Recognizer:
    """Load `whisper.transcribe`, which is greedy by default, unlike its command line."""
    library = importlib.import_module("whisper")
    warnings.simplefilter("ignore")
    file = scratch / "openai.pt"
    if not file.exists():
        convert(model, file)
    loaded = library.load_model(str(file), device="cpu")
    heads = json.loads((model / "generation_config.json").read_text())["alignment_heads"]
    align_with(loaded, heads)
    options: Mapping[str, Any] = (
        {**_GREEDY, "logprob_threshold": None, "condition_on_previous_text": False}
        if mode == "greedy"
        else {}
    )

    def recognize(file: Path, *, language: str | None, word_times: bool) -> Hypothesis:
        torch.manual_seed(0)
        samples = read_samples(str(file))
        given = {"language": language, "word_timestamps": word_times, "fp16": False, **options}
        found = library.transcribe(loaded, samples, **given)
        words = (word for segment in found["segments"] for word in segment.get("words", ()))
        return Hypothesis(
            text=found["text"].strip(),
            language=found["language"],
            words=tuple(TimedWord(word["word"], word["start"], word["end"]) for word in words),
        )

    return recognize


def faster_whisper(
    model: Path, scratch: Path, mode: Mode, *, vad_filter: bool = False
) -> Recognizer:
    """Load `WhisperModel`, which has five beams and no speech detection by default."""
    set_seed = importlib.import_module("ctranslate2").set_random_seed
    folder = scratch / "ctranslate2"
    if not folder.exists():
        converters = importlib.import_module("ctranslate2.converters")
        names = ["tokenizer.json", "preprocessor_config.json"]
        converters.TransformersConverter(str(model), copy_files=names).convert(str(folder))
    loaded = importlib.import_module("faster_whisper").WhisperModel(
        str(folder),
        device="cpu",
        compute_type="float32",
        cpu_threads=torch.get_num_threads(),
        local_files_only=True,
    )
    options: dict[str, Any] = {"vad_filter": vad_filter}
    if mode == "greedy":
        options |= {**_GREEDY, "log_prob_threshold": None, "beam_size": 1}
        options |= {"condition_on_previous_text": False}

    def recognize(file: Path, *, language: str | None, word_times: bool) -> Hypothesis:
        set_seed(0)
        samples = read_samples(str(file))
        segments, about = loaded.transcribe(
            samples, language=language, word_timestamps=word_times, **options
        )
        found = list(segments)
        words = (word for segment in found for word in segment.words or ())
        return Hypothesis(
            text="".join(segment.text for segment in found).strip(),
            language=about.language,
            words=tuple(TimedWord(word.word, word.start, word.end) for word in words),
        )

    return recognize


def transformers(model: Path, scratch: Path, mode: Mode) -> Recognizer:
    """Load `generate`, with openai-whisper's thresholds by default, as it has none of its own."""
    library = importlib.import_module("transformers")
    library.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    loaded = library.WhisperForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    loaded.eval()
    processor = library.WhisperProcessor.from_pretrained(model)
    pipeline = library.pipeline(
        "automatic-speech-recognition",
        model=loaded,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
    )
    usual: dict[str, Any] = (
        {"temperature": 0.0, "do_sample": False, "condition_on_prev_tokens": False}
        if mode == "greedy"
        else {
            "temperature": _TEMPERATURES,
            "logprob_threshold": -1.0,
            # Of token ids, not of text as openai-whisper's 2.4.
            "compression_ratio_threshold": 1.35,
            "no_speech_threshold": 0.6,
            "condition_on_prev_tokens": True,
        }
    )

    def language_of(features: torch.Tensor) -> str:
        token = int(loaded.detect_language(input_features=features)[0])
        name: str = processor.tokenizer.convert_ids_to_tokens(token)
        return name.strip("<|>")

    @torch.inference_mode()
    def recognize(file: Path, *, language: str | None, word_times: bool) -> Hypothesis:
        torch.manual_seed(0)
        samples = read_samples(str(file))
        inputs = processor.feature_extractor(
            samples,
            sampling_rate=SAMPLE_RATE_HZ,
            padding="max_length" if len(samples) <= WINDOW_SAMPLES else "longest",
            truncation=False,
            return_attention_mask=True,
            return_tensors="pt",
        )
        options = dict(usual)
        if loaded.generation_config.is_multilingual:
            language = language or language_of(inputs.input_features[..., :WINDOW_FRAMES])
            options |= {"language": language, "task": "transcribe"}
        tokens = loaded.generate(**inputs, return_timestamps=True, **options)
        text: str = processor.batch_decode(tokens, skip_special_tokens=True)[0]
        chunks: list[dict[str, Any]] = []
        if word_times:
            # It times the words of short clips without timestamp tokens, which gives other texts.
            found = pipeline(samples, return_timestamps="word", generate_kwargs=options)
            chunks = [chunk for chunk in found["chunks"] if None not in chunk["timestamp"]]
        words = tuple(TimedWord(each["text"], *map(float, each["timestamp"])) for each in chunks)
        return Hypothesis(text=text.strip(), language=language, words=words)

    return recognize


RECOGNIZERS: Mapping[str, Loader] = {
    "openai-whisper": openai,
    "transformers": transformers,
    "faster-whisper": faster_whisper,
    "corpus-asr": ours,
    "corpus-asr, zeros": ours_filled_with_zeros,
}


def manifest(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the items with a reference text; `file` is the path, `code` Whisper's language."""
    for item in read_manifest(folder):
        if item.get("text"):
            code = item.get("whisper_language", item["language"])
            yield item | {"file": folder / item["path"], "code": code}
