"""Where a model runs and in which number type.

In: the words of the settings (`auto`, `cuda:1`, `bfloat16`). Out: torch's values for them, and a
device name for tables. Knows no model.
"""

import re

import torch

from corpus_asr.errors import ConfigError

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def resolve_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device of this machine.

    Raises:
        ConfigError: the name is none of these, or the machine has no such GPU.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    match = re.fullmatch(r"auto|cuda(?::(\d+))?", name)
    if match is None:
        raise ConfigError(f"choosing a device: found {name!r}, expected auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(match[1] or 0)
    if index >= count:
        raise ConfigError(
            f"choosing device {name!r}: torch {torch.__version__} sees {count} CUDA devices here; "
            f"set the device to auto or cpu, or check the driver and CUDA_VISIBLE_DEVICES"
        )
    return torch.device("cuda", index)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn `auto`, `float32`, `float16` or `bfloat16` into a type for `device`.

    `auto` is float16 on CUDA and float32 on CPUs, where float16 is slower than float32 and
    bfloat16 twice as fast but less exact.

    Raises:
        ConfigError: the name is none of these, or the GPU cannot compute in bfloat16.
    """
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise ConfigError(f"choosing a dtype: found {name!r}, expected auto, {', '.join(_DTYPES)}")
    dtype = _DTYPES[name]
    if (
        dtype == torch.bfloat16
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise ConfigError(
            f"choosing dtype bfloat16: {device_name(device)} has no bfloat16 arithmetic; "
            f"set the dtype to auto or float16"
        )
    return dtype


def device_name(device: torch.device) -> str:
    """Name the device as tables do: `cpu`, or `cuda:NVIDIA H200`."""
    if device.type != "cuda":
        return device.type
    return f"cuda:{torch.cuda.get_device_name(device)}"
