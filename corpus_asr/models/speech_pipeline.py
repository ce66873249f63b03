"""The `pipeline` of transformers 5.23 for speech: recordings in, texts out, in one call."""

import copy
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corpus_asr.array_types import Float32
from corpus_asr.families.loading import resolve_device
from corpus_asr.families.saved_files import take_source
from corpus_asr.models.auto import (
    AutoFeatureExtractor,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
)
from corpus_asr.models.feature_extraction import speech_rows

TASK = "automatic-speech-recognition"

logger = logging.getLogger(__name__)

# What a pipeline adds where neither the caller nor the checkpoint says anything.
# Source: `transformers.AutomaticSpeechRecognitionPipeline._default_generation_config`.
_DEFAULTS = {"max_new_tokens": 256, "num_beams": 5}

# Of the pipeline of transformers, which cuts recordings and merges their texts; here recordings of
# any length are read window by window.
_WITHOUT_EFFECT = ("chunk_length_s", "stride_length_s", "ignore_warning")
_OF_PIPELINE = ("generate_kwargs", "return_timestamps", "return_language", *_WITHOUT_EFFECT)
_MAX_CHANNELS = 2
_FULL_SCALE = 32_768  # of int16


class AutomaticSpeechRecognitionPipeline:
    """Transcribes recordings with one model.

    Feature extractor and tokenizer come from the `processor` where they are None, and a `device` of
    None leaves the model where it is. `kwargs` are defaults of every call.
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
        # A tokenizer has a length, so it is compared with None.
        self.feature_extractor: Any = _part(feature_extractor, processor, "feature_extractor")
        self.tokenizer: Any = _part(tokenizer, processor, "tokenizer")
        for name in ("feature_extractor", "tokenizer"):
            if getattr(self, name) is None:
                raise ValueError(
                    f"making a pipeline: found no {name}, expected one with a loaded model; pass "
                    f"{name}= or processor="
                )
        self.processor = processor
        self.task = task
        if device is not None:
            model.to(_device(device))
        self._batch_size = batch_size or 1
        self.defaults = kwargs

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the model."""
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
        """Transcribe one recording, or a list of them.

        A recording is a path or URI (local, http(s), s3, ...); the bytes of a file; an array or
        tensor of samples at 16 kHz, float in -1 to 1 or int16, one row per channel if it has two
        dimensions; a row of a data set; or a dictionary with `raw` or `array` and `sampling_rate`.
        Returns a dictionary of `text` and, with timestamps, `chunks`; a list of such for a list,
        and an iterator for other iterables, of which a batch at a time is read.

        Args:
            inputs: one recording, a list, or another iterable, such as a generator or a data set.
            batch_size: recordings of up to 30 s that are decoded together.
            num_workers: without effect.
            kwargs: `return_timestamps` (True for segments, `"word"` for words) and
                `generate_kwargs`; `chunk_length_s` and `stride_length_s` have no effect; all others
                are passed on to the model's `generate`, as are those of `generate_kwargs`.

        Raises:
            ItemError: a recording cannot be read.
            TypeError: an option is one of transformers' own pipeline alone.
            ValueError: the samples are none, or an option has another value.
        """
        size = self._batch_size if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"transcribing: found batch_size {size}, expected at least 1")
        timestamps = {**self.defaults, **kwargs}.get("return_timestamps")
        # Some checkpoints request timestamps themselves.
        timestamps = timestamps or getattr(self.model.generation_config, "return_timestamps", None)
        if timestamps not in (None, False, True, "word"):
            raise ValueError(
                f"transcribing: found return_timestamps={timestamps!r}, expected True for "
                "segments or 'word' for words; change it"
            )
        if timestamps and not self._is_whisper:
            raise ValueError(
                "transcribing: found return_timestamps, expected none for a model without "
                "timestamps; remove it, or choose a Whisper model"
            )
        keywords = _generate_keywords(self.defaults) | _generate_keywords(kwargs)
        is_iterable = _is_iterable(inputs)
        texts = self._all_texts(inputs if is_iterable else [inputs], size, keywords, timestamps)
        if not is_iterable:
            return next(texts)
        return list(texts) if isinstance(inputs, list) else texts

    def _all_texts(
        self,
        recordings: Iterable[Any],
        size: int,
        keywords: Mapping[str, Any],
        timestamps: bool | str | None,
    ) -> Iterator[dict[str, Any]]:
        remaining = iter(recordings)
        while batch := list(islice(remaining, size)):
            yield from self._texts(batch, keywords, timestamps)

    @property
    def _is_whisper(self) -> bool:
        return bool(self.model.config.model_type == "whisper")

    def save_pretrained(self, save_directory: str | PathLike[str], **kwargs: Any) -> None:
        """Save all parts into one folder; `kwargs` are those of the model's `save_pretrained`."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.tokenizer.save_pretrained(save_directory)
        self.feature_extractor.save_pretrained(save_directory)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(model={type(self.model).__name__}, device={self.device}, "
            f"dtype={self.dtype})"
        )

    def _texts(
        self, recordings: Sequence[Any], keywords: Mapping[str, Any], timestamps: bool | str | None
    ) -> list[dict[str, Any]]:
        # Those of one length together: none is padded for another, which would change its text.
        by_shape: dict[torch.Size, list[tuple[int, Any]]] = defaultdict(list)
        for number, recording in enumerate(recordings):
            inputs = self._features(samples_of(recording))
            by_shape[inputs.input_features.shape].append((number, inputs))
        texts: dict[int, dict[str, Any]] = {}
        for numbered in by_shape.values():
            numbers, rows = zip(*numbered, strict=True)
            texts.update(zip(numbers, self._decoded(rows, keywords, timestamps), strict=True))
        return [texts[number] for number in range(len(recordings))]

    def _features(self, samples: Float32[np.ndarray, " sample"]) -> Any:
        extractor, options = self.feature_extractor, {}
        if self._is_whisper and samples.size > extractor.n_samples:
            # All its frames, which `generate` decodes window by window.
            options = {"truncation": False, "padding": "longest"}
        return extractor(
            samples,
            sampling_rate=extractor.sampling_rate,
            return_tensors="pt",
            return_attention_mask=True,
            **options,
        )

    def _decoded(
        self, rows: Sequence[Any], keywords: Mapping[str, Any], timestamps: bool | str | None
    ) -> list[dict[str, Any]]:
        timed = {"return_timestamps": True} if timestamps else {}
        if timestamps == "word":
            timed |= {"return_token_timestamps": True, "return_segments": True}
        features = torch.cat([row.input_features for row in rows])
        with torch.no_grad():
            generated = self.model.generate(
                input_features=features.to(self.device, self.dtype),
                attention_mask=torch.cat([row.attention_mask for row in rows]).to(self.device),
                **self._with_defaults({**keywords, **timed}),
            )
        named = generated if isinstance(generated, Mapping) else {"sequences": generated}
        sequences = named["sequences"].cpu()
        # Several sequences of one recording are neighbors, the best first.
        per_row = len(sequences) // len(rows)
        return [self._text(named, sequences, row * per_row, timestamps) for row in range(len(rows))]

    def _with_defaults(self, keywords: dict[str, Any]) -> dict[str, Any]:
        # Source: `transformers.Pipeline._prepare_generate_kwargs`.
        config = keywords.get("generation_config")
        chosen = {*_set_names(self.model.generation_config), *_set_names(config), *keywords}
        added: dict[str, Any] = {**_DEFAULTS, "pad_token_id": self.tokenizer.pad_token_id}
        if "max_length" in chosen:  # a default would override it
            del added["max_new_tokens"]
        added = {
            name: value for name, value in added.items() if name not in chosen and value is not None
        }
        if config is None:
            return keywords | added
        config = copy.deepcopy(config)
        config.update(**added)
        return keywords | {"generation_config": config}

    def _text(
        self, named: Mapping[str, Any], sequences: Tensor, row: int, timestamps: bool | str | None
    ) -> dict[str, Any]:
        if not self._is_whisper:
            return {"text": self.tokenizer.decode(sequences[row], skip_special_tokens=True)}
        output: dict[str, Any] = {"tokens": sequences[row : row + 1]}
        if timestamps == "word":
            spans = [segment["token_timestamps"] for segment in named["segments"][row]]
            output["token_timestamps"] = [torch.cat(spans).cpu() if spans else torch.zeros(0)]
        text, optional = self.tokenizer._decode_asr(
            [output],
            return_timestamps=timestamps or None,
            return_language=None,
            # Seconds of an encoder position, of which each timestamp token stands for one.
            time_precision=(
                self.feature_extractor.chunk_length / self.model.config.max_source_positions
            ),
        )
        return {"text": text, **optional}


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
        task: `automatic-speech-recognition`, the only one.
        model: a folder, a URI or a Hugging Face Hub model ID; or a model that is loaded already.
        config: instead of the checkpoint's own.
        tokenizer: loaded, or a folder, URI or model ID; None takes the model's.
        feature_extractor: the same.
        processor: both at once, loaded.
        revision: of the model on the hub.
        use_fast: without effect.
        token: of the hub.
        trust_remote_code: without effect; code of a checkpoint is never run.
        device: `cpu`, `cuda`, `cuda:N`, or a GPU's number; -1 is the CPU. None takes the first GPU
            there is for a model that is loaded by name, and leaves other models where they are.
        dtype: of the weights; `auto` takes the checkpoint's, with which a CPU computes in the type
            that is best there.
        device_map: an argument of the model's `from_pretrained`.
        model_kwargs: more of its arguments.
        **kwargs: `batch_size`, `num_workers`, `torch_dtype` (the older name of `dtype`), and
            defaults of every call.

    Raises:
        CheckpointError: something cannot be loaded.
        ConfigError: there is no such device.
        ValueError: it is another task, or there is no model.
    """
    if task not in (None, TASK):
        raise ValueError(f"making a pipeline: found task {task!r}, expected {TASK!r}")
    if model is None:
        raise ValueError(
            "making a pipeline: found no model, expected a folder, a URI, a Hub name or a loaded "
            "model; pass model="
        )
    if device is not None and device_map is not None:
        raise ValueError(
            "making a pipeline: found device and device_map, expected one of them; remove one"
        )
    dtype = kwargs.pop("torch_dtype", None) or dtype
    more = dict(model_kwargs or {})
    where = take_source({"revision": revision, "token": token}) | take_source(more)
    name = model if isinstance(model, str | PathLike) else None
    if name is not None:
        options = {"dtype": dtype, "device_map": device_map, "config": config, **more, **where}
        model = AutoModelForSpeechSeq2Seq.from_pretrained(name, **options)
        # The first GPU, or the CPU: transformers' default for models that it loads itself.
        device = 0 if device is None and device_map is None else device
    given_parts = {"feature_extractor": feature_extractor, "tokenizer": tokenizer}
    parts = {
        role: _loaded(_part(part, processor, role), role, name, where)
        for role, part in given_parts.items()
    }
    return AutomaticSpeechRecognitionPipeline(
        model, **parts, processor=processor, device=device, task=TASK, **kwargs
    )


