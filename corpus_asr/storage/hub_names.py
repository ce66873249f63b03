"""The names under which well-known checkpoints of supported families lie on the hub.

In: a name as somebody typed it. Out: the known one that was probably meant. Asks nobody: any other
name may be right as well.
"""

import difflib

_WHISPER_SIZES = (
    "tiny", "tiny.en", "base", "base.en", "small", "small.en", "medium", "medium.en", "large",
    "large-v2", "large-v3", "large-v3-turbo",
)  # fmt: skip
KNOWN_NAMES = (
    *(f"openai/whisper-{size}" for size in _WHISPER_SIZES),
    *(f"distil-whisper/distil-{size}" for size in
      ("small.en", "medium.en", "large-v2", "large-v3", "large-v3.5")),
    *(f"facebook/s2t-{size}-librispeech-asr" for size in ("small", "medium", "large")),
    *(f"facebook/s2t-{size}-mustc-multilingual-st" for size in ("small", "medium")),
)  # fmt: skip
# Below this, names that are merely similar would be taken for misspelt ones.
_ALIKE = 0.75


def probably_meant(name: str) -> str | None:
    """Return the known name that another one resembles; None for known ones, and for others.

    Args:
        name: `openai/whisper-smal`, or as elsewhere without an owner: `whisper-small`, `large-v3`,
            `turbo`.
    """
    typed = name.strip().lower().replace("_", "-")
    short = {known.partition("/")[2]: known for known in KNOWN_NAMES}
    short |= {size: f"openai/whisper-{size}" for size in _WHISPER_SIZES}
    short["turbo"] = short["whisper-turbo"] = "openai/whisper-large-v3-turbo"
    spellings = {known: known for known in KNOWN_NAMES} | short
    begun = [known for known in KNOWN_NAMES if known.startswith(typed)]
    near = difflib.get_close_matches(typed, spellings, n=1, cutoff=_ALIKE) or begun
    meant = spellings[near[0]] if near else None
    return None if meant == name else meant
