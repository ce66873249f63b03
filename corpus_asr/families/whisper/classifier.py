"""Audio classification with Whisper's encoder, also in the form for decoding."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.protocols import Slots
from corpus_asr.families.layers.kv_cache import rows_of
from corpus_asr.families.layers.packed import run_per_sample
from corpus_asr.families.outputs import (
    BaseModelOutput,
    SequenceClassifierOutput,
    given_encoding,
)
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.families.whisper.encoder import WhisperEncoder, WhisperPreTrainedModel
from corpus_asr.units import FRAMES_PER_SECOND


class WhisperForAudioClassification(WhisperPreTrainedModel):
    """Encoder, projection, mean over the window, and a linear map to the classes.

    Also loads from a transcription checkpoint: missing weights are initialized with a warning.
    """

    _left_over: ClassVar[tuple[str, ...]] = ("decoder.", "proj_out.")
    _fresh: ClassVar[tuple[str, ...]] = ("layer_weights", "projector.", "classifier.")

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        self.encoder = WhisperEncoder(config, drawn=False)
        if config.use_weighted_layer_sum:
            self.layer_weights = nn.Parameter(torch.empty(config.encoder_layers + 1))
        self.projector = nn.Linear(config.d_model, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)
        self._draw_weights()

    def get_encoder(self) -> WhisperEncoder:
        """Return the encoder."""
        return self.encoder

    def get_input_embeddings(self) -> nn.Conv1d:
        """Return the input layer."""
        return self.encoder.conv1

    def set_input_embeddings(self, value: nn.Conv1d) -> None:
        """Replace the input layer."""
        self.encoder.conv1 = value

    def freeze_encoder(self) -> None:
        """Freeze the encoder."""
        self.encoder.requires_grad_(False)

    def forward(
        self,
        input_features: Tensor | None = None,
        encoder_outputs: Any = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        head_mask: Tensor | None = None,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Return the logits of the classes for each whole window (batch, mel, frame).

        Arguments are those of transformers; None means the configuration's value. `labels` are
        (batch,) class numbers; regression targets if there is one class; (batch, label) of 0 and 1
        for `multi_label_classification`.
        """
        encoded = given_encoding(input_features, encoder_outputs, running=type(self).__name__)
        if encoded is None:
            weighted = self.config.use_weighted_layer_sum
            encoded = self.encoder(
                input_features,
                head_mask=head_mask,
                output_attentions=output_attentions,
                # The weighted mean needs the states of all layers.
                output_hidden_states=True if weighted else output_hidden_states,
                return_dict=True,
            )
        logits = self.classifier(self.projector(self._heard(encoded)).mean(dim=1))
        output = SequenceClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output.as_asked(self.config, return_dict)

    def _heard(self, encoded: BaseModelOutput) -> Float[Tensor, "batch pos width"]:
        if not self.config.use_weighted_layer_sum:
            assert encoded.last_hidden_state is not None
            return encoded.last_hidden_state
        states = encoded.hidden_states or ()
        if len(states) != len(self.layer_weights):
            raise ValueError(
                f"classifying with use_weighted_layer_sum: found {len(states)} hidden states in "
                f"encoder_outputs, expected {len(self.layer_weights)}; call the encoder with "
                "output_hidden_states=True"
            )
        weights = self.layer_weights.softmax(dim=-1).view(-1, 1, 1, 1)
        return (torch.stack(states) * weights).sum(dim=0)

    def _loss(self, logits: Float[Tensor, "batch label"], labels: Tensor) -> Float[Tensor, ""]:
        # Regression for a single class, as the reference documents; transformers 5 computes the
        # cross entropy, which is zero then.
        labels = labels.to(logits.device)
        classes = logits.shape[1]
        kind = self.config.problem_type
        kind = kind or ("regression" if classes == 1 else "single_label_classification")
        per_class = kind == "multi_label_classification" or (kind == "regression" and classes > 1)
        expected = tuple(logits.shape) if per_class else (len(logits),)
        if tuple(labels.shape) != expected and not (classes == 1 and labels.numel() == len(logits)):
            raise ValueError(
                f"training a classifier ({kind}): found labels of shape {tuple(labels.shape)}, "
                f"expected {expected}"
            )
        if kind == "regression":
            return F.mse_loss(logits, labels.to(logits.dtype).view_as(logits))
        if kind == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        if labels.is_floating_point():
            raise ValueError(
                f"training a classifier: found labels of {labels.dtype}, expected class numbers; "
                "set config.problem_type to regression for numbers"
            )
        # Not on a GPU, where the check would synchronize. The loss ignores -100.
        is_valid = (labels >= 0) & (labels < self.config.num_labels) | (labels == -100)
        if labels.device.type == "cpu" and not bool(is_valid.all()):
            raise ValueError(
                f"training a classifier: found labels {labels[~is_valid][:5].tolist()}, expected 0 "
                f"to {self.config.num_labels - 1}; set num_labels, or correct the labels"
            )
        return F.cross_entropy(logits, labels.long().flatten())

    def _draw(self, name: str, parameter: Tensor) -> None:
        if name == "layer_weights":
            nn.init.constant_(parameter, 1.0 / parameter.numel())
        else:
            super()._draw(name, parameter)


