"""openai-whisper: `transcribe`, file after file, and its encoder and `decode` alone.

In: an `Order`. Out: seconds and texts. The checkpoint is written in OpenAI's layout by this
package's own converter.
"""

import importlib
import time
import warnings
from typing import Any

import torch

from corpus_asr.benchmark.clock import StageClock
from corpus_asr.benchmark.engines.conversion import converted
from corpus_asr.benchmark.engines.samples import read_samples
from corpus_asr.benchmark.engines.windows import WindowTimer
from corpus_asr.benchmark.orders import Order
from corpus_asr.errors import ConfigError

_DTYPES = ("float32", "float16")


class Transcribing:
    """Measures `whisper.transcribe` from files to text; it knows one window at a time only."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._library, self._model = _load(order)
        self._clock = StageClock(cuda=order.device.startswith("cuda"))
        encoder = self._model.encoder
        encoder.forward = self._clock.watch("encode", encoder.forward)

    def run(self) -> dict[str, Any]:
        """Transcribe every file."""
        started = time.perf_counter()
        with self._clock.stage("features"):
            recordings = [read_samples(path) for path in self._order.audio]
        texts = [
            self._library.transcribe(
                self._model,
                samples,
                language=self._order.language,
                beam_size=self._order.beams if self._order.beams > 1 else None,
                temperature=0.0,
                compression_ratio_threshold=None,
                logprob_threshold=None,
                no_speech_threshold=None,
                condition_on_previous_text=False,
                fp16=self._order.dtype == "float16",
            )["text"].strip()
            for samples in recordings
        ]
        total_s = time.perf_counter() - started
        stages = self._clock.take()
        # Its features are computed inside `transcribe` and are counted here.
        stages["decode"] = total_s - sum(stages.values())
        return {"total_s": total_s, "stages": stages, "texts": texts}


class Decoding(WindowTimer):
    """Times the encoder, and `whisper.decode` on what it encoded."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self._library, self._model = _load(order)
        self._half = order.dtype == "float16"
        if self._half:
            self._model.half()

    @torch.inference_mode()
    def encode(self) -> Any:
        """Encode all windows."""
        features = torch.from_numpy(self.features).to(self.order.device)
        return self._model.encoder(features.half() if self._half else features)

    def decode(self, encoded: Any, num_tokens: int) -> list[int]:
        """Say so many tokens about each window."""
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
            len(one.tokens)
            for group in groups
            for one in self._library.decode(self._model, group, options)
        ]


def _load(order: Order) -> tuple[Any, Any]:
    """Return the library and the network.

    Raises:
        ConfigError: it has no such type.
    """
    if order.dtype not in _DTYPES:
        raise ConfigError(
            f"loading openai-whisper in {order.dtype}: expected one of {', '.join(_DTYPES)}"
        )
    warnings.simplefilter("ignore")
    torch.set_num_threads(order.threads)
    file = converted("openai", order)
    library = importlib.import_module("whisper")
    return library, library.load_model(str(file), device=order.device)
