"""Audio classification with Whisper's encoder, also of windows in batches."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Float, Float16
from corpus_asr.decoding.slots import encode_batch_on
from corpus_asr.errors import ItemError
from corpus_asr.failure_kinds import NOT_A_NUMBER
from corpus_asr.families.layers.packed import run_per_sample
from corpus_asr.families.outputs import (
    BaseModelOutput,
    SequenceClassifierOutput,
    given_encoding,
)
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.families.whisper.encoder import WhisperEncoder, WhisperPreTrainedModel
from corpus_asr.units import WINDOW_S


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


class WhisperWindowClassifier:
    """A `WhisperForAudioClassification` that scores windows; meets `OnePassModel`."""

    def __init__(self, model: WhisperForAudioClassification) -> None:
        self._model = model
        self.batch_s = encode_batch_on(model.device.type) * WINDOW_S

    @classmethod
    def from_pretrained(
        cls, folder: str | PathLike[str], *, dtype: torch.dtype, device: torch.device
    ) -> "WhisperWindowClassifier":
        """Load a checkpoint folder.

        Raises:
            CheckpointError: it cannot be loaded, or has no classification head.
        """
        return cls(_StoredClassifier.from_pretrained(folder, dtype=dtype, device=device))

    @torch.inference_mode()
    def transcribe(
        self, windows: Sequence[Float16[np.ndarray, "mel frame"]], *, language: str | None
    ) -> list[Float[Tensor, " label"]]:
        features = torch.from_numpy(np.stack(windows)).to(self._model.device, self._model.dtype)
        if self._model.device.type != "cpu":
            return list(self._logits(features).cpu())
        # One per thread, which also makes each exactly independent of the others.
        return list(torch.cat(run_per_sample(self._logits, [row.unsqueeze(0) for row in features])))

    @staticmethod
    def check(
        found: list[Float[Tensor, " label"]], durations_s: Sequence[float]
    ) -> list[Float[Tensor, " label"] | ItemError]:
        """Return the scores, with those that are not numbers replaced by their error."""
        error = ItemError(
            "classifying a window: found scores that are not numbers, expected finite ones; set "
            "model.compute_type to bfloat16 or float32",
            kind=NOT_A_NUMBER,
        )
        return [scores if bool(scores.isfinite().all()) else error for scores in found]

    def _logits(self, features: Float[Tensor, "batch mel frame"]) -> Float[Tensor, "batch label"]:
        logits: Tensor = self._model(features, return_dict=True).logits
        return logits.float()
