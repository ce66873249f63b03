"""What all engines do when encoder and decoder are timed alone.

In: an engine's own way to encode a batch of windows and to decode so many tokens of each. Out:
seconds of the encoder, of the first token (with the cross-attention's keys and values, which every
engine computes there) and of all further tokens. That split needs no look inside an engine: it
decodes twice, once for a single token.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from corpus_asr.benchmark.clock import seconds
from corpus_asr.benchmark.orders import Order
from corpus_asr.errors import EngineError
from corpus_asr.units import WINDOW_FRAMES, WINDOW_S

_SEED = 0


class WindowTimer(ABC):
    """Times one engine on a batch of windows of noise."""

    def __init__(self, order: Order) -> None:
        config = json.loads((Path(order.model) / "config.json").read_text())
        self.order = order
        self.cuda = order.device.startswith("cuda")
        self.end: int = config["eos_token_id"]
        vocabulary = (Path(order.model) / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
        self.vocabulary: Sequence[str] = vocabulary
        # Without timestamps: their grammar would be a matter of chance with random weights.
        wanted = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
        self.prompt = [vocabulary.index(token) for token in wanted]
        noise = np.random.default_rng(_SEED)
        shape = (order.batch, config["num_mel_bins"], WINDOW_FRAMES)
        self.features: Float32[np.ndarray, "batch mel frame"] = noise.uniform(
            -1.0, 1.0, shape
        ).astype(np.float32)

    @abstractmethod
    def encode(self) -> Any:
        """Encode all windows, as this engine would encode so many."""

    @abstractmethod
    def decode(self, encoded: Any, num_tokens: int) -> list[int]:
        """Say `num_tokens` tokens about each window; return how many were said about each."""

    def run(self) -> dict[str, Any]:
        """Time all three.

        Raises:
            EngineError: the engine did not say as many tokens as it was asked for.
        """
        encoded: Any = None

        def encode() -> None:
            nonlocal encoded
            encoded = self.encode()

        encode_s = seconds(encode, cuda=self.cuda)
        first_s = self._decode_s(encoded, 1)
        all_s = self._decode_s(encoded, self.order.tokens_per_window)
        return {
            "total_s": encode_s + all_s,
            "stages": {"encode": encode_s, "first_token": first_s, "tokens": all_s - first_s},
            "audio_s": float(self.order.batch * WINDOW_S),
        }

    def _decode_s(self, encoded: Any, num_tokens: int) -> float:
        said: list[int] = []

        def decode() -> None:
            said.extend(self.decode(encoded, num_tokens))

        taken_s = seconds(decode, cuda=self.cuda)
        if said != [num_tokens] * self.order.batch:
            raise EngineError(
                f"timing {self.order.engine}: asked for {num_tokens} tokens about each of "
                f"{self.order.batch} windows, it said {said}; its figures would not be comparable"
            )
        return taken_s
