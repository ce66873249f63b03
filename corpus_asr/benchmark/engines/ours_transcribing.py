"""This engine on whole recordings: what `corpus-asr transcribe` does, with clocks attached.

In: an `Order`. Out: seconds and texts. The total is of the ordinary run, in which extraction (in
its own process) overlaps with decoding; the seconds of extraction are taken apart from it, before.
"""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

from corpus_asr.benchmark.clock import StageClock
from corpus_asr.benchmark.orders import Order
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.config.load import decoding_from
from corpus_asr.config.stages import ExtractSettings
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.stages.messages import ExtractRequest
from corpus_asr.transcription.engine import Engine, PartRequest, PartTranscript
from corpus_asr.transcription.family_jobs import PartJobs


class _ClockedEngine(Engine):
    """An engine that counts the seconds in its encoder, and those in which it has work at all."""

    def __init__(
        self,
        model: SlotModel,
        jobs: PartJobs,
        *,
        decoding: DecodingSettings,
        slots: int | Literal["auto"] = "auto",
    ) -> None:
        self.clock = StageClock(cuda=model.device.type == "cuda")
        # The instance's own attribute hides the method, for the engine's thread as for all.
        setattr(model, "encode", self.clock.watch("encode", model.encode))  # noqa: B010
        self._landing = threading.Condition()
        self._in_flight = 0
        self._began_s = 0.0
        self._busy_s = 0.0
        super().__init__(model, jobs, decoding=decoding, slots=slots)

    def submit(
        self, part: PartRequest, *, decoding: DecodingSettings | None = None
    ) -> Future[PartTranscript]:
        """Queue a part, and count it as work."""
        with self._landing:
            if self._in_flight == 0:
                self._began_s = time.perf_counter()
            self._in_flight += 1
        # Not counted where it raises: then the whole run has failed.
        future = super().submit(part, decoding=decoding)
        future.add_done_callback(self._landed)
        return future

    def take_busy_s(self) -> float:
        """Return the time with parts in flight since the last call, once none is."""
        with self._landing:
            # Who waits for a part may be told of it before this is.
            self._landing.wait_for(lambda: self._in_flight == 0)
            busy_s, self._busy_s = self._busy_s, 0.0
        return busy_s

    def _landed(self, _: Future[PartTranscript]) -> None:
        with self._landing:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._busy_s += time.perf_counter() - self._began_s
                self._landing.notify_all()


class _Transcriber(Transcriber):
    """A transcriber that can also extract alone."""

    def extract(self, paths: Sequence[str]) -> None:
        """Decode the files, find speech and compute features, and drop them."""
        for path in paths:
            for _ in self._child.run(ExtractRequest(uri=path)):
                pass


class Transcribing:
    """Measures this engine from files to text."""

    def __init__(self, order: Order) -> None:
        decoding: dict[str, Any] = {
            "language": order.language,
            "strategy": order.mode,
            "num_beams": order.beams,
            # One try per window for everybody: what is measured must not depend on luck.
            "temperature": 0.0,
            "compression_ratio_threshold": None,
            "logprob_threshold": None,
            "no_speech_threshold": None,
        }
        self._paths = order.audio
        engine = _ClockedEngine.from_folder(
            Path(order.model),
            decoding=decoding_from(decoding),
            device=order.device,
            dtype=order.dtype,
            # A slot is a row: a window searched with beams takes one for each.
            slots=order.batch * order.beams,
            num_threads=order.threads,
        )
        assert isinstance(engine, _ClockedEngine), "from_folder makes what it is called on"
        self._engine = engine
        self._transcriber = _Transcriber.around(
            self._engine, order.model, decoding=decoding, extract=ExtractSettings()
        )

    def run(self) -> dict[str, Any]:
        """Extract everything once for its time, then transcribe everything."""
        started = time.perf_counter()
        self._transcriber.extract(self._paths)
        extract_s = time.perf_counter() - started
        started = time.perf_counter()
        found = {one.uri: one for one in self._transcriber.transcribe_many(self._paths)}
        total_s = time.perf_counter() - started
        busy_s = self._engine.take_busy_s()
        encode_s = self._engine.clock.take().get("encode", 0.0)
        texts = [
            " ".join(segment.text.strip() for segment in found[path].segments)
            for path in self._paths
        ]
        stages = {"features": extract_s, "encode": encode_s, "decode": busy_s - encode_s}
        return {"total_s": total_s, "stages": stages, "texts": texts}
