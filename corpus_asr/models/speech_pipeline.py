"""The `pipeline` of transformers for speech: recordings in, texts out, in one call.

In: what `load_speech` takes, one or many. Out: dictionaries of `text` and, when asked for,
`chunks`. Parameter names, defaults and results are those of
`transformers.AutomaticSpeechRecognitionPipeline`, version 5.23; texts of recordings do not depend
on the batch they were in. For corpora there is `Transcriber` and the pipelines above it.
"""

import logging
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

import torch
from torch.utils.data import Dataset

from corpus_asr.families.loading import resolve_device
from corpus_asr.families.saved_files import SOURCE_OPTIONS
from corpus_asr.models.auto import (
    AutoFeatureExtractor,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
)
from corpus_asr.models.speech_call import SpeechCall, call_options

TASK = "automatic-speech-recognition"

logger = logging.getLogger(__name__)


class AutomaticSpeechRecognitionPipeline:
    """Transcribes recordings with one model.

    Args:
        model: the model.
        feature_extractor: its feature extractor; None takes the processor's.
        tokenizer: its tokenizer; None takes the processor's.
        processor: both.
        device: where the model goes; None leaves it where it is.
        task: its name.
        batch_size: chunks decoded together unless a call says otherwise; 1 by default.
        num_workers: recordings read ahead by threads; none by default.
        kwargs: defaults of every call.

    Raises:
        ValueError: there is no tokenizer or feature extractor.
    """

    def __init__(
        self,
        model: Any,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        processor: Any = None,
        device: Any = None,
        task: str = TASK,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.model = model
        # A tokenizer has a length, so it is asked for None, not for truth.
        self.feature_extractor: Any = _part(feature_extractor, processor, "feature_extractor")
        self.tokenizer: Any = _part(tokenizer, processor, "tokenizer")
        for name in ("feature_extractor", "tokenizer"):
            if getattr(self, name) is None:
                raise ValueError(
                    f"making a pipeline: found no {name}, expected one beside a model that is "
                    f"loaded already; pass {name}= or processor="
                )
        self.processor = processor
        self.task = task
        if device is not None:
            model.to(_device(device))
        self._batch_size = batch_size or 1
        self._num_workers = num_workers or 0
        self._defaults = kwargs

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The model's number type."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def __call__(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Transcribe one recording, a list of them, or as many as an iterator gives.

        Args:
            inputs: what `load_speech` takes; or a list, a data set or an iterator of such.
            batch_size: chunks decoded together.
            num_workers: recordings read ahead by threads.
            kwargs: `return_timestamps` (True for segments, `"word"` for words), `return_language`,
                `chunk_length_s`, `stride_length_s`, `ignore_warning`, `generate_kwargs`; all others
                are passed on to the model's `generate`, as are those of `generate_kwargs`.

        Returns:
            A dictionary of `text` and, with timestamps or languages, `chunks`; a list of such for a
            list; an iterator of such for anything longer.

        Raises:
            ItemError: a recording cannot be read.
            ValueError: a wrong option, or audio that is none.
            TypeError: `inputs` is no audio.
        """
        size = self._batch_size if batch_size is None else batch_size
        ahead = self._num_workers if num_workers is None else num_workers
        if size < 1 or ahead < 0:
            raise ValueError(
                f"transcribing: found batch_size {size} and num_workers {ahead}, expected at least "
                "1 and 0"
            )
        options = call_options(self._defaults, kwargs, self.model)
        call = SpeechCall(self.model, self.feature_extractor, self.tokenizer, options)
        if isinstance(inputs, list):
            return list(call.results(inputs, batch_size=size, ahead=ahead))
        if _is_stream(inputs):
            return call.results(_items(inputs), batch_size=size, ahead=ahead)
        return next(call.results([inputs], batch_size=size, ahead=0))

    def save_pretrained(self, save_directory: str | PathLike[str], **kwargs: Any) -> None:
        """Save the model, its tokenizer and its feature extractor into one folder.

        Args:
            save_directory: made if needed.
            kwargs: passed on to the model's `save_pretrained`.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.tokenizer.save_pretrained(save_directory)
        self.feature_extractor.save_pretrained(save_directory)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(model={type(self.model).__name__}, device={self.device}, "
            f"dtype={self.dtype})"
        )


def pipeline(
    task: str | None = None,
    model: Any = None,
    config: Any = None,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    processor: Any = None,
    revision: str | None = None,
    use_fast: bool = True,
    token: str | bool | None = None,
    device: Any = None,
    device_map: Any = None,
    dtype: Any = "auto",
    trust_remote_code: bool | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> AutomaticSpeechRecognitionPipeline:
    """Load what transcribes speech.

    Args:
        task: `automatic-speech-recognition`, or None.
        model: a folder, an address or a hub name; or a model that is loaded already.
        config: instead of the checkpoint's own.
        tokenizer: one that is loaded, or where it is; None takes the model's.
        feature_extractor: likewise.
        processor: both at once, loaded.
        revision: branch, tag or commit on the hub.
        use_fast: without meaning: there is one tokenizer.
        token: of the hub.
        device: `cpu`, `cuda`, `cuda:N`, or a GPU's number; -1 is the CPU. None takes the first GPU
            there is for a model that is loaded by name, and leaves other models where they are.
        device_map: as `from_pretrained` of the model takes it; instead of `device`.
        dtype: number type of the weights; `auto` takes the checkpoint's.
        trust_remote_code: without meaning: no code of a checkpoint is run.
        model_kwargs: further keywords of the model's `from_pretrained`.
        kwargs: `batch_size`, `num_workers`, `assistant_model` (a model or where it is),
            `torch_dtype` (the older name of `dtype`), and defaults of every call.

    Raises:
        ValueError: another task, no model, or options that exclude each other.
        CheckpointError: something cannot be loaded.
        ConfigError: there is no such device.
    """
    if task not in (None, TASK):
        raise ValueError(f"making a pipeline: found task {task!r}, expected {TASK!r}")
    if model is None:
        raise ValueError(
            "making a pipeline: found no model, expected a folder, an address, a hub name or a "
            "loaded model; pass model="
        )
    if device is not None and device_map is not None:
        raise ValueError(
            "making a pipeline: found device and device_map, expected one of them; drop the other"
        )
    dtype = kwargs.pop("torch_dtype", None) or dtype
    more = dict(model_kwargs or {})
    where = {"revision": revision, "token": token}
    where = {name: value for name, value in where.items() if value is not None}
    where |= {name: more.pop(name) for name in SOURCE_OPTIONS if name in more}
    name = model if isinstance(model, str | PathLike) else None
    if name is not None:
        options = {"dtype": dtype, "device_map": device_map, "config": config, **more, **where}
        model = AutoModelForSpeechSeq2Seq.from_pretrained(name, **options)
        device = 0 if device is None and device_map is None else device
    if kwargs.get("assistant_model") is not None:
        kwargs["assistant_model"] = _assistant(kwargs["assistant_model"], model, where)
    given = {"feature_extractor": feature_extractor, "tokenizer": tokenizer}
    parts = {
        role: _loaded(_part(part, processor, role), role, name, where)
        for role, part in given.items()
    }
    return AutomaticSpeechRecognitionPipeline(
        model,
        **parts,
        processor=processor,
        device=device,
        task=TASK,
        **kwargs,
    )


_LOADERS = {"feature_extractor": AutoFeatureExtractor, "tokenizer": AutoTokenizer}


def _part(given: Any, processor: Any, role: str) -> Any:
    """Return what was given, or the processor's; None where there is neither."""
    return getattr(processor, role, None) if given is None else given


def _loaded(part: Any, role: str, model_name: Any, where: Mapping[str, Any]) -> Any:
    """Load a part from where it is, or from where the model is."""
    part = model_name if part is None else part
    if isinstance(part, str | PathLike):
        return _LOADERS[role].from_pretrained(part, **(where if part == model_name else {}))
    return part


def _assistant(given: Any, model: Any, where: Mapping[str, Any]) -> Any:
    if not isinstance(given, str | PathLike):
        return given
    access = {key: value for key, value in where.items() if key not in ("revision", "subfolder")}
    assistant = AutoModelForSpeechSeq2Seq.from_pretrained(given, dtype=model.dtype, **access)
    return assistant.to(model.device)


def _device(device: Any) -> torch.device:
    """Turn what a caller said into a device; GPUs by number are the CPU where there is none.

    Raises:
        ConfigError: there is no such device.
    """
    if isinstance(device, int):
        if device >= 0 and torch.cuda.is_available():
            return resolve_device(f"cuda:{device}")
        if device > 0:
            logger.warning("device=cpu reason='no GPU of number %d'", device)
        return torch.device("cpu")
    return resolve_device(str(device))


def _is_stream(inputs: Any) -> bool:
    """Tell many recordings from one."""
    if hasattr(inputs, "__next__") or isinstance(inputs, Dataset):
        return True
    one = (str, bytes, bytearray, tuple, Mapping, PathLike)
    if isinstance(inputs, one) or hasattr(inputs, "dtype") or hasattr(inputs, "get_all_samples"):
        return False
    return hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")


def _items(inputs: Any) -> Iterator[Any]:
    # Data sets need not end by an IndexError, by which a plain loop would stop.
    if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):
        return (inputs[i] for i in range(len(inputs)))
    return iter(inputs)