def _is_iterable(inputs: Any) -> bool:
    """Tell whether inputs are several recordings: a list, a generator or a data set."""
    is_one = isinstance(inputs, str | bytes | bytearray | memoryview | Mapping | np.ndarray)
    is_one = is_one or any(hasattr(inputs, name) for name in ("detach", "read", "get_all_samples"))
    return not is_one and (isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__"))


def samples_of(recording: Any) -> Float32[np.ndarray, " sample"]:
    """Return the samples of a recording, at 16 kHz, of all channels mixed.

    Raises:
        FetchError: a file cannot be read.
        DecodeError: it holds no usable audio.
        ValueError: the samples are none.
    """
    if hasattr(recording, "detach"):  # a tensor, wherever it lives
        tensor = recording.detach().cpu()
        recording = (tensor if tensor.dtype == torch.int16 else tensor.float()).numpy()
    if isinstance(recording, np.ndarray):
        return _mono(recording)
    # Imported here, as the decoder is: a GPU image without them still takes arrays.
    from corpus_asr.audio.decode import open_audio
    from corpus_asr.audio.inputs import given_audio
    from corpus_asr.storage.stores.filesystem import open_binary

    audio = given_audio(recording, sampling_rate=None)
    with (
        audio.address() as address,
        open_binary(address) as file,
        open_audio(file, uri=audio.name) as decoder,
    ):
        samples: Float32[np.ndarray, " sample"] = np.concatenate(list(decoder), axis=1)[0]
    return samples


def _mono(values: np.ndarray) -> Float32[np.ndarray, " sample"]:
    if values.ndim not in (1, 2) or (values.ndim == 2 and len(values) > _MAX_CHANNELS):
        raise ValueError(
            f"reading audio: found an array of shape {values.shape}, expected (samples,) or "
            f"(channels, samples), at most {_MAX_CHANNELS} channels; transpose the array, or mix "
            "the channels"
        )
    if values.dtype == np.int16:
        values = values.astype(np.float32) / _FULL_SCALE
    mixed: Float32[np.ndarray, " sample"] = np.stack(speech_rows(values)).mean(axis=0)
    return mixed


_LOADERS = {"feature_extractor": AutoFeatureExtractor, "tokenizer": AutoTokenizer}


def _part(given: Any, processor: Any, role: str) -> Any:
    return getattr(processor, role, None) if given is None else given


def _loaded(part: Any, role: str, model_name: Any, where: Mapping[str, Any]) -> Any:
    part = model_name if part is None else part
    if isinstance(part, str | PathLike):
        # Revision, token and subfolder are for the model, not for other checkpoints.
        return _LOADERS[role].from_pretrained(part, **(where if part == model_name else {}))
    return part


def _device(device: Any) -> torch.device:
    if isinstance(device, int):
        # Numbers fall back to the CPU, names raise errors: 0 is the usual default of pipelines.
        if device >= 0 and torch.cuda.is_available():
            return resolve_device(f"cuda:{device}")
        if device > 0:
            logger.warning("device=cpu reason='no GPU of number %d'", device)
        return torch.device("cpu")
    return resolve_device(str(device))


def _set_names(config: Any) -> set[str]:
    values = {} if config is None else config.to_dict()
    return {name for name, value in values.items() if value is not None}


def _generate_keywords(options: Mapping[str, Any]) -> dict[str, Any]:
    if options.get("return_language"):
        raise TypeError(
            "transcribing: found return_language, expected no such option; remove it, or use "
            "transformers.pipeline, which takes this model and its processor"
        )
    if ignored := [name for name in _WITHOUT_EFFECT[:2] if options.get(name) is not None]:
        logger.info("ignored=%s reason='recordings of any length are read'", ",".join(ignored))
    named = options.get("generate_kwargs") or {}
    if not isinstance(named, Mapping):
        raise TypeError(
            f"transcribing: found generate_kwargs of type {type(named).__name__}, expected a "
            "dictionary of generate's keywords"
        )
    rest = {name: value for name, value in options.items() if name not in _OF_PIPELINE}
    return {**named, **rest}
