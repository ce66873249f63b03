"""What a network is to learn from a batch, as one number to make small.

In: a network, a batch, perhaps a larger network to learn from. Out: sums of losses over the tokens
of the batch, so that batches in pieces add up to the whole. Knows no steps and no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.errors import ConfigError
from corpus_asr.models.vocabulary import IGNORED_LABEL
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.text.phones import PHONES
from corpus_asr.training.examples import Batch, Written
from corpus_asr.training.memory import Heard, HeardBatch, stretch
from corpus_asr.training.stretches import (
    BLANK,
    by_passage,
    passage_lengths,
    stretches,
    token_places,
    unpadded_rows,
)
from corpus_asr.units import FRAMES_PER_POSITION

_NEAR = 5  # positions: 0.1 s
_LEAST = 1e-6  # attention: its logarithm stays finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How much each part of the objective counts."""

    label_smoothing: float = 0.0
    ctc: float = 0.0
    """Of the text read off the encoder alone, which brings attention in order from nothing."""
    attention: float = 0.0
    """Of how much of the alignment heads' attention is elsewhere than what is written is heard."""
    phones: float = 0.0
    """Of the sound at each position, where the data tell it: the first thing that is learnt."""
    teacher_tokens: float = 0.0
    """Of the teacher's distributions of tokens; the labels keep the rest."""
    teacher_encoder: float = 0.0
    """Of the distance from the teacher's encoding."""
    temperature: float = 2.0
    """Both distributions of tokens are softened by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Of one batch."""

    total: Tensor
    """Summed over tokens."""
    tokens: int
    """Those that were learnt."""
    parts: dict[str, float]
    """Sums by name, for people."""


