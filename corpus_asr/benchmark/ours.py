"""This engine: whole recordings as `corpus-asr transcribe` does them, and its network alone."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from corpus_asr.benchmark.engines import StageClock, WindowsRunner, batches, tree_cpu_s
from corpus_asr.benchmark.orders import Order
from corpus_asr.decoding.protocols import Search, TokenRules, WindowJob, WindowResult
from corpus_asr.decoding.slots import SlotScheduler, check_every_on, encode_batch_on
from corpus_asr.decoding.tasks import Steps
from corpus_asr.families.loading import load_slot_model


class OurWindows(WindowsRunner):
    """Times the slot model, driven by the scheduler as ever."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        torch.set_num_threads(order.threads)
        folder = Path(order.model)
        self._model = load_slot_model(folder, device=order.device, dtype=order.dtype)
        kind = self._model.device.type
        self._encode_batch = encode_batch_on(kind)
        self._scheduler = SlotScheduler(
            self._model,
            order.batch * order.beams,
            encode_batch=self._encode_batch,
            check_every=check_every_on(kind),
        )

    def encode(self) -> Any:
        groups = batches(torch.from_numpy(self.features), self._encode_batch)
        return [window for group in groups for window in self._model.encode(group)]

    def decode(self, encoded: Sequence[torch.Tensor], num_tokens: int) -> list[int]:
        counts: list[int] = []

        def done(result: WindowResult | None, error: Exception | None) -> None:
            if error is not None:
                raise error
            assert result is not None
            counts.append(len(result.tokens))

        for number, window in enumerate(encoded):
            self._scheduler.add(self._task(number, window, num_tokens), done)
        while self._scheduler.pending:
            self._scheduler.advance()
        return counts

    def _task(self, number: int, encoded: torch.Tensor, num_tokens: int) -> Steps[WindowResult]:
        result = yield WindowJob(
            features=self.features[number],
            window=(number,),
            prompt=tuple(self.prompt),
            rules=TokenRules(end=self.end, suppress=(self.end,)),
            max_new_tokens=num_tokens,
            search=Search(num_beams=self.order.beams),
            encoded=encoded,
        )
        assert isinstance(result, WindowResult)
        return result


class OurRecordings:
    """Times this engine from files to text."""

    def __init__(self, order: Order) -> None:
        # Sizes alone are timed where the packages of extraction are not installed.
        from corpus_asr.config.load import decoding_from
        from corpus_asr.config.options import TranscriptionOptions
        from corpus_asr.decoding.protocols import SlotModel
        from corpus_asr.runtime.transcriber import Transcriber
        from corpus_asr.transcription.engine import Engine

        self._paths = order.audio
        clock = self._clock = StageClock(cuda=order.on_gpu)

        class ClockedEngine(Engine):
            def __init__(self, model: SlotModel, *args: Any, **kwargs: Any) -> None:
                # The instance's own attribute hides the method, for the engine's thread too.
                setattr(model, "encode", clock.stage("encode")(model.encode))  # noqa: B010
                super().__init__(model, *args, **kwargs)

        decoding: TranscriptionOptions = {
            "language": order.language,
            "strategy": "chunked" if order.mode == "chunked" else "sequential",
        }
        beams = 1
        if order.settings == "thresholds-off":
            beams = order.beams
            decoding |= {
                "beam_size": beams,
                "temperature": 0.0,
                "compression_ratio_threshold": None,
                "logprob_threshold": None,
                "no_speech_threshold": None,
            }
        self._engine = ClockedEngine.from_folder(
            Path(order.model),
            decoding=decoding_from(decoding),
            device=order.device,
            dtype=order.dtype,
            # A slot is a row: a window searched with beams takes one for each.
            slots=order.batch * beams,
            num_threads=order.threads,
        )
        self._transcriber = Transcriber.around(self._engine, order.model, options=decoding)

    def run(self) -> dict[str, Any]:
        """Extract everything once for its time, then transcribe everything."""
        # The total is of an ordinary run, in which extraction, in its own process, overlaps with
        # decoding: its seconds are measured separately, before.
        started_s = time.perf_counter()
        self._extract()
        extract_s = time.perf_counter() - started_s
        decode_s = self._decode_s()
        started_s, cpu_s = time.perf_counter(), tree_cpu_s()
        results = {each.uri: each for each in self._transcriber.transcribe_many(self._paths)}
        total_s, cpu_s = time.perf_counter() - started_s, tree_cpu_s() - cpu_s
        decode_s = self._decode_s() - decode_s
        encode_s = self._clock.take().get("encode", 0.0)
        texts = [
            " ".join(segment.text.strip() for segment in results[path].segments)
            for path in self._paths
        ]
        stages = {"features": extract_s, "encode": encode_s, "decode": decode_s}
        return {"total_s": total_s, "cpu_s": cpu_s, "stages": stages, "texts": texts}

    def _decode_s(self) -> float:
        found = self._engine.statistics()
        return found.engine_s - found.encode_s

    def _extract(self) -> None:
        from corpus_asr.stages.parts import ExtractRequest

        pool = self._transcriber._pool
        child = pool.take(lambda: True)
        assert child is not None, "it is wanted"
        for path in self._paths:
            for _ in child.run(ExtractRequest(uri=path)):
                pass
        pool.give_back(child)
