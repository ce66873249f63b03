"""The model that transcribes where none is named, and the line that says so; types it computes in.

Free of pydantic, so that a command line can import it for its help.
"""

from typing import Final, Literal

ComputeType = Literal["auto", "float32", "float16", "bfloat16", "int8", "float16_fp8"]

# Comes with the package, in int8.
PACKAGED_CHECKPOINT: Final = "whisper-tiny.en"


def default_model_notice(larger: str) -> str:
    """Say in one line which model transcribes, and how to choose a larger one."""
    return (
        f"model: {PACKAGED_CHECKPOINT}, the English model that comes with the package (39M "
        f"parameters); {larger} is more accurate, and multilingual"
    )
