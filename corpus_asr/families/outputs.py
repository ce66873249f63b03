"""Outputs of the networks, accessible by name, key or position, named as in transformers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar

from torch import Tensor
from torch.utils import _pytree as pytree

from corpus_asr.array_types import Float
from corpus_asr.families.layers.kv_cache import TokenCache

States = tuple[Float[Tensor, "batch _ width"], ...]
"""Hidden states after the embeddings and after every layer; the last one normalized."""
Weights = tuple[Float[Tensor, "batch head _ _"], ...]
"""Attention weights after the softmax, one tensor per computed layer."""


_Output = TypeVar("_Output", bound="ModelOutput")


class _PairConstructible(type):
    """Lets a dataclass be created from a dictionary or pairs: `Output({"loss": loss})`."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and isinstance(args[0], Mapping | Iterator):
            return super().__call__(**dict(args[0]))
        return super().__call__(*args, **kwargs)


class ModelOutput(dict[str, Any], metaclass=_PairConstructible):
    """Base of all outputs, which are dataclasses; fields that are not None are keys.

    A dictionary, as training loops and multi-device wrappers expect, which recreate it from one or
    from pairs.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # Otherwise `torch.export` and `DistributedDataParallel` would not find the tensors inside.
        pytree.register_pytree_node(
            cls,
            _flattened,
            partial(_unflattened, cls),
            serialized_type_name=f"{cls.__module__}.{cls.__name__}",
        )

    def __getitem__(self, key: Any) -> Any:
        """Return a value by name or position, or several by a slice."""
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: object) -> None:
        if key not in [f.name for f in fields(self)]:  # type: ignore[arg-type]
            raise KeyError(key)
        setattr(self, key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        names = [f.name for f in fields(self)]  # type: ignore[arg-type]
        if name in names:
            # Keys are in the order of the fields, which defines positions.
            values = {key: getattr(self, key) for key in names}
            super().clear()
            super().update({key: v for key, v in values.items() if v is not None})

    def pop(self, *args: Any) -> Any:
        """Raise an error: fields cannot be removed."""
        raise TypeError(
            f"removing a key of a {type(self).__name__}: found a field of it, expected a plain "
            "dictionary; use dict(output)"
        )

    __delitem__ = pop

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set fields by name."""
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __reduce__(self) -> tuple[Any, ...]:
        # As fields, since the dictionary's items would be set before fields exist.
        return _unpickled, (type(self), {f.name: getattr(self, f.name) for f in fields(self)})  # type: ignore[arg-type]

    def to_tuple(self) -> tuple[Any, ...]:
        """Return all values that are not None."""
        return tuple(self.values())

    def as_asked(self: _Output, config: Any, return_dict: bool | None) -> _Output | tuple[Any, ...]:
        """Return this output or a plain tuple; None means the configuration's value."""
        return_dict = config.return_dict if return_dict is None else return_dict
        return self if return_dict else self.to_tuple()


def _unpickled(kind: type[Any], held: dict[str, Any]) -> Any:
    return kind(**held)


def _flattened(output: ModelOutput) -> tuple[list[Any], list[str]]:
    return list(output.values()), list(output)


def _unflattened(kind: type[Any], values: Iterable[Any], names: Sequence[str]) -> Any:
    return kind(**dict(zip(names, values, strict=True)))


# eq=False: comparing tensors gives tensors, which have no truth value.
@dataclass(eq=False)
class BaseModelOutput(ModelOutput):
    """Output of an encoder."""

    last_hidden_state: Float[Tensor, "batch pos width"] | None = None
    hidden_states: States | None = None
    attentions: Weights | None = None


@dataclass(eq=False)
class BaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """Output of a decoder."""

    last_hidden_state: Float[Tensor, "batch token width"] | None = None
    past_key_values: TokenCache | None = None
    hidden_states: States | None = None
    attentions: Weights | None = None
    cross_attentions: Weights | None = None


@dataclass(eq=False)
class Seq2SeqModelOutput(ModelOutput):
    """Output of a model without output projection."""

    last_hidden_state: Float[Tensor, "batch token width"] | None = None
    past_key_values: TokenCache | None = None
    decoder_hidden_states: States | None = None
    decoder_attentions: Weights | None = None
    cross_attentions: Weights | None = None
    encoder_last_hidden_state: Float[Tensor, "batch pos width"] | None = None
    encoder_hidden_states: tuple[Float[Tensor, "row _ width"], ...] | None = None
    encoder_attentions: tuple[Float[Tensor, "row head _ _"], ...] | None = None


@dataclass(eq=False)
class Seq2SeqLMOutput(ModelOutput):
    """Output of a speech recognition model."""

    # A scalar, or one value per device if outputs of several were gathered.
    loss: Float[Tensor, "*_"] | None = None
    logits: Float[Tensor, "batch token vocab"] | None = None
    past_key_values: TokenCache | None = None
    decoder_hidden_states: States | None = None
    decoder_attentions: Weights | None = None
    cross_attentions: Weights | None = None
    encoder_last_hidden_state: Float[Tensor, "batch pos width"] | None = None
    encoder_hidden_states: tuple[Float[Tensor, "row _ width"], ...] | None = None
    encoder_attentions: tuple[Float[Tensor, "row head _ _"], ...] | None = None


@dataclass(eq=False)
class CausalLMOutputWithCrossAttentions(ModelOutput):
    """Output of a decoder-only model."""

    loss: Float[Tensor, "*_"] | None = None
    logits: Float[Tensor, "batch token vocab"] | None = None
    past_key_values: TokenCache | None = None
    hidden_states: States | None = None
    attentions: Weights | None = None
    cross_attentions: Weights | None = None


@dataclass(eq=False)
class SequenceClassifierOutput(ModelOutput):
    """Output of an audio classifier."""

    loss: Float[Tensor, "*_"] | None = None
    logits: Float[Tensor, "batch label"] | None = None
    hidden_states: States | None = None
    attentions: Weights | None = None


def seq2seq_output(
    encoded: BaseModelOutput, decoded: BaseModelOutputWithPastAndCrossAttentions
) -> Seq2SeqModelOutput:
    """Combine the outputs of encoder and decoder."""
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
    """Return `encoder_outputs` as an output; None if there are features to encode."""
    if (input_features is None) == (encoder_outputs is None):
        count = "neither" if input_features is None else "both"
        raise ValueError(
            f"running {running}: found {count} of input_features and encoder_outputs, expected one "
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
    is_sequence = isinstance(encoder_outputs, tuple | list) and 1 <= len(encoder_outputs) <= 3
    if is_sequence and isinstance(encoder_outputs[0], Tensor):
        return BaseModelOutput(*encoder_outputs)
    raise ValueError(
        f"reading encoder_outputs: found a {type(encoder_outputs).__name__}, expected the "
        "encoder's output, or (last_hidden_state, hidden_states, attentions), the last two "
        "optional"
    )
