"""Whether one model can draft for another.

In: a model and its would-be assistant. Out: nothing, or an error that says what does not fit. Knows
nothing of how either is made.
"""

from typing import Protocol, runtime_checkable

from corpus_asr.decoding.protocols import SlotModel


@runtime_checkable
class ReadsWindows(Protocol):
    """A model that can tell what encoded windows it reads."""

    @property
    def window_shape(self) -> tuple[int, int]:
        """Positions and width of an encoded window."""


@runtime_checkable
class MayListen(Protocol):
    """A model that can tell whether it encodes windows itself."""

    @property
    def has_encoder(self) -> bool:
        """False for a decoder that reads what its main model has encoded."""


def listens(assistant: SlotModel) -> bool:
    """Tell whether an assistant encodes windows itself, as those do that do not say otherwise."""
    return not isinstance(assistant, MayListen) or assistant.has_encoder


def check_assistant(model: SlotModel, assistant: SlotModel) -> None:
    """Make sure that one model can draft for another.

    Raises:
        ValueError: their vocabularies, lengths or devices differ, or the assistant cannot read
            what the model encodes.
    """
    if assistant.vocab_size != model.vocab_size:
        raise ValueError(
            f"drafting with an assistant of {assistant.vocab_size} tokens for a model of "
            f"{model.vocab_size}: expected one vocabulary; use an assistant of the same kind"
        )
    if assistant.max_target_positions < model.max_target_positions:
        raise ValueError(
            f"drafting with an assistant of {assistant.max_target_positions} positions for a model "
            f"of {model.max_target_positions}: expected as many at least; use another assistant"
        )
    if assistant.device != model.device:
        raise ValueError(
            f"drafting with an assistant on {assistant.device} for a model on {model.device}: "
            "expected one device; move the assistant"
        )
    if listens(assistant) or not isinstance(assistant, ReadsWindows):
        return
    if isinstance(model, ReadsWindows) and model.window_shape != assistant.window_shape:
        raise ValueError(
            f"drafting with a decoder that reads windows of {assistant.window_shape} (positions, "
            f"width) for a model that encodes {model.window_shape}: expected the same; use an "
            "assistant made for this model, or one with an encoder of its own"
        )
