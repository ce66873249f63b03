"""Selects device and data type, and loads a checkpoint in its form for decoding.

No benchmark is run: the choice must be the same for all runs on a machine.
"""

import logging
import platform
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from corpus_asr.decoding.device import return_freed_memory
from corpus_asr.decoding.kernels import reads_float8
from corpus_asr.decoding.one_pass import LoadedRecognizer
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.errors import ConfigError, CorpusAsrError, EngineError
from corpus_asr.families.layers.projection import can_use_int8
from corpus_asr.families.registry import Family, family_of, recognizer_class, resolve
from corpus_asr.units import WINDOW_FRAMES

logger = logging.getLogger(__name__)

FLOAT8_NAME = "float16_fp8"
COMPUTE_DTYPES = {
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
}  # fmt: skip
# Types that files may have, but that are not used for decoding.
DTYPES = {**COMPUTE_DTYPES, "float64": torch.float64}
_OTHER_NAMES = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}


def resolve_device(name: str) -> torch.device:
    """Convert `auto`, `cpu`, `cuda` or `cuda:N` to a device; raises ConfigError."""
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"auto|cuda(?::(\d+))?", name)
    if match is None:
        raise ConfigError(
            f"choosing a device: found {name!r}, expected auto, cpu, cuda or cuda:N; correct it"
        )
    available, why = _cuda()
    # The fallback of a CUDA build is logged, as it is rarely intended.
    if name == "auto" and not available:
        if why and torch.version.cuda is not None:
            logger.warning("the model runs on the CPU, since CUDA cannot be used%s", why)
        return torch.device("cpu")
    count = torch.cuda.device_count() if available else 0
    index = int(match[1] or 0)
    if index >= count:
        raise ConfigError(
            f"choosing device {name!r}: torch {torch.__version__} sees {count} CUDA devices here"
            f"{why}; set the device to auto or cpu, or check the driver (nvidia-smi) and "
            "CUDA_VISIBLE_DEVICES"
        )
    return torch.device("cuda", index)


def check_cuda(name: str) -> None:
    """Check that this machine's GPU is usable, for a worker with an assigned GPU.

    Raises:
        EngineError: names the machine and torch's reason.
    """
    available, why = _cuda()
    if not available:
        raise EngineError(
            f"loading a model on {platform.node()}: found no CUDA device for {name} (torch "
            f"{torch.__version__}){why}; check the driver (nvidia-smi) and that torch is a CUDA "
            "build, or set model.device: cpu"
        )


def _cuda() -> tuple[bool, str]:
    """Return whether CUDA is usable, and torch's reason if not."""
    # torch reports an old driver only in a warning, which the error's message would lack.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available and torch.version.cuda is None and torch.version.hip is None:
        return False, ", since it was built without CUDA: pip install torch for CUDA instead"
    return available, "".join(f" ({w.message})" for w in caught[:1]).replace("\n", " ")


class Precision(NamedTuple):
    """Numeric precision of a model."""

    dtype: torch.dtype
    int8: bool = False
    """Whether products use 8-bit integers."""
    float8_windows: bool = False
    """Whether keys and values of windows are stored in 8 bits."""


def resolve_precision(name: str, device: torch.device, *, wide: bool = False) -> Precision:
    """Return the precision for `auto`, `int8`, `float16_fp8` or a type's name on a device.

    `auto` is the type of `resolve_dtype`, which explains `wide`, but `int8` on CPUs without
    bfloat16 where it is fast, and windows are in 8 bits on GPUs that read 8-bit floats.
    """
    if name == FLOAT8_NAME:
        if device.type != "cuda":
            raise ConfigError(
                f"choosing compute type {name}: found {device_name(device)}, expected a GPU; set "
                "compute_type to auto or int8"
            )
        if wide:
            raise ConfigError(
                f"choosing compute type {name}: found a checkpoint with values beyond float16, "
                "expected a Whisper or Speech2Text; set compute_type to auto or bfloat16"
            )
        return Precision(torch.float16, float8_windows=True)
    if name == "auto":
        dtype = resolve_dtype(name, device, wide=wide)
        if device.type == "cpu":
            return Precision(dtype, int8=dtype == torch.float32 and can_use_int8())
        # On an H200 a step of large-v3 takes 5.0 ms, not 6.6, and no word differs from float32.
        return Precision(dtype, float8_windows=not wide and reads_float8(device))
    if name != "int8":
        return Precision(resolve_dtype(name, device))
    if device.type != "cpu":
        raise ConfigError(
            f"choosing dtype int8: found {device_name(device)}, expected a CPU; set the dtype to "
            "auto or float16"
        )
    if not can_use_int8():
        raise ConfigError(
            "choosing dtype int8: found no fast 8-bit products, expected AVX-512 VNNI (oneDNN) or "
            "AVX2 (FBGEMM) in this processor and torch; set the dtype to auto"
        )
    return Precision(_cpu_dtype(), int8=True)


