"""`transformers`: batched `generate`, in its long form or on windows of 30 s, and its two towers.

In: an `Order`. Out: seconds and texts. Files are decoded by this package, as `transformers` leaves
that to others; that time is counted with its features.
"""

import importlib
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from corpus_asr.benchmark.clock import StageClock
from corpus_asr.benchmark.engines.samples import batches, read_samples
from corpus_asr.benchmark.engines.windows import WindowTimer
from corpus_asr.benchmark.orders import Order
from corpus_asr.families.device import resolve_dtype
from corpus_asr.units import SAMPLE_RATE_HZ, WINDOW_SAMPLES

_Samples = Float32[np.ndarray, " sample"]


class Transcribing:
    """Measures `WhisperForConditionalGeneration.generate` from files to text.

    `sequential` is its long-form algorithm over a batch of recordings of about the same length;
    `chunked` cuts every 30 s and decodes the windows in batches.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        library, self._model, self._dtype = _load(order)
        self._device = torch.device(order.device)
        self._extract = library.WhisperFeatureExtractor.from_pretrained(order.model)
        self._tokenizer = library.AutoTokenizer.from_pretrained(order.model)
        self._clock = StageClock(cuda=self._device.type == "cuda")
        encoder = self._model.get_encoder()
        encoder.forward = self._clock.watch("encode", encoder.forward)
        self._options: dict[str, Any] = {
            "num_beams": order.beams,
            "do_sample": False,
            "temperature": 0.0,
            "return_timestamps": True,
            "condition_on_prev_tokens": False,
        }
        if self._model.generation_config.is_multilingual:
            self._options |= {"language": order.language, "task": "transcribe"}

    def run(self) -> dict[str, Any]:
        """Read, cut, extract, generate and turn into text."""
        started = time.perf_counter()
        with self._clock.stage("features"):
            recordings = [read_samples(path) for path in self._order.audio]
        if self._order.mode == "chunked":
            texts = self._chunked(recordings)
        else:
            texts = self._sequential(recordings)
        total_s = time.perf_counter() - started
        stages = self._clock.take()
        stages["decode"] = total_s - sum(stages.values())
        return {"total_s": total_s, "stages": stages, "texts": texts}

    def _chunked(self, recordings: Sequence[_Samples]) -> list[str]:
        windows = [
            (number, samples[start : start + WINDOW_SAMPLES])
            for number, samples in enumerate(recordings)
            for start in range(0, len(samples), WINDOW_SAMPLES)
        ]
        found: list[list[str]] = [[] for _ in recordings]
        for batch in batches(windows, self._order.batch):
            texts = self._texts([samples for _, samples in batch], padding="max_length")
            for (number, _), text in zip(batch, texts, strict=True):
                found[number].append(text)
        return [" ".join(text.strip() for text in one) for one in found]

    def _sequential(self, recordings: Sequence[_Samples]) -> list[str]:
        # Side by side with its likes a recording is padded least.
        order = sorted(range(len(recordings)), key=lambda number: -len(recordings[number]))
        found = [""] * len(recordings)
        for numbers in batches(order, self._order.batch):
            batch = [recordings[number] for number in numbers]
            short = len(batch[0]) <= WINDOW_SAMPLES
            texts = self._texts(batch, padding="max_length" if short else "longest")
            for number, text in zip(numbers, texts, strict=True):
                found[number] = text.strip()
        return found

    def _texts(self, batch: Sequence[_Samples], *, padding: str) -> list[str]:
        with self._clock.stage("features"):
            inputs = self._extract(
                list(batch),
                sampling_rate=SAMPLE_RATE_HZ,
                padding=padding,
                truncation=padding == "max_length",
                return_attention_mask=True,
                return_tensors="pt",
            ).to(self._device)
            features = inputs.input_features.to(self._dtype)
        tokens = self._model.generate(
            features, attention_mask=inputs.attention_mask, **self._options
        )
        texts: list[str] = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts


class Decoding(WindowTimer):
    """Times the encoder, and the search that `generate` is built on."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        library, self._model, self._dtype = _load(order)
        self._device = torch.device(order.device)
        self._outputs = importlib.import_module("transformers.modeling_outputs").BaseModelOutput
        # Whisper's own `generate` cuts audio and reads timestamps; this is what it calls.
        self._generate = library.GenerationMixin.generate
        self._settings = library.GenerationConfig

    @torch.inference_mode()
    def encode(self) -> Any:
        """Encode all windows."""
        features = torch.from_numpy(self.features).to(self._device, self._dtype)
        return self._model.get_encoder()(features).last_hidden_state

    @torch.inference_mode()
    def decode(self, encoded: Any, num_tokens: int) -> list[int]:
        """Say so many tokens about each window."""
        prompt = torch.tensor([self.prompt] * len(encoded), device=self._device)
        said = self._generate(
            self._model,
            encoder_outputs=self._outputs(last_hidden_state=encoded),
            decoder_input_ids=prompt,
            generation_config=self._settings(
                max_new_tokens=num_tokens,
                num_beams=self.order.beams,
                do_sample=False,
                suppress_tokens=[self.end],
                decoder_start_token_id=self.prompt[0],
                bos_token_id=self.end,
                eos_token_id=self.end,
                pad_token_id=self.end,
            ),
        )
        return [said.shape[1] - prompt.shape[1]] * len(said)


def _load(order: Order) -> tuple[Any, Any, torch.dtype]:
    """Return the library, the network ready for inference and its type."""
    warnings.simplefilter("ignore")
    library = importlib.import_module("transformers")
    library.logging.set_verbosity_error()
    torch.set_num_threads(order.threads)
    device = torch.device(order.device)
    dtype = resolve_dtype(order.dtype, device)
    model = library.WhisperForConditionalGeneration.from_pretrained(order.model, dtype=dtype)
    return library, model.eval().to(device), dtype
