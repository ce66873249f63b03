"""The engines beside this one: faster-whisper with CTranslate2, `transformers`, openai-whisper.

Torch is loaded by those that compute with it: the memory of the others must not hold it.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from corpus_asr.benchmark.engines import (
    RecordingsRunner,
    StageClock,
    WindowsRunner,
    batches,
    converted,
    read_samples,
)
from corpus_asr.benchmark.orders import Order
from corpus_asr.errors import ConfigError
from corpus_asr.units import SAMPLE_RATE_HZ, WINDOW_SAMPLES

_Samples = Float32[np.ndarray, " sample"]
_OPENAI_DTYPES = ("float32", "float16")


class FasterWhisper(RecordingsRunner):
    """Times `WhisperModel.transcribe` from files to text, file after file."""

    # Decoding the audio, finding speech, features: whatever is not the network.
    remainder = "features"

    def __init__(self, order: Order) -> None:
        # CTranslate2 returns when its work is done, on GPUs too: the host's clock will do.
        super().__init__(order, cuda=False)
        folder = converted("ctranslate2", order)
        self._library = _import_without_torch("faster_whisper")
        device, index = _device(order)
        self._model = self._library.WhisperModel(
            str(folder),
            device=device,
            device_index=index,
            compute_type=order.dtype,
            cpu_threads=order.threads,
            local_files_only=True,
        )
        self._model.model = _Clocked(
            self._model.model, self.clock, {"encode": "encode", "generate": "decode"}
        )

    def texts(self) -> list[str]:
        """Transcribe every file."""
        return [self._text(path) for path in self.order.audio]

    def _text(self, path: str) -> str:
        segments, _ = self._transcribe(
            path,
            language=self.order.language,
            beam_size=self.order.beams,
            temperature=0.0,
            compression_ratio_threshold=None,
            log_prob_threshold=None,
            no_speech_threshold=None,
            condition_on_previous_text=False,
            without_timestamps=False,
            vad_filter=True,
        )
        return " ".join(segment.text.strip() for segment in segments)

    def _transcribe(self, path: str, **options: Any) -> Any:
        return self._model.transcribe(path, **options)


class BatchedFasterWhisper(FasterWhisper):
    """Times `BatchedInferencePipeline.transcribe`, which batches the chunks of one file."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self._pipeline = self._library.BatchedInferencePipeline(self._model)

    def _transcribe(self, path: str, **options: Any) -> Any:
        return self._pipeline.transcribe(path, batch_size=self.order.batch, **options)


