"""This engine's encoder and decoder alone: the slot model, driven by the scheduler as ever."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from corpus_asr.benchmark.engines.samples import batches
from corpus_asr.benchmark.engines.windows import WindowTimer
from corpus_asr.benchmark.orders import Order
from corpus_asr.decoding.protocols import Search, TokenRules, WindowJob, WindowResult
from corpus_asr.decoding.slots import SlotScheduler, Steps, check_every_on, encode_batch_on
from corpus_asr.families.loading import load_slot_model


class Decoding(WindowTimer):
    """Times the slot model."""

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
        """Encode all windows."""
        groups = batches(torch.from_numpy(self.features), self._encode_batch)
        return [window for group in groups for window in self._model.encode(group)]

    def decode(self, encoded: Sequence[torch.Tensor], num_tokens: int) -> list[int]:
        """Say so many tokens about each window."""
        said: list[int] = []

        def done(result: WindowResult | None, error: Exception | None) -> None:
            if error is not None:
                raise error
            assert result is not None
            said.append(len(result.tokens))

        for number, window in enumerate(encoded):
            self._scheduler.add(self._task(number, window, num_tokens), done)
        while self._scheduler.pending:
            self._scheduler.advance()
        return said

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
