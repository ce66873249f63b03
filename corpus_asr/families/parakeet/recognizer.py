"""Parakeet as a recognizer: windows of features to words with times, in batches."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corpus_asr.array_types import Float32
from corpus_asr.decoding.device import CudaRecorder, to_device
from corpus_asr.decoding.emissions import EmittedRow
from corpus_asr.decoding.recognizer import Recognized, RecognizedWord, Recognizer
from corpus_asr.decoding.transducer import GreedySearch
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families.library_tokenizer import TOKENIZER_NAME
from corpus_asr.families.loading import COMPUTE_DTYPES, resolve_dtype
from corpus_asr.families.parakeet.config import ParakeetConfig, ParakeetEncoderConfig
from corpus_asr.families.parakeet.model import ParakeetCTC, ParakeetRNNT, ParakeetTDT
from corpus_asr.families.parakeet.tokenizer import ParakeetTokenizer
from corpus_asr.families.saved_files import read_json_object
from corpus_asr.units import FRAMES_PER_SECOND

_NETWORKS: dict[str, type[Any]] = {
    "parakeet_ctc": ParakeetCTC,
    "parakeet_rnnt": ParakeetRNNT,
    "parakeet_tdt": ParakeetTDT,
}
# Memory grows with the square of a window's length.
_LONGEST_S = 120.0
# A GPU is kept busy by 16 windows of two minutes; a CPU by one, and more only take memory.
_GPU_BATCH_S, _CPU_BATCH_S = 1920.0, 240.0


class ParakeetRecognizer(Recognizer):
    """An encoder with a CTC, RNN-T or TDT head, and the tokenizer that spells its tokens."""

    longest_window_s = _LONGEST_S
    overlap_s = 1.0

    def __init__(self, network: Any, tokenizer: ParakeetTokenizer) -> None:
        self._network = network.eval()
        self._tokenizer = tokenizer
        encoder: ParakeetEncoderConfig = network.config.encoder_config
        self._position_s = encoder.subsampling_factor / FRAMES_PER_SECOND
        on_gpu = network.device.type != "cpu"
        self.batch_s = _GPU_BATCH_S if on_gpu else _CPU_BATCH_S
        self._transcribe = network.transcribe
        if network.device.type == "cuda" and isinstance(network, ParakeetRNNT):
            search = GreedySearch(network, recorder=CudaRecorder(network.device))
            self._transcribe = partial(network.transcribe, search=search)

    @classmethod
    def load(
        cls, checkpoint: str | None, *, device: str, compute_type: str
    ) -> "ParakeetRecognizer":
        """Load a checkpoint folder in transformers' layout."""
        if compute_type not in ("auto", *COMPUTE_DTYPES):
            raise ConfigError(
                f"choosing model.compute_type: found {compute_type}, expected "
                f"{', '.join(COMPUTE_DTYPES)} for Parakeet; set it to auto or to one of these"
            )
        folder, where = Path(checkpoint or "."), torch.device(device)
        tokenizer = ParakeetTokenizer(folder)
        network, config = _network_of(folder)
        _check_vocabulary(folder, tokenizer, config)
        dtype = resolve_dtype(compute_type, where)
        return cls(network.from_pretrained(folder, dtype=dtype, device=where), tokenizer)

    @classmethod
    def window_limit_s(cls, checkpoint: str | None) -> float:
        """Return two minutes, or as many positions as the checkpoint has."""
        encoder = _network_of(Path(checkpoint or "."))[1].encoder_config
        positions = encoder.max_position_embeddings * encoder.subsampling_factor
        return min(_LONGEST_S, positions / FRAMES_PER_SECOND)

    def transcribe(
        self, windows: Sequence[Float32[np.ndarray, "_ mel"]], *, language: str | None
    ) -> list[Recognized]:
        """Recognize windows of features; the language is not told to the network."""
        frames = [len(window) for window in windows]
        features = np.zeros((len(windows), max(frames), windows[0].shape[1]), dtype=np.float32)
        for row, window in zip(features, windows, strict=True):
            row[: len(window)] = window
        batch = to_device(torch.from_numpy(features), self._network.device)
        batch = batch.to(self._network.dtype)
        rows = self._transcribe(batch, num_frames=frames).rows()
        return [
            self._recognized(row, num_frames / FRAMES_PER_SECOND)
            for row, num_frames in zip(rows, frames, strict=True)
        ]

    def _recognized(self, row: EmittedRow, duration_s: float) -> Recognized:
        words = list(self._words(row, duration_s))
        mean = math.fsum(row.logprobs) / len(row.logprobs) if row.logprobs else 0.0
        return Recognized(
            text="".join(word.word for word in words), logprob=mean, words=tuple(words)
        )

    def _words(self, row: EmittedRow, duration_s: float) -> Iterator[RecognizedWord]:
        """Join tokens to words, which start with a space and end where the next word begins.

        A token with duration 0 counts as one position.
        """
        texts, firsts = self._spelled(row)
        edges_s = [frame * self._position_s for frame in row.frames]
        for text, first, stop in zip(texts, firsts, [*firsts[1:], len(row.tokens)], strict=True):
            positions = max(1, row.durations[stop - 1])
            next_s = edges_s[stop] if stop < len(row.tokens) else duration_s
            start_s = min(edges_s[first], duration_s)
            end_s = min(edges_s[stop - 1] + positions * self._position_s, next_s)
            likelihoods = [math.exp(logprob) for logprob in row.logprobs[first:stop]]
            yield RecognizedWord(
                word=text,
                start_s=start_s,
                end_s=max(start_s, end_s),
                probability=math.fsum(likelihoods) / len(likelihoods),
                tokens=row.tokens[first:stop],
            )

    def _spelled(self, row: EmittedRow) -> tuple[list[str], list[int]]:
        """Return the words' texts, and the index of the first token of each."""
        texts: list[str] = []
        firsts: list[int] = []
        pending: int | None = None  # tokens of an incomplete character
        for number, piece in enumerate(self._tokenizer.pieces(row.tokens)):
            first = number if pending is None else pending
            pending = first if piece is None else None
            if piece is None:
                continue
            if not texts or piece[:1].isspace():
                texts.append(piece)
                firsts.append(first)
            else:
                texts[-1] += piece
        return texts, firsts


def _network_of(folder: Path) -> tuple[type[Any], ParakeetConfig]:
    path = folder / "config.json"
    network = _NETWORKS[read_json_object(path)["model_type"]]
    config: ParakeetConfig = network.config_class.from_json_file(path)
    return network, config


def _check_vocabulary(folder: Path, tokenizer: ParakeetTokenizer, config: ParakeetConfig) -> None:
    """Reject a tokenizer whose vocabulary differs from the network's."""
    blank = getattr(config, "blank_token_id", config.pad_token_id)
    spelled = set(tokenizer.vocabulary.values())
    missing = [
        token for token in range(config.vocab_size) if token not in spelled and token != blank
    ]
    if missing or tokenizer.num_pieces > config.vocab_size:
        lacks = f", none of them for token {missing[0]}" if missing else ""
        raise CheckpointError(
            f"loading {folder}: found {tokenizer.num_pieces:,} pieces in {TOKENIZER_NAME}{lacks}, "
            f"expected one for each of {config.vocab_size:,} tokens (vocab_size of config.json, "
            "the blank optional); fetch the checkpoint again"
        )
