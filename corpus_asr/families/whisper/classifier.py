"""Audio classification with Whisper's encoder.

In: log-mel features of whole windows. Out: one score per class, and losses. Knows no audio and no
names of classes; those are in `config.id2label`.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from corpus_asr.families.outputs import (
    BaseModelOutput,
    SequenceClassifierOutput,
    as_encoder_output,
)
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.families.whisper.encoder import WhisperEncoder
from corpus_asr.families.whisper.pretrained import WhisperPreTrainedModel


class WhisperForAudioClassification(WhisperPreTrainedModel):
    """Encoder, projection, mean over the window, and a linear map to the classes.

    Loads from a checkpoint for transcription too: what that lacks is drawn, with a warning.
    """

    _left_over: ClassVar[tuple[str, ...]] = ("decoder.", "proj_out.")
    _fresh: ClassVar[tuple[str, ...]] = ("layer_weights", "projector.", "classifier.")

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        self.encoder = WhisperEncoder(config)
        if config.use_weighted_layer_sum:
            self.layer_weights = nn.Parameter(torch.empty(config.encoder_layers + 1))
        self.projector = nn.Linear(config.d_model, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)
        self._draw_weights()

    def get_encoder(self) -> WhisperEncoder:
        """Return the encoder."""
        return self.encoder

    def get_input_embeddings(self) -> nn.Conv1d:
        """Return the first layer that the features meet."""
        return self.encoder.conv1

    def set_input_embeddings(self, value: nn.Conv1d) -> None:
        """Replace the first layer that the features meet."""
        self.encoder.conv1 = value

    def freeze_encoder(self) -> None:
        """Keep training from changing the encoder."""
        self.encoder._freeze_parameters()

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
        """Score the classes of each window.

        Args:
            input_features: (batch, mel, frame), whole windows.
            encoder_outputs: what the encoder returned, instead of `input_features`.
            labels: (batch,) class numbers; numbers to come close to, where there is one class;
                (batch, label) of 0 and 1 for `multi_label_classification`.
            output_attentions: whether to return attention weights; None asks the configuration.
            output_hidden_states: whether to return the states after every layer.
            return_dict: False returns a plain tuple.
            head_mask: (layer, head), what the attention weights are multiplied with.

        Raises:
            ValueError: an argument is missing, does not go with another, or is of a wrong shape
                or type; on a CPU also if features are NaN or infinite, or labels no classes.
        """
        if (input_features is None) == (encoder_outputs is None):
            found = "neither" if input_features is None else "both"
            raise ValueError(
                f"classifying: found {found} of input_features and encoder_outputs, expected one "
                f"of them"
            )
        weighted = self.config.use_weighted_layer_sum
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_features,
                head_mask=head_mask,
                output_attentions=output_attentions,
                output_hidden_states=True if weighted else output_hidden_states,
                return_dict=True,
            )
        encoded = as_encoder_output(encoder_outputs)
        logits = self.classifier(self.projector(self._heard(encoded)).mean(dim=1))
        output = SequenceClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _heard(self, encoded: BaseModelOutput) -> Float[Tensor, "batch pos width"]:
        """Return the last states, or the average over all layers where that was learned."""
        if not self.config.use_weighted_layer_sum:
            assert encoded.last_hidden_state is not None
            return encoded.last_hidden_state
        states = encoded.hidden_states or ()
        if len(states) != len(self.layer_weights):
            raise ValueError(
                f"classifying with use_weighted_layer_sum: found {len(states)} hidden states in "
                f"encoder_outputs, expected {len(self.layer_weights)}; call the encoder with "
                f"output_hidden_states=True"
            )
        weights = self.layer_weights.softmax(dim=-1).view(-1, 1, 1, 1)
        return (torch.stack(states) * weights).sum(dim=0)

    def _loss(self, logits: Float[Tensor, "batch label"], labels: Tensor) -> Float[Tensor, ""]:
        """Compare with labels as the reference's text says.

        That is a regression for a single class, where transformers 5 takes the cross entropy,
        which is zero then.
        """
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
        self._check_classes(labels)
        return F.cross_entropy(logits, labels.long().flatten())

    def _check_classes(self, labels: Tensor) -> None:
        if labels.is_floating_point():
            raise ValueError(
                f"training a classifier: found labels of {labels.dtype}, expected class numbers; "
                f"set config.problem_type to regression for other numbers"
            )
        # Not on a GPU: the host would have to wait for it. -100 is left out of the loss.
        known = (labels >= 0) & (labels < self.config.num_labels) | (labels == -100)
        if labels.device.type == "cpu" and not bool(known.all()):
            raise ValueError(
                f"training a classifier: found labels {labels[~known][:5].tolist()}, expected 0 to "
                f"{self.config.num_labels - 1}; set num_labels, or correct the labels"
            )

    def _draw(self, name: str, parameter: Tensor) -> None:
        if name == "layer_weights":
            nn.init.constant_(parameter, 1.0 / parameter.numel())
        else:
            super()._draw(name, parameter)
