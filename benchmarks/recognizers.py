"""corpus-asr, openai-whisper, faster-whisper and `transformers`: the same weights, one interface.

All compute in float32 on a CPU. In mode `default` each engine has its own defaults; in mode
`greedy` all decode greedily once, without thresholds, speech detection, previous text or a stop at
repetitions.
"""

import importlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from corpus_asr.benchmark.engines import read_samples
from corpus_asr.config.default_model import ComputeType
from corpus_asr.config.load import decoding_from
from corpus_asr.families.whisper.features import WhisperPartFeatures
from corpus_asr.models.convert.folder import convert
from corpus_asr.report.accuracy.scoring import TimedWord
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
    """An engine with a checkpoint in it."""

    def __init__(self, model: Path, scratch: Path, mode: Mode) -> None: ...

    def __call__(self, file: Path, *, language: str | None, word_times: bool) -> Hypothesis:
        """Transcribe a recording; detects its language where none is given."""


_GREEDY: Mapping[str, Any] = {
    "temperature": 0.0,
    "compression_ratio_threshold": None,
    "no_speech_threshold": None,
}
_GREEDY_OURS: Mapping[str, Any] = {**_GREEDY, "logprob_threshold": None, "stop_loops": False}
_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


class Ours:
    """`Transcriber`."""

    def __init__(
        self,
        model: Path,
        scratch: Path,
        mode: Mode,
        *,
        compute_type: ComputeType = "float32",
        vad_filter: bool = True,
    ) -> None:
        self._transcriber = Transcriber.from_pretrained(
            str(model),
            device="cpu",
            compute_type=compute_type,
            num_threads=torch.get_num_threads(),
            vad_filter=vad_filter and mode != "greedy",
            **(_GREEDY_OURS if mode == "greedy" else {}),
        )

    def __call__(self, file: Path, *, language: str | None, word_times: bool) -> Hypothesis:
        found = self._transcriber.transcribe(
            str(file), language=language, word_timestamps=word_times
        )
        return Hypothesis(
            text=found.text, language=found.language, words=_our_words(found.segments)
        )


def _our_words(segments: Sequence[Segment]) -> tuple[TimedWord, ...]:
    words = (word for segment in segments for word in segment.words or ())
    return tuple(TimedWord(word.word, word.start_s, word.end_s) for word in words)


class OursFilledWithZeros:
    """The engine alone, with a short clip's features filled up to 30 s as openai-whisper does.

    Ours, as `transformers`, fills up its samples: the features of silence are below 0.
    """

    def __init__(self, model: Path, scratch: Path, mode: Mode) -> None:
        options: Mapping[str, Any] = _GREEDY_OURS if mode == "greedy" else {}
        self._options = options
        self._extract = WhisperPartFeatures.from_folder(model)
        self._engine = Engine.from_folder(
            model,
            decoding=decoding_from(options),
            device="cpu",
            dtype="float32",
            num_threads=torch.get_num_threads(),
        )

    def __call__(self, file: Path, *, language: str | None, word_times: bool) -> Hypothesis:
        samples = read_samples(str(file))
        num_frames = len(samples) // HOP_SAMPLES
        part = PartRequest(
            recording_id=file.name, part=0, features=self._extract(samples).values[:num_frames],
            num_samples=len(samples), pad_value=0.0, start_s=0.0, speech=None,
        )  # fmt: skip
        settings = decoding_from(
            {**self._options, "language": language, "word_timestamps": word_times}
        )
        found = self._engine.submit(part, decoding=settings).result()
        text = "".join(segment.text for segment in found.segments).strip()
        return Hypothesis(text=text, language=found.language, words=_our_words(found.segments))


class OpenAI:
    """`whisper.transcribe`, which is greedy by default, unlike its command line."""

    def __init__(self, model: Path, scratch: Path, mode: Mode) -> None:
        self._library = importlib.import_module("whisper")
        warnings.simplefilter("ignore")
        file = scratch / "openai.pt"
        if not file.exists():
            convert(model, file)
        self._model = self._library.load_model(str(file), device="cpu")
        heads = json.loads((model / "generation_config.json").read_text())["alignment_heads"]
        align_with(self._model, heads)
        self._options: Mapping[str, Any] = (
            {**_GREEDY, "logprob_threshold": None, "condition_on_previous_text": False}
            if mode == "greedy"
            else {}
        )

    def __call__(self, file: Path, *, language: str | None, word_times: bool) -> Hypothesis:
        torch.manual_seed(0)
        found = self._library.transcribe(
            self._model,
            read_samples(str(file)),
            language=language,
            word_timestamps=word_times,
            fp16=False,
            **self._options,
        )
        words = (word for segment in found["segments"] for word in segment.get("words", ()))
        return Hypothesis(
            text=found["text"].strip(),
            language=found["language"],
            words=tuple(TimedWord(word["word"], word["start"], word["end"]) for word in words),
        )