def resolve_dtype(name: str, device: torch.device, *, wide: bool = False) -> torch.dtype:
    """Convert `auto`, `float32`, `float16` or `bfloat16` to a type for `device`.

    `auto` is float16 on CUDA, for `wide` values bfloat16 where it is native; on CPUs bfloat16 if
    they support it natively and float32 otherwise.
    """
    # GPUs before Ampere emulate bfloat16, but support float16.
    emulated = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto" and device.type == "cuda":
        return torch.bfloat16 if wide and not emulated else torch.float16
    if name == "auto":
        return _cpu_dtype()
    if name not in COMPUTE_DTYPES:
        names = ", ".join(COMPUTE_DTYPES)
        meant = _OTHER_NAMES.get(name.lower())
        hint = f"; did you mean {meant}?" if meant else "; correct it"
        raise ConfigError(
            f"choosing a compute type: found {name!r}, expected auto, int8, {FLOAT8_NAME}, "
            f"{names}{hint}"
        )
    if name == "bfloat16" and emulated:
        raise ConfigError(
            f"choosing compute type bfloat16: {device_name(device)} has no bfloat16 arithmetic; "
            "set compute_type to auto or float16"
        )
    return COMPUTE_DTYPES[name]


def _cpu_dtype() -> torch.dtype:
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.float32
    # Tests a product of two small matrices: CPU flags can be wrong, mainly in emulators.
    generator = torch.Generator().manual_seed(0)
    left_matrix, right_matrix = (torch.randn(64, 64, generator=generator) for _ in range(2))
    exact = left_matrix @ right_matrix
    product = (left_matrix.bfloat16() @ right_matrix.bfloat16()).float()
    # bfloat16 has 8 bits: correct products differ by 0.3 %, wrong ones by far more.
    right_enough = bool((product - exact).norm() <= 0.02 * exact.norm())
    return torch.bfloat16 if right_enough else torch.float32


def device_name(device: torch.device) -> str:
    """Return the device's name for tables: `cpu`, or `cuda:NVIDIA H200`."""
    return f"cuda:{torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def load_recognizer(
    family: Family, checkpoint: str | None, *, device: str, dtype: str
) -> LoadedRecognizer:
    """Load a model that processes a window once; `checkpoint` is passed to its `load`.

    Raises:
        ConfigError: its class cannot be imported.
        EngineError: it cannot be loaded.
    """
    where = resolve_device(device)
    model = recognizer_class(family)
    try:
        loaded = model.load(checkpoint, device=str(where), compute_type=dtype)
    except CorpusAsrError:
        raise
    except Exception as error:  # of a custom model
        raise EngineError(
            f"loading the recognizer {family.recognizer} with {checkpoint!r} on {where}: "
            f"{type(error).__name__}: {error}; correct its method load, or model.checkpoint"
        ) from error
    logger.info("recognizer=%s checkpoint=%s device=%s", family.recognizer, checkpoint, where)
    return LoadedRecognizer(recognizer=loaded, device=where)


def load_model(folder: Path, *, device: str, dtype: str) -> SlotModel | LoadedRecognizer:
    """Load a checkpoint folder as a slot model or recognizer, depending on its family."""
    family = family_of(folder)
    if family.recognizer is None:
        return load_slot_model(folder, device=device, dtype=dtype)
    return load_recognizer(family, str(folder), device=device, dtype=dtype)


def load_slot_model(folder: Path, *, device: str, dtype: str) -> SlotModel:
    """Load a checkpoint folder for windows of 30 s, or less if the model's are shorter."""
    where = resolve_device(device)
    family = family_of(folder)
    weights_dtype, int8, float8_windows = resolve_precision(dtype, where, wide=family.wide)
    assert family.slot_model is not None, "others are loaded as recognizers"
    network = resolve(family.slot_model)
    # No other reference to the network exists: parts that are not shared are freed immediately.
    slot_model: Any = network.from_pretrained(folder, dtype=weights_dtype, device=where).slot_model(
        int8=int8, consume=True
    )
    slot_model.float8_windows = float8_windows
    return_freed_memory()
    logger.info(
        "model=%s device=%s dtype=%s weights=%s", folder.name, where, dtype, slot_model.dtype
    )
    if hasattr(slot_model, "for_windows"):  # shorter windows take less memory
        slot_model = slot_model.for_windows(min(WINDOW_FRAMES, slot_model.window_frames))
    fitted: SlotModel = slot_model
    return fitted


def load_classifier(folder: Path, *, device: str, dtype: str) -> LoadedRecognizer:
    """Load an audio classifier's checkpoint folder as a model that scores windows."""
    where = resolve_device(device)
    family = family_of(folder)
    in_8_bits = dtype in ("int8", FLOAT8_NAME)
    if family.audio_classifier is None or in_8_bits:
        description = dtype if in_8_bits else f"the family {family.model_type}"
        raise ConfigError(
            f"loading {folder.name} as a classifier: found {description}, expected a "
            "WhisperForAudioClassification in a floating-point type; set model.compute_type to "
            "auto, or use another checkpoint"
        )
    weights_dtype = resolve_dtype(dtype, where)
    model = resolve(family.audio_classifier).from_pretrained(
        folder, dtype=weights_dtype, device=where
    )
    logger.info("classifier=%s device=%s dtype=%s", folder.name, where, weights_dtype)
    return LoadedRecognizer(recognizer=model, device=where, check=model.check)