class Objective(nn.Module):
    """Losses, and the layers that only they need, which are thrown away in the end.

    Args:
        student: what learns.
        weights: how much each part counts.
        teacher: what it learns from beside labels.

    Raises:
        ConfigError: the teacher hears or writes otherwise than the student.
    """

    def __init__(
        self,
        student: WhisperForConditionalGeneration,
        weights: Weights,
        *,
        teacher: WhisperForConditionalGeneration | None,
    ) -> None:
        super().__init__()
        self._weights = weights
        self._heads: Sequence[tuple[int, int]] = student.generation_config.alignment_heads or ()
        if weights.attention and not (weights.ctc and self._heads):
            raise ConfigError(
                f"training.attention_weight: found a ctc_weight of {weights.ctc} and "
                f"{len(self._heads)} alignment_heads in generation_config.json, expected both: "
                "what is read off the encoder tells where these heads are to look"
            )
        # Not registered: it neither learns nor belongs to what is saved.
        self._teacher = (teacher,)
        width = student.config.d_model
        self.read_off = nn.Linear(width, BLANK + 1) if weights.ctc else None
        self.name_sounds = nn.Linear(width, len(PHONES)) if weights.phones else None
        self.matched: nn.Linear | None = None
        if teacher is not None:
            _check_teacher(student, teacher, weights)
            teacher.requires_grad_(False).eval()
            if weights.teacher_encoder:
                self.matched = nn.Linear(width, teacher.config.d_model)

    def forward(
        self,
        student: WhisperForConditionalGeneration,
        batch: Batch,
        *,
        taught: bool = True,
        encoder_alone: bool = False,
    ) -> Losses:
        """Score a batch.

        Args:
            student: what learns.
            batch: what from.
            taught: whether the teacher, if there is one, is asked.
            encoder_alone: whether there are losses of the encoding only.
        """
        states = _encoded(student, batch)
        parts = {} if encoder_alone else self._write(student, states, batch, taught=taught)
        parts |= self._read_off(states, batch)
        return _summed(parts, batch.whole.num_labels)

    @torch.no_grad()
    def hear(self, student: WhisperForConditionalGeneration, batch: Batch) -> list[list[Heard]]:
        """Encode windows for a decoder that learns alone.

        Args:
            student: whose encoder hears.
            batch: what.

        Returns:
            Of each window itself as a whole, and each of its passages with what is around it.
        """
        states = _encoded(student, batch)
        rows = unpadded_rows(batch.whole, self._places(states, batch, batch.whole, alone=False))
        heard = [
            [Heard(states=stretch(window, 0, len(window)), **row)]
            for window, row in zip(states, rows, strict=True)
        ]
        if batch.alone is None:
            return heard
        begin, end = (places.tolist() for places in stretches(batch, states.shape[1]))
        rows = unpadded_rows(batch.alone, self._places(states, batch, batch.alone, alone=True))
        for number, row in enumerate(rows):
            window = int(batch.spans[number, 0])
            part = stretch(states[window], begin[number], end[number])
            heard[window].append(Heard(states=part, **row))
        return heard

    def write(self, student: WhisperForConditionalGeneration, heard: HeardBatch) -> Losses:
        """Score what the decoder writes of encodings that stay as they are."""
        output = student(
            encoder_outputs=heard.states,
            decoder_input_ids=heard.inputs,
            output_attentions=self._weights.attention > 0,
        )
        parts = {"labels": self._label_loss(output.logits, heard.labels)}
        if self._weights.attention:
            elsewhere = self._elsewhere(output.cross_attentions, heard.places, heard.labels)
            parts["attention"] = self._weights.attention * elsewhere
        return _summed(parts, int((heard.labels != IGNORED_LABEL).sum()))

    def _write(
        self,
        student: WhisperForConditionalGeneration,
        states: Tensor,
        batch: Batch,
        *,
        taught: bool,
    ) -> dict[str, Tensor]:
        """Score what the decoder writes of whole windows."""
        written = batch.whole
        output = student(
            encoder_outputs=states,
            decoder_input_ids=written.inputs,
            output_attentions=self._weights.attention > 0,
        )
        teacher = self._teacher[0] if taught else None
        share = 1.0 if teacher is None else 1.0 - self._weights.teacher_tokens
        parts = {"labels": share * self._label_loss(output.logits, written.labels)}
        if self._weights.attention:
            places = self._places(states, batch, written, alone=False)
            elsewhere = self._elsewhere(output.cross_attentions, places, written.labels)
            parts["attention"] = self._weights.attention * elsewhere
        if teacher is not None:
            parts |= self._taught(teacher, output.logits, states, batch)
        return parts

    @torch.no_grad()
    def _places(self, states: Tensor, batch: Batch, written: Written, *, alone: bool) -> Tensor:
        """Return the first and the last position of what each token writes: (row, token, 2)."""
        if self._weights.attention:
            assert self.read_off is not None, "checked when this was made"
            return token_places(self.read_off(states), batch, written, alone=alone)
        return torch.full((*written.labels.shape, 2), -1, device=states.device)

    def _read_off(self, states: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Score what the encoding alone tells."""
        parts: dict[str, Tensor] = {}
        if self.read_off is not None:
            parts["ctc"] = self._weights.ctc * self._ctc(self.read_off(states), batch)
        if self.name_sounds is not None:
            parts["phones"] = self._weights.phones * _phone_loss(self.name_sounds(states), batch)
        return parts

    def _label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            logits.float().flatten(0, 1),
            labels.flatten(),
            ignore_index=IGNORED_LABEL,
            label_smoothing=self._weights.label_smoothing,
            reduction="sum",
        )

    def _elsewhere(self, attentions: Sequence[Tensor], heard: Tensor, labels: Tensor) -> Tensor:
        """Score how far the alignment heads look from where each token is heard.

        Networks that start from nothing otherwise write for long without looking.
        """
        known = (heard[..., 0] >= 0) & (labels != IGNORED_LABEL)
        if not known.any():
            return attentions[0].sum() * 0.0
        heads = torch.stack([attentions[layer][:, head] for layer, head in self._heads], dim=1)
        places = torch.arange(heads.shape[-1], device=heads.device)
        first, last = heard[..., :1] - _NEAR, heard[..., 1:] + _NEAR
        near = (places >= first) & (places <= last)  # (row, token, pos)
        there = (heads * near[:, None]).sum(-1).add(_LEAST).log().mean(1)
        return -there[known].sum()

    def _ctc(self, logits: Tensor, batch: Batch) -> Tensor:
        """Score the letters of each passage against its stretch of the encoding.

        Source: Graves et al. 2006. Seconds are aligned long before whole windows are, and letters
        long before tokens, which are many and each of them rare.
        """
        if not len(batch.spans):
            return logits.sum() * 0.0
        return F.ctc_loss(
            by_passage(logits, batch),
            batch.spoken,
            passage_lengths(batch),
            batch.spans[:, 3],
            blank=BLANK,
            reduction="sum",
            zero_infinity=True,
        )

    def _taught(
        self,
        teacher: WhisperForConditionalGeneration,
        logits: Tensor,
        states: Tensor,
        batch: Batch,
    ) -> dict[str, Tensor]:
        """Compare with what the teacher makes of the same batch."""
        weights = self._weights
        parts: dict[str, Tensor] = {}
        with torch.no_grad():
            shown = _encoded(teacher, batch)
            expected = None
            if weights.teacher_tokens:
                expected = teacher(
                    encoder_outputs=shown, decoder_input_ids=batch.whole.inputs
                ).logits
        if expected is not None:
            learnt = batch.whole.labels != IGNORED_LABEL
            ours = F.log_softmax(logits[learnt].float() / weights.temperature, dim=-1)
            theirs = F.log_softmax(expected[learnt].float() / weights.temperature, dim=-1)
            apart = F.kl_div(ours, theirs, reduction="sum", log_target=True)
            # Gradients of softened distributions are smaller (Hinton et al. 2015, section 2).
            parts["teacher_tokens"] = weights.teacher_tokens * weights.temperature**2 * apart
        if self.matched is not None:
            target = F.layer_norm(shown.float(), (teacher.config.d_model,))
            apart = F.mse_loss(self.matched(states).float(), target)
            parts["teacher_encoder"] = weights.teacher_encoder * apart * batch.whole.num_labels
        return parts


def _summed(parts: dict[str, Tensor], tokens: int) -> Losses:
    return Losses(
        total=torch.stack(list(parts.values())).sum(),
        tokens=tokens,
        parts={name: float(part.detach()) for name, part in parts.items()},
    )


def _phone_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Score the sounds of the positions that are heard; sums over them."""
    if batch.phones is None:
        return logits.sum() * 0.0
    heard = batch.phones[:, : logits.shape[1]]
    return F.cross_entropy(
        logits.float().flatten(0, 1),
        heard.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="sum",
    )


def _encoded(network: WhisperForConditionalGeneration, batch: Batch) -> Tensor:
    """Encode as much of the windows as is heard, as if there were no more."""
    features = batch.features.to(network.dtype)
    if batch.num_frames == features.shape[2]:
        return network.model.encoder.encode(features)
    heard = [batch.num_frames] * len(features)
    whole = network.model.encoder.encode(features, num_frames=heard)
    return whole[:, : batch.num_frames // FRAMES_PER_POSITION]


def _check_teacher(
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration,
    weights: Weights,
) -> None:
    for key, needed in (
        ("num_mel_bins", True),
        ("max_source_positions", weights.teacher_encoder > 0),
        ("vocab_size", weights.teacher_tokens > 0),
    ):
        found, expected = getattr(teacher.config, key), getattr(student.config, key)
        if needed and found != expected:
            raise ConfigError(
                f"distilling: found a teacher with {key} {found}, expected the student's "
                f"{expected}; choose another teacher, or set the distillation weight that needs it "
                "to 0"
            )