class _StoredClassifier(WhisperForAudioClassification):
    # The head must be stored: a random one would give random labels.
    _fresh: ClassVar[tuple[str, ...]] = ()


class WhisperClassifierSlots:
    """A `WhisperForAudioClassification` that predicts a class as a token after a one-token prompt.

    Tokens 0 to n - 1 are the classes; n, never the most likely, is the end token for rules. A slot
    stores the scores of the classes, in float32 whatever the type of the weights.
    """

    dtype = torch.float32
    # One prompt token, and the class.
    max_target_positions = 2
    has_encoder = True
    frame_step = FRAMES_PER_SECOND

    def __init__(self, model: WhisperForAudioClassification) -> None:
        self._model = model
        self.device = model.device
        self.num_labels = int(model.config.num_labels)
        self.vocab_size = self.num_labels + 1
        self.window_shape = (1, self.num_labels)

    @classmethod
    def from_pretrained(
        cls, folder: str | PathLike[str], *, dtype: torch.dtype, device: torch.device
    ) -> "WhisperClassifierSlots":
        """Load a checkpoint folder.

        Raises:
            CheckpointError: it cannot be loaded, or has no classification head.
        """
        return cls(_StoredClassifier.from_pretrained(folder, dtype=dtype, device=device))

    def new_state(self, slots: int, *, beams: int = 1) -> Float[Tensor, "slot label"]:
        return torch.zeros(slots, self.num_labels, device=self.device)

    @torch.inference_mode()
    def encode(
        self,
        features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch 1 label"]:
        if num_frames is not None:
            raise ValueError(
                f"classifying {len(features)} windows: found num_frames, expected whole windows; "
                "omit num_frames"
            )
        features = features.to(self.device, self._model.dtype)
        if self.device.type != "cpu":
            return self._scores(features)
        # One per thread, which also makes each exactly independent of the others.
        return torch.cat(run_per_sample(self._scores, [row.unsqueeze(0) for row in features]))

    def fill(
        self,
        state: Float[Tensor, "slot label"],
        slots: Slots,
        encoded: Float[Tensor, "batch 1 label"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> None:
        state[rows_of(slots, device=self.device)] = encoded[:, 0]

    def prefill(
        self,
        state: Float[Tensor, "slot label"],
        slots: Slots,
        tokens: Int[Tensor, "batch token"],
        lengths: Sequence[int],
    ) -> Float[Tensor, "batch token label"]:
        logits = state[rows_of(slots, device=self.device)]
        return logits.unsqueeze(1).expand(-1, tokens.shape[1], -1)

    def step(
        self,
        state: Float[Tensor, "slot label"],
        tokens: Int[Tensor, " batch"],
        positions: Int[Tensor, " batch"],
        *,
        reach: int | None = None,
    ) -> Float[Tensor, "batch vocab"]:
        # Only the first token is read.
        return self.logits(state[: len(tokens)])

    def extend(
        self,
        state: Float[Tensor, "slot label"],
        slots: Sequence[int],
        tokens: Int[Tensor, "batch token"],
        positions: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch token vocab"]:
        return self.logits(self.prefill(state, slots, tokens, ()))

    def align(
        self,
        state: Float[Tensor, "slot label"],
        slots: Sequence[int],
        tokens: Int[Tensor, "batch token"],
        lengths: Sequence[int],
        heads: Sequence[tuple[int, int]],
    ) -> tuple[Float[Tensor, "batch head token pos"], Float[Tensor, "batch token width"]]:
        raise ValueError(
            f"aligning {max(lengths)} tokens with a classifier: found a network without word "
            "times, expected one that transcribes; use such a checkpoint"
        )

    def reorder(
        self,
        state: Float[Tensor, "slot label"],
        slots: Sequence[int],
        sources: Int[Tensor, " slot"],
    ) -> None:
        state[list(slots)] = state[sources]

    def logits(self, hidden: Float[Tensor, "*batch label"]) -> Float[Tensor, "*batch vocab"]:
        # The last column is the end token, which is never chosen.
        return torch.cat([hidden, hidden.new_full((*hidden.shape[:-1], 1), -torch.inf)], dim=-1)

    def move(self, state: Float[Tensor, "slot label"], source: int, target: int) -> None:
        state[target] = state[source]

    def _scores(self, features: Float[Tensor, "batch mel frame"]) -> Float[Tensor, "batch 1 label"]:
        scores: Tensor = self._model(features, return_dict=True).logits
        return scores.float().unsqueeze(1)
