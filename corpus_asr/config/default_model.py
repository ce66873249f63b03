"""The model that transcribes where none is named, and the line that says so."""

from typing import Final

# Comes with the package, in int8.
PACKAGED_CHECKPOINT: Final = "whisper-tiny.en"


def default_model_notice(larger: str) -> str:
    """Say in one line which model transcribes, and how to choose a larger one."""
    return (
        f"model: {PACKAGED_CHECKPOINT}, the English model that comes with the package (39M "
        f"parameters); {larger} is more accurate, and multilingual"
    )