class CTranslate2Windows(WindowsRunner):
    """Times CTranslate2's encoder, and `Whisper.generate` on what it encoded."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        folder = converted("ctranslate2", order)
        self._library = _import_without_torch("ctranslate2")
        device, index = _device(order)
        self._model = self._library.models.Whisper(
            str(folder),
            device=device,
            device_index=index,
            compute_type=order.dtype,
            intra_threads=order.threads,
            inter_threads=1,
        )

    def encode(self) -> Any:
        """Encode all windows."""
        return self._model.encode(self._library.StorageView.from_array(self.features))

    def decode(self, encoded: Any, num_tokens: int) -> list[int]:
        """Decode so many tokens of each window."""
        results = self._model.generate(
            encoded,
            [self.prompt] * self.order.batch,
            beam_size=self.order.beams,
            # It writes as many as half of this, and as the prompt but for its last token leaves.
            max_length=max(2 * num_tokens, num_tokens + len(self.prompt) - 1),
            suppress_blank=False,
            suppress_tokens=[self.end],
        )
        return [len(result.sequences_ids[0]) for result in results]


class _Clocked:
    """An object some of whose methods are timed; all else is its own."""

    def __init__(self, inner: Any, clock: StageClock, stages: dict[str, str]) -> None:
        self._inner = inner
        for name, stage in stages.items():
            setattr(self, name, clock.watch(stage, getattr(inner, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _import_without_torch(name: str) -> Any:
    # CTranslate2 loads torch wherever it finds it, but needs it in its converter only. Users need
    # not have it: its memory is not theirs.
    sys.modules["torch"] = None  # type: ignore[assignment]
    return importlib.import_module(name)


def _device(order: Order) -> tuple[str, int]:
    kind, _, index = order.device.partition(":")
    return kind, int(index or 0)


class Transformers(RecordingsRunner):
    """Times `WhisperForConditionalGeneration.generate` from files to text.

    `sequential` is its long-form algorithm over a batch of recordings of about the same length;
    `chunked` cuts every 30 s and decodes the windows in batches. Files are decoded by this
    package, as `transformers` leaves that to others; that time is counted with its features.
    """

    def __init__(self, order: Order) -> None:
        super().__init__(order, cuda=order.device.startswith("cuda"))
        library, self._model = _load_transformers(order)
        self._extract = library.WhisperFeatureExtractor.from_pretrained(order.model)
        self._tokenizer = library.AutoTokenizer.from_pretrained(order.model)
        encoder = self._model.get_encoder()
        encoder.forward = self.clock.watch("encode", encoder.forward)
        self._options: dict[str, Any] = {
            "num_beams": order.beams,
            "do_sample": False,
            "temperature": 0.0,
            "return_timestamps": True,
            "condition_on_prev_tokens": False,
        }
        if self._model.generation_config.is_multilingual:
            self._options |= {"language": order.language, "task": "transcribe"}

    def texts(self) -> list[str]:
        """Read, cut, extract, generate and turn into text."""
        with self.clock.stage("features"):
            recordings = [read_samples(path) for path in self.order.audio]
        cut = self._chunked if self.order.mode == "chunked" else self._sequential
        return cut(recordings)

    def _chunked(self, recordings: Sequence[_Samples]) -> list[str]:
        windows = [
            (number, samples[start : start + WINDOW_SAMPLES])
            for number, samples in enumerate(recordings)
            for start in range(0, len(samples), WINDOW_SAMPLES)
        ]
        found: list[list[str]] = [[] for _ in recordings]
        for batch in batches(windows, self.order.batch):
            texts = self._texts([samples for _, samples in batch], padding="max_length")
            for (number, _), text in zip(batch, texts, strict=True):
                found[number].append(text.strip())
        return [" ".join(texts) for texts in found]

    def _sequential(self, recordings: Sequence[_Samples]) -> list[str]:
        # Beside recordings of about its length, one is padded least.
        by_length = sorted(range(len(recordings)), key=lambda number: -len(recordings[number]))
        found = [""] * len(recordings)
        for numbers in batches(by_length, self.order.batch):
            batch = [recordings[number] for number in numbers]
            short = len(batch[0]) <= WINDOW_SAMPLES
            texts = self._texts(batch, padding="max_length" if short else "longest")
            for number, text in zip(numbers, texts, strict=True):
                found[number] = text.strip()
        return found

    def _texts(self, batch: Sequence[_Samples], *, padding: str) -> list[str]:
        with self.clock.stage("features"):
            inputs = self._extract(
                list(batch),
                sampling_rate=SAMPLE_RATE_HZ,
                padding=padding,
                truncation=padding == "max_length",
                return_attention_mask=True,
                return_tensors="pt",
            ).to(self._model.device)
            features = inputs.input_features.to(self._model.dtype)
        tokens = self._model.generate(
            features, attention_mask=inputs.attention_mask, **self._options
        )
        texts: list[str] = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts


class TransformersWindows(WindowsRunner):
    """Times the encoder, and the search that `generate` is built on."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self._torch = importlib.import_module("torch")
        self._library, self._model = _load_transformers(order)
        self._outputs = importlib.import_module("transformers.modeling_outputs").BaseModelOutput

    def encode(self) -> Any:
        """Encode all windows."""
        features = self._torch.from_numpy(self.features)
        with self._torch.inference_mode():
            encoder = self._model.get_encoder()
            return encoder(features.to(self._model.device, self._model.dtype)).last_hidden_state

    def decode(self, encoded: Any, num_tokens: int) -> list[int]:
        """Decode so many tokens of each window."""
        prompt = self._torch.tensor([self.prompt] * len(encoded), device=self._model.device)
        settings = self._library.GenerationConfig(
            max_new_tokens=num_tokens,
            num_beams=self.order.beams,
            do_sample=False,
            suppress_tokens=[self.end],
            decoder_start_token_id=self.prompt[0],
            bos_token_id=self.end,
            eos_token_id=self.end,
            pad_token_id=self.end,
        )
        with self._torch.inference_mode():
            # Whisper's own `generate` cuts audio and reads timestamps; this is what it calls.
            tokens = self._library.GenerationMixin.generate(
                self._model,
                encoder_outputs=self._outputs(last_hidden_state=encoded),
                decoder_input_ids=prompt,
                generation_config=settings,
            )
        return [tokens.shape[1] - prompt.shape[1]] * len(tokens)


