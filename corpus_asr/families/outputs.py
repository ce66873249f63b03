"""Outputs of the networks: values by name, key or position, named as in transformers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from torch import Tensor

from corpus_asr.array_types import Float
from corpus_asr.families.layers.kv_cache import DecoderCache

States = tuple[Float[Tensor, "batch _ width"], ...]
"""After the embeddings and after every layer; the last one normed."""
Weights = tuple[Float[Tensor, "batch head _ _"], ...]
"""Attention weights after the softmax, one tensor per layer that ran."""


_Output = TypeVar("_Output", bound="ModelOutput")


class ModelOutput(Mapping[str, Any]):
    """Base of all outputs, which are dataclasses; fields are keys as far as they are not None."""

    def __getitem__(self, key: Any) -> Any:
        """Return a value by name or position, or several by a slice."""
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in list(self):
            raise KeyError(key)
        return getattr(self, key)

    def __setitem__(self, key: str, value: object) -> None:
        if key not in [f.name for f in fields(self)]:  # type: ignore[arg-type]
            raise KeyError(key)
        setattr(self, key, value)

    def __iter__(self) -> Iterator[str]:
        names = (f.name for f in fields(self))  # type: ignore[arg-type]
        return (name for name in names if getattr(self, name) is not None)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def to_tuple(self) -> tuple[Any, ...]:
        """Return all values that are not None."""
        return tuple(getattr(self, name) for name in self)

    def as_asked(self: _Output, config: Any, return_dict: bool | None) -> _Output | tuple[Any, ...]:
        """Return this output or a plain tuple; None takes what the configuration says."""
        return_dict = config.return_dict if return_dict is None else return_dict
        return self if return_dict else self.to_tuple()


# eq=False: comparing tensors gives tensors, which are neither true nor false.
@dataclass(eq=False)
class BaseModelOutput(ModelOutput):
    """What the encoder computes."""

    last_hidden_state: Float[Tensor, "batch pos width"] | None = None
    hidden_states: States | None = None
    attentions: Weights | None = None


@dataclass(eq=False)
class BaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """What the decoder computes."""

    last_hidden_state: Float[Tensor, "batch token width"] | None = None
    past_key_values: DecoderCache | None = None
    hidden_states: States | None = None
    attentions: Weights | None = None
    cross_attentions: Weights | None = None


@dataclass(eq=False)
class Seq2SeqModelOutput(ModelOutput):
    """What a model without a projection to the vocabulary computes."""

    last_hidden_state: Float[Tensor, "batch token width"] | None = None
    past_key_values: DecoderCache | None = None
    decoder_hidden_states: States | None = None
    decoder_attentions: Weights | None = None
    cross_attentions: Weights | None = None
    encoder_last_hidden_state: Float[Tensor, "batch pos width"] | None = None
    encoder_hidden_states: States | None = None
    encoder_attentions: Weights | None = None


@dataclass(eq=False)
class Seq2SeqLMOutput(ModelOutput):
    """What a model that turns audio into text computes."""

    loss: Float[Tensor, ""] | None = None
    logits: Float[Tensor, "batch token vocab"] | None = None
    past_key_values: DecoderCache | None = None
    decoder_hidden_states: States | None = None
    decoder_attentions: Weights | None = None
    cross_attentions: Weights | None = None
    encoder_last_hidden_state: Float[Tensor, "batch pos width"] | None = None
    encoder_hidden_states: States | None = None
    encoder_attentions: Weights | None = None


@dataclass(eq=False)
class CausalLMOutputWithCrossAttentions(ModelOutput):
    """What a decoder alone computes."""

    loss: Float[Tensor, ""] | None = None
    logits: Float[Tensor, "batch token vocab"] | None = None
    past_key_values: DecoderCache | None = None
    hidden_states: States | None = None
    attentions: Weights | None = None
    cross_attentions: Weights | None = None


@dataclass(eq=False)
class SequenceClassifierOutput(ModelOutput):
    """What a model that classifies audio computes."""

    loss: Float[Tensor, ""] | None = None
    logits: Float[Tensor, "batch label"] | None = None
    hidden_states: States | None = None
    attentions: Weights | None = None


def seq2seq_output(
    encoded: BaseModelOutput, decoded: BaseModelOutputWithPastAndCrossAttentions
) -> Seq2SeqModelOutput:
    """Join what encoder and decoder computed."""
    return Seq2SeqModelOutput(
        last_hidden_state=decoded.last_hidden_state,
        past_key_values=decoded.past_key_values,
        decoder_hidden_states=decoded.hidden_states,
        decoder_attentions=decoded.attentions,
        cross_attentions=decoded.cross_attentions,
        encoder_last_hidden_state=encoded.last_hidden_state,
        encoder_hidden_states=encoded.hidden_states,
        encoder_attentions=encoded.attentions,
    )


def given_encoding(
    input_features: Tensor | None, encoder_outputs: Any, *, running: str
) -> BaseModelOutput | None:
    """Return `encoder_outputs` as an output; None where there are features to encode instead."""
    if (input_features is None) == (encoder_outputs is None):
        found = "neither" if input_features is None else "both"
        raise ValueError(
            f"running {running}: found {found} of input_features and encoder_outputs, expected one "
            f"of them"
        )
    return None if encoder_outputs is None else as_encoder_output(encoder_outputs)


def as_encoder_output(encoder_outputs: Any) -> BaseModelOutput:
    """Convert an output of the encoder, its last hidden state alone, or a tuple of these."""
    if isinstance(encoder_outputs, BaseModelOutput):
        return encoder_outputs
    if isinstance(encoder_outputs, Tensor):
        return BaseModelOutput(last_hidden_state=encoder_outputs)
    if isinstance(encoder_outputs, Mapping):
        encoder_outputs = tuple(encoder_outputs.get(f.name) for f in fields(BaseModelOutput))
    known = isinstance(encoder_outputs, tuple | list) and 1 <= len(encoder_outputs) <= 3
    if known and isinstance(encoder_outputs[0], Tensor):
        return BaseModelOutput(*encoder_outputs)
    raise ValueError(
        f"reading encoder_outputs: found a {type(encoder_outputs).__name__} without hidden states "
        f"in front, expected what the encoder returns, or (last_hidden_state, hidden_states, "
        f"attentions), the latter two optional"
    )
