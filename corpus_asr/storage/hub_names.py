"""Short names of well-known checkpoints, as in `--model large-v3`, and the hub's names for them.

In: a name as somebody typed it. Out: the hub's name for it, or the known name that it resembles.
Looks for local folders; accesses no network.
"""

import difflib
from pathlib import Path

from corpus_asr.config.default_model import PACKAGED_CHECKPOINT

_WHISPER_SIZES = (
    "tiny", "tiny.en", "base", "base.en", "small", "small.en", "medium", "medium.en", "large",
    "large-v2", "large-v3", "large-v3-turbo",
)  # fmt: skip
_DISTILLED = ("small.en", "medium.en", "large-v2", "large-v3", "large-v3.5")
KNOWN_NAMES = (
    *(f"openai/whisper-{size}" for size in _WHISPER_SIZES),
    *(f"distil-whisper/distil-{size}" for size in _DISTILLED),
    *(f"facebook/s2t-{size}-librispeech-asr" for size in ("small", "medium", "large")),
    *(f"facebook/s2t-{size}-mustc-multilingual-st" for size in ("small", "medium")),
)  # fmt: skip
_BY_SIZE = {size: f"openai/whisper-{size}" for size in _WHISPER_SIZES} | {
    # As in openai-whisper, where `large` is the latest; openai/whisper-large is the first.
    "large": "openai/whisper-large-v3",
    "large-v1": "openai/whisper-large",
    "turbo": "openai/whisper-large-v3-turbo",
}
SHORT_NAMES = _BY_SIZE | {f"distil-{size}": f"distil-whisper/distil-{size}" for size in _DISTILLED}
"""Hub names by the names that people know: `tiny.en`, `large-v3`, `turbo`, `distil-large-v3`."""

_PREFIXED = {f"whisper-{size}": name for size, name in _BY_SIZE.items()}
# Below this, names that are merely similar would be taken for misspelt ones.
_ALIKE = 0.75


def full_name(checkpoint: str) -> str:
    """Return the hub's name for a short one, and everything else as it is.

    Args:
        checkpoint: `large-v3` or `whisper-large-v3`. A local folder of such a name is that folder,
            and `PACKAGED_CHECKPOINT` is the one that comes with the package.
    """
    hub = hub_name(checkpoint)
    return checkpoint if hub is None or Path(checkpoint).is_dir() else hub


def hub_name(name: str) -> str | None:
    """Return the hub's name for a short one, whatever lies in the current folder."""
    return None if name == PACKAGED_CHECKPOINT else (SHORT_NAMES | _PREFIXED).get(name)


def probably_meant(name: str) -> str | None:
    """Return the known name that another one resembles; None for known ones, and for others.

    Args:
        name: `openai/whisper-smal`, or without an owner: `whisper_small`.
    """
    typed = name.strip().lower().replace("_", "-")
    ownerless = {known.partition("/")[2]: known for known in KNOWN_NAMES}
    usable = (*KNOWN_NAMES, *SHORT_NAMES, *_PREFIXED, PACKAGED_CHECKPOINT)
    spellings = ownerless | {known: known for known in usable}
    begun = [known for known in KNOWN_NAMES if known.startswith(typed)]
    near = difflib.get_close_matches(typed, spellings, n=1, cutoff=_ALIKE) or begun
    meant = spellings[near[0]] if near else None
    return None if meant == name else meant
