"""Arguments of `generate` that are more than a flag or a number, checked one by one.

In: what a caller passed. Out: the same in one form, or an error that names the argument. Knows no
model but the assistant it is handed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.models.generation.slots import slot_model


def one_tensor(given: Any, *, what: str, hint: str) -> Tensor:
    """Make a tensor of arrays, lists or a tensor.

    Raises:
        TypeError: it is none of these.
    """
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"generating text: found a {type(given).__name__} as {what}, expected one tensor; "
            f"{hint}"
        ) from error


def features_of(given: Any, mel_bins: int, *, mel_axis: int = 1) -> Tensor:
    """Check features of a batch.

    Args:
        given: what the caller passed.
        mel_bins: of the model.
        mel_axis: 1 for (batch, mel, frame), 2 for (batch, frame, mel).

    Raises:
        TypeError: they are no tensor.
        ValueError: they are empty, have another shape than a batch, or are not finite.
    """
    features = one_tensor(
        given,
        what="input_features",
        hint="pass inputs.input_features, or **inputs, of what the feature extractor returned",
    )
    shape = tuple(features.shape)
    if len(shape) != 3 or shape[mel_axis] != mel_bins or 0 in shape:
        expected = f"{mel_bins}, frames" if mel_axis == 1 else f"frames, {mel_bins}"
        raise ValueError(
            f"generating text: input_features have shape {shape}, expected (batch, {expected}), "
            "one row or more; pass what this checkpoint's feature extractor returns"
        )
    # Waits for a GPU, once a call: it would otherwise say so much later and not why.
    finite = features.isfinite()
    if not bool(finite.all()):
        rows = (~finite).flatten(1).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(
            f"generating text: found NaN or infinity in the input_features of rows {rows}, "
            "expected finite numbers; look at the audio they were made of"
        )
    return features


def encoded_of(given: Any) -> Tensor:
    """Take the hidden states out of what an encoder returned.

    Raises:
        ValueError: there is no tensor (batch, position, width), or an empty one.
    """
    found = given
    if hasattr(found, "last_hidden_state"):
        found = found.last_hidden_state
    elif isinstance(found, list | tuple) and found:
        found = found[0]
    if not isinstance(found, Tensor) or found.ndim != 3 or not found.numel():
        shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"generating text: encoder_outputs hold {shown}, expected a tensor (batch, position, "
            "width) or the encoder's output; pass what the encoder returned"
        )
    return found


def lengths_of(attention_mask: Any, batch_size: int) -> list[int]:
    """Return the frames of each row.

    Raises:
        TypeError: the mask is no tensor.
        ValueError: it has not one row for each recording.
    """
    mask = one_tensor(
        attention_mask,
        what="attention_mask",
        hint="pass what the feature extractor returned with return_attention_mask=True",
    )
    if mask.ndim != 2 or len(mask) != batch_size:
        raise ValueError(
            f"generating text: attention_mask has shape {tuple(mask.shape)}, expected "
            f"({batch_size}, frames), a row for each recording; call the feature extractor with "
            "return_attention_mask=True"
        )
    lengths: list[int] = mask.sum(-1).long().tolist()
    return lengths


def prompt_of(prompt_ids: Any) -> tuple[int, ...] | None:
    """Return a prompt's tokens.

    Raises:
        TypeError: it is no tensor.
        ValueError: it is not one row of whole numbers.
    """
    if prompt_ids is None:
        return None
    hint = "pass what the processor's get_prompt_ids returns"
    ids = one_tensor(prompt_ids, what="prompt_ids", hint=hint)
    if ids.ndim != 1 or (ids.numel() and (ids.is_floating_point() or ids.dtype == torch.bool)):
        raise ValueError(
            f"generating text: prompt_ids have shape {tuple(ids.shape)} and type {ids.dtype}, "
            f"expected one dimension of token ids; {hint}"
        )
    return tuple(ids.tolist())


def temperatures_of(temperature: Any) -> tuple[float | None, ...]:
    """Return the temperatures to try in turn; None where nothing was said.

    Raises:
        TypeError: one is no number.
        ValueError: there is none, or one is below 0.
    """
    several = isinstance(temperature, Sequence) and not isinstance(temperature, str)
    found = tuple(temperature) if several else (temperature,)
    if not found:
        raise ValueError(
            "generating text: temperature is an empty list, expected a number or several"
        )
    for one in found:
        if one is not None and not isinstance(one, int | float):
            raise TypeError(
                f"generating text: found the temperature {one!r}, expected a number or several; "
                "correct it"
            )
        if one is not None and not one >= 0:
            raise ValueError(
                f"generating text: found the temperature {one!r}, expected 0 or more; correct it"
            )
    return found


def functions_of(given: Any, *, what: str) -> tuple[Any, ...]:
    """Return functions that a caller passed as a list.

    Raises:
        TypeError: it is no list, or one of them cannot be called.
    """
    if given is None:
        return ()
    wrong = given if not isinstance(given, Sequence) else None
    for one in given if wrong is None else ():
        wrong = one if not callable(one) else wrong
    if wrong is not None:
        raise TypeError(
            f"generating text: found {str(wrong)[:40]!r} of type {type(wrong).__name__} as {what}, "
            f"expected a list of functions; put it into a list, or correct it"
        )
    return tuple(given)


def draft_of(assistant: Any) -> SlotModel:
    """Return the form of an assistant that search drafts with.

    Raises:
        TypeError: it is no model.
    """
    if not hasattr(assistant, "slot_model"):
        raise TypeError(
            f"generating text: found a {type(assistant).__name__} as assistant_model, expected a "
            "model; load it with WhisperForCausalLM.from_pretrained"
        )
    return slot_model(assistant)