class FasterWhisper:
    """`WhisperModel.transcribe`, which has five beams and no speech detection by default."""

    def __init__(self, model: Path, scratch: Path, mode: Mode, *, vad_filter: bool = False) -> None:
        self._seed = importlib.import_module("ctranslate2").set_random_seed
        folder = scratch / "ctranslate2"
        if not folder.exists():
            converters = importlib.import_module("ctranslate2.converters")
            names = ["tokenizer.json", "preprocessor_config.json"]
            converters.TransformersConverter(str(model), copy_files=names).convert(str(folder))
        self._model = importlib.import_module("faster_whisper").WhisperModel(
            str(folder),
            device="cpu",
            compute_type="float32",
            cpu_threads=torch.get_num_threads(),
            local_files_only=True,
        )
        self._options: dict[str, Any] = {"vad_filter": vad_filter}
        if mode == "greedy":
            self._options |= {
                **_GREEDY,
                "log_prob_threshold": None,
                "beam_size": 1,
                "condition_on_previous_text": False,
            }

    def __call__(self, file: Path, *, language: str | None, word_times: bool) -> Hypothesis:
        self._seed(0)
        segments, about = self._model.transcribe(
            read_samples(str(file)), language=language, word_timestamps=word_times, **self._options
        )
        found = list(segments)
        words = (word for segment in found for word in segment.words or ())
        return Hypothesis(
            text="".join(segment.text for segment in found).strip(),
            language=about.language,
            words=tuple(TimedWord(word.word, word.start, word.end) for word in words),
        )


class Transformers:
    """`generate`, with openai-whisper's thresholds by default, as it has none of its own."""

    def __init__(self, model: Path, scratch: Path, mode: Mode) -> None:
        library = importlib.import_module("transformers")
        library.logging.set_verbosity_error()
        warnings.simplefilter("ignore")
        self._model = library.WhisperForConditionalGeneration.from_pretrained(
            model, dtype=torch.float32
        ).eval()
        self._processor = library.WhisperProcessor.from_pretrained(model)
        self._pipeline = library.pipeline(
            "automatic-speech-recognition",
            model=self._model,
            tokenizer=self._processor.tokenizer,
            feature_extractor=self._processor.feature_extractor,
        )
        self._options: dict[str, Any] = (
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

    @torch.inference_mode()
    def __call__(self, file: Path, *, language: str | None, word_times: bool) -> Hypothesis:
        torch.manual_seed(0)
        samples = read_samples(str(file))
        short = len(samples) <= WINDOW_SAMPLES
        inputs = self._processor.feature_extractor(
            samples,
            sampling_rate=SAMPLE_RATE_HZ,
            padding="max_length" if short else "longest",
            truncation=False,
            return_attention_mask=True,
            return_tensors="pt",
        )
        options = dict(self._options)
        if self._model.generation_config.is_multilingual:
            if language is None:
                language = self._language(inputs.input_features[..., :WINDOW_FRAMES])
            options |= {"language": language, "task": "transcribe"}
        tokens = self._model.generate(**inputs, return_timestamps=True, **options)
        text: str = self._processor.batch_decode(tokens, skip_special_tokens=True)[0]
        words = self._words(samples, options) if word_times else ()
        return Hypothesis(text=text.strip(), language=language, words=words)

    def _words(self, samples: np.ndarray, options: dict[str, Any]) -> tuple[TimedWord, ...]:
        # It times the words of short clips without timestamp tokens, which gives other texts.
        found = self._pipeline(samples, return_timestamps="word", generate_kwargs=options)
        return tuple(
            TimedWord(chunk["text"], *map(float, chunk["timestamp"]))
            for chunk in found["chunks"]
            if None not in chunk["timestamp"]
        )

    def _language(self, features: torch.Tensor) -> str:
        token = int(self._model.detect_language(input_features=features)[0])
        name: str = self._processor.tokenizer.convert_ids_to_tokens(token)
        return name.strip("<|>")


RECOGNIZERS: Mapping[str, type[Recognizer]] = {
    "openai-whisper": OpenAI,
    "transformers": Transformers,
    "faster-whisper": FasterWhisper,
    "corpus-asr": Ours,
    "corpus-asr, zeros": OursFilledWithZeros,
}


def manifest(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the items with a reference text; `file` is the path, `code` Whisper's language."""
    for item in read_manifest(folder):
        if item.get("text"):
            code = item.get("whisper_language", item["language"])
            yield item | {"file": folder / item["path"], "code": code}