def _load_transformers(order: Order) -> tuple[Any, Any]:
    """Return the library, and the network ready for inference."""
    warnings.simplefilter("ignore")
    torch, library = (importlib.import_module(name) for name in ("torch", "transformers"))
    from corpus_asr.families.loading import resolve_dtype

    library.logging.set_verbosity_error()
    torch.set_num_threads(order.threads)
    device = torch.device(order.device)
    model = library.WhisperForConditionalGeneration.from_pretrained(
        order.model, dtype=resolve_dtype(order.dtype, device)
    )
    return library, model.eval().to(device)


class OpenAI(RecordingsRunner):
    """Times `whisper.transcribe` from files to text; it knows one window at a time only."""

    def __init__(self, order: Order) -> None:
        super().__init__(order, cuda=order.device.startswith("cuda"))
        self._library, self._model = _load_openai(order)
        encoder = self._model.encoder
        encoder.forward = self.clock.watch("encode", encoder.forward)

    def texts(self) -> list[str]:
        """Transcribe every file; features are computed within and counted as decoding."""
        with self.clock.stage("features"):
            recordings = [read_samples(path) for path in self.order.audio]
        return [
            self._library.transcribe(
                self._model,
                samples,
                language=self.order.language,
                beam_size=self.order.beams if self.order.beams > 1 else None,
                temperature=0.0,
                compression_ratio_threshold=None,
                logprob_threshold=None,
                no_speech_threshold=None,
                condition_on_previous_text=False,
                fp16=self.order.dtype == "float16",
            )["text"].strip()
            for samples in recordings
        ]


class OpenAIWindows(WindowsRunner):
    """Times the encoder, and `whisper.decode` on what it encoded."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self._torch = importlib.import_module("torch")
        self._library, self._model = _load_openai(order)
        self._half = order.dtype == "float16"
        if self._half:
            self._model.half()

    def encode(self) -> Any:
        """Encode all windows."""
        features = self._torch.from_numpy(self.features).to(self.order.device)
        with self._torch.inference_mode():
            return self._model.encoder(features.half() if self._half else features)

    def decode(self, encoded: Any, num_tokens: int) -> list[int]:
        """Decode so many tokens of each window."""
        options = self._library.DecodingOptions(
            language="en",
            sample_len=num_tokens,
            beam_size=self.order.beams if self.order.beams > 1 else None,
            suppress_tokens=[self.end],
            without_timestamps=True,
            fp16=self._half,
        )
        # With beams it decodes a single window only, as its `transcribe` does at any time.
        groups = [encoded] if self.order.beams == 1 else encoded.split(1)
        return [
            len(result.tokens)
            for group in groups
            for result in self._library.decode(self._model, group, options)
        ]


def _load_openai(order: Order) -> tuple[Any, Any]:
    """Return the library and the network."""
    if order.dtype not in _OPENAI_DTYPES:
        raise ConfigError(
            f"loading openai-whisper in {order.dtype}: expected one of {', '.join(_OPENAI_DTYPES)}"
        )
    warnings.simplefilter("ignore")
    importlib.import_module("torch").set_num_threads(order.threads)
    file = converted("openai", order)
    library = importlib.import_module("whisper")
    return library, library.load_model(str(file), device=order.device)
