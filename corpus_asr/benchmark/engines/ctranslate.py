"""faster-whisper, one window after the other or in batches, and CTranslate2 beneath it alone.

In: an `Order`. Out: seconds and texts. The checkpoint is converted by CTranslate2's own converter;
in which type it computes is decided when it is loaded.
"""

import importlib
import sys
import time
from typing import Any

from corpus_asr.benchmark.clock import StageClock
from corpus_asr.benchmark.engines.conversion import converted
from corpus_asr.benchmark.engines.windows import WindowTimer
from corpus_asr.benchmark.orders import Order


class Transcribing:
    """Measures `WhisperModel.transcribe` from files to text, file after file."""

    def __init__(self, order: Order) -> None:
        self._order = order
        folder = converted("ctranslate2", order)
        self._library = _import("faster_whisper")
        device, index = _device(order)
        self._model = self._library.WhisperModel(
            str(folder),
            device=device,
            device_index=index,
            compute_type=order.dtype,
            cpu_threads=order.threads,
            local_files_only=True,
        )
        # CTranslate2 returns when its work is done, on GPUs too: the host's clock will do.
        self._clock = StageClock(cuda=False)
        self._model.model = _Clocked(
            self._model.model, self._clock, {"encode": "encode", "generate": "decode"}
        )

    def run(self) -> dict[str, Any]:
        """Transcribe every file."""
        started = time.perf_counter()
        texts = [self._text(path) for path in self._order.audio]
        total_s = time.perf_counter() - started
        stages = {"encode": 0.0, "decode": 0.0} | self._clock.take()
        return {
            "total_s": total_s,
            # Decoding the audio, finding speech, features: whatever is not the network.
            "stages": {"features": total_s - sum(stages.values()), **stages},
            "texts": texts,
        }

    def _text(self, path: str) -> str:
        segments, _ = self._transcribe(
            path,
            language=self._order.language,
            beam_size=self._order.beams,
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


class BatchedTranscribing(Transcribing):
    """Measures `BatchedInferencePipeline.transcribe`, which batches the chunks of one file."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self._pipeline = self._library.BatchedInferencePipeline(self._model)

    def _transcribe(self, path: str, **options: Any) -> Any:
        return self._pipeline.transcribe(path, batch_size=self._order.batch, **options)


class Decoding(WindowTimer):
    """Times CTranslate2's encoder, and `Whisper.generate` on what it encoded."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        folder = converted("ctranslate2", order)
        self._library = _import("ctranslate2")
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
        """Say so many tokens about each window."""
        results = self._model.generate(
            encoded,
            [self.prompt] * self.order.batch,
            beam_size=self.order.beams,
            # It says as many as half of this, and as the prompt but for its last token leaves.
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


def _import(name: str) -> Any:
    """Import a library without torch, which CTranslate2 would load wherever it finds it.

    It has no use for it but in its converter, and users need not have it: its memory is not theirs.
    """
    sys.modules["torch"] = None  # type: ignore[assignment]
    return importlib.import_module(name)


def _device(order: Order) -> tuple[str, int]:
    kind, _, index = order.device.partition(":")
    return kind, int(index or 0)
