"""The `pipeline` of transformers 5.23 for speech: recordings in, texts out, in one call."""

import copy
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain, islice
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from corpus_asr.families.loading import resolve_device
from corpus_asr.families.saved_files import take_source
from corpus_asr.families.whisper.config import GenerationConfig
from corpus_asr.models.auto import (
    AutoFeatureExtractor,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
)
from corpus_asr.models.speech_input import Chunk, Chunking, chunks_of, load_speech

TASK = "automatic-speech-recognition"

logger = logging.getLogger(__name__)

# What a pipeline adds where neither the caller nor the checkpoint says anything.
# Source: `transformers.AutomaticSpeechRecognitionPipeline._default_generation_config`.
_DEFAULTS = {"max_new_tokens": 256, "num_beams": 5}

# Keywords of `generate` itself, though settings may hold them too.
_OWN_KEYWORDS = {"language", "task", "is_multilingual", "return_timestamps"}
_SETTINGS = {field.name for field in fields(GenerationConfig)} - _OWN_KEYWORDS


# What a pipeline takes itself; every other keyword is `generate`'s.
_PIPELINE_KEYWORDS = (
    "chunk_length_s",
    "stride_length_s",
    "ignore_warning",
    "return_timestamps",
    "return_language",
    "generate_kwargs",
)


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
        # A tokenizer has a length, so it is asked for None, not for truth.
        self.feature_extractor: Any = _part(feature_extractor, processor, "feature_extractor")
        self.tokenizer: Any = _part(tokenizer, processor, "tokenizer")
        for name in ("feature_extractor", "tokenizer"):
            if getattr(self, name) is None:
                raise ValueError(
                    f"making a pipeline: found no {name}, expected one with a model that is "
                    f"already loaded; pass {name}= or processor="
                )
        self.processor = processor
        self.task = task
        if device is not None:
            model.to(_device(device))
        self._batch_size = batch_size or 1
        self.defaults = kwargs

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
        """Transcribe what `load_speech` takes, or a list, a data set or an iterator of such.

        Returns a dictionary of `text` and, with timestamps or languages, `chunks`; a list of such
        for a list; an iterator of such for anything longer.

        Args:
            batch_size: chunks decoded together, of whichever recordings.
            num_workers: without effect; recordings are read as they are needed.
            kwargs: `return_timestamps` (True for segments, `"word"` for words), `return_language`,
                `chunk_length_s`, `stride_length_s`, `ignore_warning`, `generate_kwargs`; all others
                are passed on to the model's `generate`, as are those of `generate_kwargs`.

        Raises:
            ItemError: a recording cannot be read.
        """
        # Those of the call come first, as in the reference.
        size = self._batch_size if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"transcribing: found batch_size {size}, expected at least 1")
        call = _Call.of(self, kwargs)
        if isinstance(inputs, list):
            return list(call.results(inputs, batch_size=size))
        if _is_stream(inputs):
            return call.results(_items(inputs), batch_size=size)
        return next(call.results([inputs], batch_size=size))

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
        model: a folder, a URI or a Hugging Face Hub model ID; or a model that is loaded already.
        config: instead of the checkpoint's own.
        tokenizer: loaded, or a folder, URI or model ID; None takes the model's.
        feature_extractor: the same.
        processor: both at once, loaded.
        use_fast: without effect.
        trust_remote_code: without effect; code of a checkpoint is never run.
        device: `cpu`, `cuda`, `cuda:N`, or a GPU's number; -1 is the CPU. None takes the first GPU
            there is for a model that is loaded by name, and leaves other models where they are.
        dtype: of the weights; `auto` takes the checkpoint's, with which a CPU computes in the type
            that is best there.
        device_map: an argument of the model's `from_pretrained`.
        model_kwargs: more of its arguments.
        **kwargs: `batch_size`, `num_workers`, `assistant_model` (a model or where it is),
            `torch_dtype` (the older name of `dtype`), and defaults of every call.

    Raises:
        CheckpointError: something cannot be loaded.
        ConfigError: there is no such device.
    """
    if task not in (None, TASK):
        raise ValueError(f"making a pipeline: found task {task!r}, expected {TASK!r}")
    if model is None:
        raise ValueError(
            "making a pipeline: found no model, expected a folder, a URI, a hub name or a "
            "loaded model; pass model="
        )
    if device is not None and device_map is not None:
        raise ValueError(
            "making a pipeline: found device and device_map, expected one of them; drop the other"
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
    return getattr(processor, role, None) if given is None else given


def _loaded(part: Any, role: str, model_name: Any, where: Mapping[str, Any]) -> Any:
    part = model_name if part is None else part
    if isinstance(part, str | PathLike):
        # Revision, token and subfolder are the model's: they mean nothing for another checkpoint.
        return _LOADERS[role].from_pretrained(part, **(where if part == model_name else {}))
    return part


def _assistant(given: Any, model: Any, where: Mapping[str, Any]) -> Any:
    if not isinstance(given, str | PathLike):
        return given
    access = {key: value for key, value in where.items() if key not in ("revision", "subfolder")}
    assistant = AutoModelForSpeechSeq2Seq.from_pretrained(given, dtype=model.dtype, **access)
    assistant.stored_dtype = getattr(model, "stored_dtype", None)  # computes in the same
    return assistant.to(model.device)


def _device(device: Any) -> torch.device:
    if isinstance(device, int):
        # Numbers fall back to the CPU, where names are errors: 0 is what pipelines default to.
        if device >= 0 and torch.cuda.is_available():
            return resolve_device(f"cuda:{device}")
        if device > 0:
            logger.warning("device=cpu reason='no GPU of number %d'", device)
        return torch.device("cpu")
    return resolve_device(str(device))


def _is_stream(inputs: Any) -> bool:
    if hasattr(inputs, "__next__") or isinstance(inputs, Dataset):
        return True
    single = (str, bytes, bytearray, tuple, Mapping, PathLike)
    if isinstance(inputs, single) or hasattr(inputs, "dtype") or hasattr(inputs, "get_all_samples"):
        return False
    return hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")


def _items(inputs: Any) -> Iterator[Any]:
    # Data sets need not end by an IndexError, by which a plain loop would stop.
    if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):
        return (inputs[i] for i in range(len(inputs)))
    return iter(inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    pipe: AutomaticSpeechRecognitionPipeline
    chunking: Chunking
    timestamps: bool | str | None
    """None for text alone, True for segments, `word` for words."""
    languages: bool | None
    generate: Mapping[str, Any]

    @classmethod
    def of(cls, pipe: AutomaticSpeechRecognitionPipeline, given: Mapping[str, Any]) -> Self:
        defaults, own = pipe.defaults, {**pipe.defaults, **given}
        timestamps = own.get("return_timestamps") or None
        config = pipe.model.generation_config
        # Some checkpoints request timestamps themselves.
        timestamps = timestamps or getattr(config, "return_timestamps", None) or None
        if timestamps not in (None, True, "word"):
            raise ValueError(
                f"transcribing: found return_timestamps={timestamps!r}, expected True for segments "
                "or 'word' for words: Whisper times nothing else"
            )
        stride_s = own.get("stride_length_s")
        earlier, now = _generate_keywords(defaults), _generate_keywords(given)
        if now.get("generation_config") is not None:
            # It replaces the settings that the pipeline was made with.
            earlier = {name: value for name, value in earlier.items() if name not in _SETTINGS}
        return cls(
            pipe=pipe,
            chunking=Chunking(
                length_s=own.get("chunk_length_s"),
                stride_s=tuple(stride_s) if isinstance(stride_s, Sequence) else stride_s,
            ),
            timestamps=timestamps,
            languages=own.get("return_language"),
            generate=earlier | now,
        )

    def results(self, inputs: Iterable[Any], *, batch_size: int) -> Iterator[dict[str, Any]]:
        # Inputs are taken as needed, so there may be no end to them.
        chunks: Iterator[Chunk] = chain.from_iterable(map(self._chunks_of, inputs))
        outputs: list[dict[str, Any]] = []
        while batch := list(islice(chunks, batch_size)):
            for chunk, output in zip(batch, self._decode(batch), strict=True):
                outputs.append(output)
                if chunk.is_last:
                    yield self._text(outputs, chunk.extra)
                    outputs = []

    def _chunks_of(self, recording: Any) -> Iterator[Chunk]:
        speech, dtype = load_speech(recording), self.pipe.model.dtype
        return chunks_of(speech, self.pipe.feature_extractor, chunking=self.chunking, dtype=dtype)

    def _decode(self, batch: Sequence[Chunk]) -> list[dict[str, Any]]:
        # Chunks of one length together: none is padded for another, which would change its text.
        outputs: dict[int, dict[str, Any]] = {}
        by_frames: dict[int, list[int]] = defaultdict(list)
        for i, chunk in enumerate(batch):
            by_frames[chunk.features.shape[-1]].append(i)
        for indices in by_frames.values():
            rows = self._generate([batch[i] for i in indices])
            outputs.update(zip(indices, rows, strict=True))
        return [outputs[i] for i in range(len(batch))]

    def _generate(self, batch: Sequence[Chunk]) -> list[dict[str, Any]]:
        keywords = dict(self.generate)
        if self.timestamps:
            keywords["return_timestamps"] = True
        if self.timestamps == "word":
            keywords |= {"return_token_timestamps": True, "return_segments": True}
        if self.languages:
            keywords["return_segments"] = True
        device = self.pipe.model.device
        with torch.no_grad():
            generated = self.pipe.model.generate(
                input_features=torch.cat([chunk.features for chunk in batch]).to(device),
                attention_mask=torch.cat([chunk.mask for chunk in batch]).to(device),
                **self._with_defaults(keywords),
            )
        return self._rows(generated, batch)

    def _with_defaults(self, keywords: dict[str, Any]) -> dict[str, Any]:
        # Source: `transformers.Pipeline._prepare_generate_kwargs`.
        config = keywords.get("generation_config")
        chosen = {*_set_names(self.pipe.model.generation_config), *_set_names(config), *keywords}
        added: dict[str, Any] = {**_DEFAULTS, "pad_token_id": self.pipe.tokenizer.pad_token_id}
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

    def _rows(self, generated: Any, batch: Sequence[Chunk]) -> list[dict[str, Any]]:
        named = generated if isinstance(generated, Mapping) else {"sequences": generated}
        sequences, segments = named["sequences"].cpu(), named.get("segments")
        # Several sequences of one chunk are neighbors, the best first.
        each = len(sequences) // len(batch)
        rows = []
        for i, chunk in enumerate(batch):
            row: dict[str, Any] = {"tokens": sequences[i * each : i * each + 1]}
            if self.timestamps == "word":
                row["token_timestamps"] = [self._token_times(named, segments, i * each)]
            if self.languages and segments is not None and segments[i * each]:
                row["tokens"] = self._with_language(row["tokens"], segments[i * each][0])
            if chunk.stride is not None:
                rate_hz = self.pipe.feature_extractor.sampling_rate
                row["stride"] = tuple(samples / rate_hz for samples in chunk.stride)
            rows.append(row)
        return rows

    def _token_times(self, named: Any, segments: Any, index: int) -> Tensor:
        if segments is None:  # a forced unique call returns no segments
            times: Tensor = named["token_timestamps"][index]
            return times.cpu()
        spans = [segment["token_timestamps"] for segment in segments[index]]
        return torch.cat(spans).cpu() if spans else torch.zeros(0)

    def _with_language(self, tokens: Tensor, segment: Mapping[str, Any]) -> Tensor:
        # `generate` returns texts without prompts, in which the language is named.
        result = segment["result"]
        prompt_and_text = result["sequences"] if isinstance(result, Mapping) else result
        config = self.generate.get("generation_config") or self.pipe.model.generation_config
        languages = set((getattr(config, "lang_to_id", None) or {}).values())
        named = [token for token in prompt_and_text.tolist() if token in languages]
        language = torch.tensor([named[:1]], dtype=tokens.dtype)  # (1, 0 or 1)
        return torch.cat([language, tokens], dim=-1)

    def _text(self, outputs: list[dict[str, Any]], extra: Mapping[str, Any]) -> dict[str, Any]:
        positions = self.pipe.model.config.max_source_positions
        text, optional = self.pipe.tokenizer._decode_asr(
            outputs,
            return_timestamps=self.timestamps,
            return_language=self.languages,
            # Seconds of an encoder position, of which each timestamp token stands for one.
            time_precision=self.pipe.feature_extractor.chunk_length / positions,
        )
        # A list of the value for every chunk, odd as it looks: that is what the reference returns.
        more = {name: [value] * len(outputs) for name, value in extra.items()}
        return {"text": text, **optional, **more}


def _set_names(config: Any) -> set[str]:
    values = {} if config is None else config.to_dict()
    return {name for name, value in values.items() if value is not None}


def _generate_keywords(given: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in given.items() if name not in _PIPELINE_KEYWORDS}
    named = given.get("generate_kwargs") or {}
    if not isinstance(named, Mapping):
        raise TypeError(
            f"transcribing: found generate_kwargs of type {type(named).__name__}, expected a "
            "dictionary of generate's keywords"
        )
    return {**named, **rest}
