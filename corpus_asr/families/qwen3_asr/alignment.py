"""Word times by Qwen3-ForcedAligner: a text with markers around its words is read in one pass.

The network has the encoder and text model of Qwen3-ASR, and a score of every time at each marker.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import torch

from corpus_asr.array_types import Float16, Float64
from corpus_asr.decoding.recognizer import RecognizedWord
from corpus_asr.errors import AlignmentError
from corpus_asr.families.qwen3_asr.features import Qwen3ASRPartFeatures
from corpus_asr.families.qwen3_asr.model import Qwen3ASRSlotModel, Qwen3ASRTimes
from corpus_asr.families.qwen3_asr.tokenizer import Qwen3ASRPrompts, spoken
from corpus_asr.units import FRAMES_PER_SECOND

# Of a class of times, in the checkpoints' settings.
_CLASS_S = 0.08
# Classes out of order that take the time of a neighbor; longer runs are spread between both.
_FEW = 2


class Qwen3Aligner:
    """Aligns the words of a text with audio; its "scores" are the features that they are of."""

    position_s = 1 / FRAMES_PER_SECOND

    def __init__(
        self, model: Qwen3ASRSlotModel, prompts: Qwen3ASRPrompts, features: Qwen3ASRPartFeatures
    ) -> None:
        self._model, self._prompts, self._features = model, prompts, features
        self.feature_kind = features.kind

    @classmethod
    def from_folder(cls, folder: Path, *, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a checkpoint folder in transformers' layout."""
        network = Qwen3ASRTimes.from_pretrained(folder, dtype=dtype, device=device)
        return cls(
            Qwen3ASRSlotModel(network, consume=True),
            Qwen3ASRPrompts.from_folder(folder),
            Qwen3ASRPartFeatures.from_folder(folder),
        )

    def scores(self, part: Float16[np.ndarray, "frame mel"]) -> Float16[np.ndarray, "frame mel"]:
        """Return the features, which are read with the words."""
        return part

    def knows(self, words: Sequence[str]) -> bool:
        """Whether any of these words is spoken."""
        return any(map(spoken, words))

    @torch.inference_mode()
    def place(
        self, scores: Float16[np.ndarray, "frame mel"], words: Sequence[str]
    ) -> list[RecognizedWord]:
        """Align words with the audio of features; times in seconds from the first.

        A word without spoken characters, such as a dash, has zero duration at the end of the
        previous word, with a probability of 1.

        Raises:
            AlignmentError: there is no audio, or too little for the text.
        """
        window = self._features.window(scores, 0, len(scores))
        spoken_words = [word for word in words if spoken(word)]
        model = self._model.for_windows(max(1, len(window)))
        tokens = self._prompts.markers(model.positions(len(window)), spoken_words)
        longest_s = model.vocab_size * _CLASS_S
        if len(window) * self.position_s > longest_s:
            raise AlignmentError(
                f"aligning {len(words)} words with {len(window) * self.position_s:.1f} s of audio: "
                f"found more than the {longest_s:.1f} s that the checkpoint has times for; align "
                "shorter parts"
            )
        if not len(window) or len(tokens) > model.max_target_positions:
            raise AlignmentError(
                f"aligning {len(words)} words with {len(window) * self.position_s:.1f} s of audio: "
                "found too little audio for the text, expected its recording; correct the text"
            )
        row = torch.tensor([tokens], device=model.device)
        features = torch.from_numpy(window.T)[None].to(model.device, model.dtype)
        state = model.new_state(1)
        model.fill(state, [0], model.encode(features))
        hidden = model.prefill(state, [0], row, [len(tokens)])
        marked = hidden[0, row[0] == self._prompts.timestamp]
        best = model.logits(marked).softmax(dim=1).max(dim=1)
        times_s = ascending(best.indices.double().cpu().numpy() * _CLASS_S).reshape(-1, 2)
        placed = zip(times_s.tolist(), best.values.view(-1, 2).mean(dim=1).tolist(), strict=True)
        end_s, words_found = 0.0, []
        for word in words:
            start_s, probability = end_s, 1.0
            if spoken(word):
                (start_s, end_s), probability = next(placed)
            words_found.append(
                RecognizedWord(word=word, start_s=start_s, end_s=end_s, probability=probability)
            )
        return words_found


def ascending(times_s: Float64[np.ndarray, " marker"]) -> Float64[np.ndarray, " marker"]:
    """Keep the longest ascending choice of times, and fill the others in from their neighbors.

    Source: transformers' `_fix_timestamps`, which is quadratic, too.
    """
    count = len(times_s)
    if not count:
        return times_s
    lengths, before = np.ones(count, dtype=int), np.full(count, -1)
    for at in range(1, count):
        fitting = np.where(times_s[:at] <= times_s[at], lengths[:at], 0)
        if fitting.max() > 0:
            before[at] = fitting.argmax()
            lengths[at] = fitting.max() + 1
    kept = [int(lengths.argmax())]
    while before[kept[-1]] >= 0:
        kept.append(int(before[kept[-1]]))
    kept = kept[::-1]
    filled: Float64[np.ndarray, " marker"] = np.interp(np.arange(count), kept, times_s[kept])
    for first, last in pairwise(kept):
        if last - first - 1 <= _FEW:
            middle = (first + last) // 2
            filled[first + 1 : middle + 1] = times_s[first]
            filled[middle + 1 : last] = times_s[last]
    return filled
