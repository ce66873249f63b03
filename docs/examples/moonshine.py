"""Moonshine tiny (English, MIT), whose network comes with `pip install moonshine-voice`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from corpus_asr import Recognized, Recognizer

START, END, TOKENS_PER_S = 1, 2, 6.5  # more of them is a loop, as its authors found


class Moonshine(Recognizer):
    languages = frozenset({"en"})

    def __init__(self, folder: Path) -> None:
        self.encoder = ort.InferenceSession(str(folder / "encoder_model.ort"))
        self.decoder = ort.InferenceSession(str(folder / "decoder_model_merged.ort"))
        self.pieces = list(pieces_of((folder / "tokenizer.bin").read_bytes()))

    @classmethod
    def load(cls, checkpoint: str | None, *, device: str, compute_type: str) -> "Moonshine":
        return cls(Path(checkpoint or "."))

    def transcribe(
        self, windows: Sequence[np.ndarray], *, language: str | None
    ) -> list[Recognized]:
        return [self.read(samples) for samples in windows]

    def read(self, samples: np.ndarray) -> Recognized:
        mask = np.ones((1, len(samples)), np.int64)
        (encoded,) = self.encoder.run(None, {"input_values": samples[None], "attention_mask": mask})
        fixed = {"encoder_hidden_states": encoded, "encoder_attention_mask": mask}
        caches = [each for each in self.decoder.get_inputs() if each.name.startswith("past")]
        past = {each.name: np.zeros((1, 8, 0, 36), np.float32) for each in caches}
        tokens, logprobs = [START], []
        while tokens[-1] != END and len(tokens) < TOKENS_PER_S * len(samples) / 16_000 + 1:
            step = {"input_ids": np.array([tokens[-1:]]), "use_cache_branch": [len(tokens) > 1]}
            logits, *present = self.decoder.run(None, fixed | past | step)
            for each, new in zip(caches, present, strict=True):
                if len(tokens) == 1 or "decoder" in each.name:  # the encoder's stay
                    past[each.name] = new
            scores = logits[0, -1].astype(np.float64)
            tokens.append(int(scores.argmax()))
            logprobs.append(scores.max() - np.logaddexp.reduce(scores))
        said = b"".join(self.pieces[each] for each in tokens if each > END).decode(errors="replace")
        return Recognized(text=said.replace("▁", " "), logprob=float(np.mean(logprobs)))


def pieces_of(data: bytes) -> Iterator[bytes]:
    """Each piece of the vocabulary has its length before it, in one byte or two."""
    at = 0
    while at < len(data):
        length, at = data[at], at + 1
        if length >= 128:
            length, at = length - 128 + 128 * data[at], at + 1
        yield data[at : at + length]
        at += length
