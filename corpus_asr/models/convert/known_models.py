"""What OpenAI published about its models beside their weights.

In: a model's file name or sizes. Out: the heads whose cross-attention follows the words in time.

Source: openai-whisper `__init__.py`, `_ALIGNMENT_HEADS`, written out as (layer, head).
"""

import re

from corpus_asr.models.convert.openai_file import Dimensions

Heads = tuple[tuple[int, int], ...]


def _heads(text: str) -> Heads:
    pairs = (pair.split(".") for pair in text.split())
    return tuple((int(layer), int(head)) for layer, head in pairs)


ALIGNMENT_HEADS: dict[str, Heads] = {
    "tiny.en": _heads("1.0 2.0 2.5 3.0 3.1 3.2 3.3 3.4"),
    "tiny": _heads("2.2 3.0 3.2 3.3 3.4 3.5"),
    "base.en": _heads("3.3 4.7 5.1 5.5 5.7"),
    "base": _heads("3.1 4.2 4.3 4.7 5.1 5.2 5.4 5.6"),
    "small.en": _heads(
        "6.6 7.0 7.3 7.8 8.2 8.5 8.7 9.0 9.4 9.8 9.10 10.0 10.1 10.2 10.3 10.6 10.11 11.2 11.4"
    ),
    "small": _heads("5.3 5.9 8.0 8.4 8.7 8.8 9.0 9.7 9.9 10.5"),
    "medium.en": _heads(
        "11.4 14.1 14.12 14.14 15.4 16.0 16.4 16.9 17.12 17.14 18.7 18.10 18.15 20.0 20.3 20.9 "
        "20.14 21.12"
    ),
    "medium": _heads("13.15 15.4 15.15 16.1 20.0 23.4"),
    "large-v1": _heads("9.19 11.2 11.4 11.17 22.7 22.11 22.17 23.2 23.15"),
    "large-v2": _heads(
        "10.12 13.17 16.11 16.12 16.13 17.15 17.16 18.4 18.11 18.19 19.11 21.2 21.3 22.3 22.9 "
        "22.12 23.5 23.7 23.13 25.5 26.1 26.12 27.15"
    ),
    "large-v3": _heads("7.0 10.17 12.18 13.12 16.1 17.14 19.11 21.4 24.1 25.6"),
    "large-v3-turbo": _heads("2.4 2.11 3.3 3.6 3.11 3.14"),
}
_SIZES = {(4, 6): "tiny", (6, 8): "base", (12, 12): "small", (24, 16): "medium"}
_ENGLISH_VOCABULARY = 51_864
_V3_VOCABULARY = 51_866


def alignment_heads(file_name: str, dimensions: Dimensions) -> Heads | None:
    """Return a published model's heads; None if it is none, or which one cannot be told.

    The sizes decide; large-v1 and large-v2 are alike in them, so there the file's name does.
    A fine-tuned model keeps its parent's heads.
    """
    name = _by_size(dimensions)
    if name is None and (dimensions.n_text_layer, dimensions.n_text_head) == (32, 20):
        match = re.search(r"large-v[12]", file_name)
        name = match[0] if match else None
    return ALIGNMENT_HEADS[name] if name else None


def _by_size(dimensions: Dimensions) -> str | None:
    layers, heads = dimensions.n_text_layer, dimensions.n_text_head
    if dimensions.n_vocab == _V3_VOCABULARY:
        return {(32, 20): "large-v3", (4, 20): "large-v3-turbo"}.get((layers, heads))
    size = _SIZES.get((layers, heads))
    # A distilled model has fewer decoder layers than encoder layers, and other heads.
    if size is None or dimensions.n_audio_layer != layers:
        return None
    return f"{size}.en" if dimensions.n_vocab == _ENGLISH_VOCABULARY else size
