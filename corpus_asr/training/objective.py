"""The training objective: cross-entropy with the labels, optionally distilled from a teacher.

Losses are summed over the tokens of a batch, so that micro-batches add up to the whole batch.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from corpus_asr.config.finetune import DistillationSettings
from corpus_asr.errors import ConfigError
from corpus_asr.families.pretrained import IGNORED_LABEL
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.training.examples import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Losses of one micro-batch."""

    total: Tensor
    """Sum over tokens."""
    tokens: int
    """Number of tokens with a loss."""
    parts: dict[str, float]
    """Sum over tokens of each term: `labels`, and `teacher` in distillation."""


class Objective:
    """Computes the loss of a batch."""

    def __init__(
        self,
        student: WhisperForConditionalGeneration,
        *,
        label_smoothing: float = 0.0,
        distillation: DistillationSettings,
        teacher: WhisperForConditionalGeneration | None,
    ) -> None:
        self._label_smoothing = label_smoothing
        self._distillation = distillation
        self._teacher = teacher
        if teacher is not None:
            _check_teacher(student, teacher)
            teacher.requires_grad_(False).eval()

    def __call__(
        self, student: WhisperForConditionalGeneration, batch: Batch, *, distill: bool = True
    ) -> Losses:
        """Compute the losses of a batch."""
        logits = _logits(student, batch)
        labels = F.cross_entropy(
            logits.float().flatten(0, 1),
            batch.labels.flatten(),
            ignore_index=IGNORED_LABEL,
            label_smoothing=self._label_smoothing,
            reduction="sum",
        )
        parts = {"labels": labels}
        if self._teacher is not None and distill:
            weight = self._distillation.kl_weight
            divergence = self._divergence(self._teacher, logits, batch)
            parts = {"labels": (1.0 - weight) * labels, "teacher": weight * divergence}
        return Losses(
            total=torch.stack(list(parts.values())).sum(),
            tokens=batch.num_labels,
            parts={name: float(part.detach()) for name, part in parts.items()},
        )

    def _divergence(
        self, teacher: WhisperForConditionalGeneration, logits: Tensor, batch: Batch
    ) -> Tensor:
        """Return the Kullback-Leibler divergence from the teacher, summed over tokens."""
        with torch.no_grad():
            expected = _logits(teacher, batch)
        counted = batch.labels != IGNORED_LABEL
        temperature = self._distillation.temperature
        ours = F.log_softmax(logits[counted].float() / temperature, dim=-1)
        theirs = F.log_softmax(expected[counted].float() / temperature, dim=-1)
        # Gradients of softened distributions are smaller (Hinton et al. 2015, section 2).
        return temperature**2 * F.kl_div(ours, theirs, reduction="sum", log_target=True)


def _logits(model: WhisperForConditionalGeneration, batch: Batch) -> Tensor:
    logits: Tensor = model(batch.features.to(model.dtype), decoder_input_ids=batch.inputs).logits
    return logits


def _check_teacher(
    student: WhisperForConditionalGeneration, teacher: WhisperForConditionalGeneration
) -> None:
    for key in ("num_mel_bins", "vocab_size"):
        found, expected = getattr(teacher.config, key), getattr(student.config, key)
        if found != expected:
            raise ConfigError(
                f"distillation.teacher: found a checkpoint with {key} {found}, expected the "
                f"student's {expected}; choose another teacher"
            )
