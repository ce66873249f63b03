"""One call of a speech pipeline: recordings to chunks, chunks to tokens, tokens to texts.

In: a model with its feature extractor and tokenizer, the keywords of the call, and recordings.
Out: one dictionary per recording, in order. Knows nothing of loading and of devices' names.
"""

import copy
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from corpus_asr.families.whisper.generation_config import GenerationConfig
from corpus_asr.models.speech_chunks import Chunk, Chunking, chunks_of
from corpus_asr.models.speech_input import load_speech

# What a pipeline adds where neither the caller nor the checkpoint says anything.
# Source: `transformers.AutomaticSpeechRecognitionPipeline._default_generation_config`.
_DEFAULTS = {"max_new_tokens": 256, "num_beams": 5}

# Keywords of `generate` itself, though settings may hold them too.
_OWN_KEYWORDS = {"language", "task", "is_multilingual", "return_timestamps"}
_SETTINGS = {field.name for field in fields(GenerationConfig)} - _OWN_KEYWORDS


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """The keywords of a call, sorted.

    Args:
        chunking: how recordings are cut.
        timestamps: None for text alone, True for segments, `word` for words.
        languages: whether languages are named.
        generate: keywords of the model's `generate`.
    """

    chunking: Chunking
    timestamps: bool | str | None
    languages: bool | None
    generate: Mapping[str, Any]


def call_options(defaults: Mapping[str, Any], given: Mapping[str, Any], model: Any) -> CallOptions:
    """Sort the keywords of a pipeline and of one call, which come before them.

    A `generation_config` in the call replaces the settings that the pipeline was made with.

    Raises:
        ValueError: timestamps that Whisper does not have, or chunks that cannot be.
        TypeError: `generate_kwargs` is no dictionary.
    """
    own = dict(defaults) | dict(given)
    timestamps = own.get("return_timestamps") or None
    timestamps = timestamps or getattr(model.generation_config, "return_timestamps", None) or None
    if timestamps not in (None, True, "word"):
        raise ValueError(
            f"transcribing: found return_timestamps={timestamps!r}, expected True for segments or "
            "'word' for words: Whisper times nothing else"
        )
    chunk_s, stride_s = own.get("chunk_length_s"), own.get("stride_length_s")
    chunking = Chunking(
        length_s=chunk_s, stride_s=tuple(stride_s) if isinstance(stride_s, Sequence) else stride_s
    )
    earlier, now = _generate_keywords(defaults), _generate_keywords(given)
    if now.get("generation_config") is not None:
        earlier = {name: value for name, value in earlier.items() if name not in _SETTINGS}
    return CallOptions(
        chunking=chunking,
        timestamps=timestamps,
        languages=own.get("return_language"),
        generate=earlier | now,
    )


def _generate_keywords(given: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in given.items() if name not in PIPELINE_KEYWORDS}
    named = given.get("generate_kwargs") or {}
    if not isinstance(named, Mapping):
        raise TypeError(
            f"transcribing: found generate_kwargs of type {type(named).__name__}, expected a "
            "dictionary of generate's keywords"
        )
    return {**named, **rest}


PIPELINE_KEYWORDS = (
    "chunk_length_s",
    "stride_length_s",
    "ignore_warning",
    "return_timestamps",
    "return_language",
    "generate_kwargs",
)
"""What a pipeline takes itself; every other keyword is `generate`'s."""


class SpeechCall:
    """Runs one call; made anew for each.

    Args:
        model: a model with `generate`.
        feature_extractor: of the checkpoint.
        tokenizer: of the checkpoint.
        options: of the call.
    """

    def __init__(
        self, model: Any, feature_extractor: Any, tokenizer: Any, options: CallOptions
    ) -> None:
        self._model = model
        self._extractor = feature_extractor
        self._tokenizer = tokenizer
        self._options = options

    def results(
        self, inputs: Iterable[Any], *, batch_size: int, ahead: int
    ) -> Iterator[dict[str, Any]]:
        """Yield one result per recording, as soon as its last chunk is decoded.

        Args:
            inputs: recordings; taken as needed, so there may be no end to them.
            batch_size: chunks decoded together, of whichever recordings.
            ahead: recordings read ahead by as many threads.

        Raises:
            ItemError: a recording cannot be read.
            ValueError: `generate` refuses its keywords, or a recording is no audio.
        """
        chunks = self._chunks_ahead(inputs, ahead) if ahead else self._chunks(inputs)
        heard: list[dict[str, Any]] = []
        while batch := list(islice(chunks, batch_size)):
            for chunk, output in zip(batch, self._decode(batch), strict=True):
                heard.append(output)
                if chunk.is_last:
                    yield self._text(heard, chunk.extra)
                    heard = []

    def _chunks(self, inputs: Iterable[Any]) -> Iterator[Chunk]:
        for one in inputs:
            yield from self._chunks_of(one)

    def _chunks_ahead(self, inputs: Iterable[Any], ahead: int) -> Iterator[Chunk]:
        waiting: deque[Future[list[Chunk]]] = deque()
        source = iter(inputs)
        with ThreadPoolExecutor(ahead) as pool:
            while True:
                for one in islice(source, ahead - len(waiting)):
                    waiting.append(pool.submit(lambda given: list(self._chunks_of(given)), one))
                if not waiting:
                    return
                yield from waiting.popleft().result()

    def _chunks_of(self, one: Any) -> Iterator[Chunk]:
        return chunks_of(
            load_speech(one),
            self._extractor,
            chunking=self._options.chunking,
            dtype=self._model.dtype,
        )

    def _decode(self, batch: Sequence[Chunk]) -> list[dict[str, Any]]:
        """Decode chunks; those of one length together, so that none is padded for another."""
        outputs: dict[int, dict[str, Any]] = {}
        by_frames: dict[int, list[int]] = defaultdict(list)
        for i, chunk in enumerate(batch):
            by_frames[chunk.features.shape[-1]].append(i)
        for indices in by_frames.values():
            found = self._generate([batch[i] for i in indices])
            outputs.update(zip(indices, found, strict=True))
        return [outputs[i] for i in range(len(batch))]

    def _generate(self, batch: Sequence[Chunk]) -> list[dict[str, Any]]:
        options = self._options
        keywords = dict(options.generate)
        if options.timestamps:
            keywords["return_timestamps"] = True
        if options.timestamps == "word":
            keywords |= {"return_token_timestamps": True, "return_segments": True}
        if options.languages:
            keywords["return_segments"] = True
        device = self._model.device
        with torch.no_grad():
            found = self._model.generate(
                input_features=torch.cat([chunk.features for chunk in batch]).to(device),
                attention_mask=torch.cat([chunk.mask for chunk in batch]).to(device),
                **self._with_defaults(keywords),
            )
        return self._rows(found, batch)

    def _with_defaults(self, keywords: dict[str, Any]) -> dict[str, Any]:
        """Add what a pipeline adds where nobody said anything.

        Source: `transformers.Pipeline._prepare_generate_kwargs`.
        """
        config = keywords.get("generation_config")
        said = {*_said(self._model.generation_config), *_said(config), *keywords}
        added: dict[str, Any] = {
            **_DEFAULTS,
            "pad_token_id": self._tokenizer.pad_token_id,
        }
        if "max_length" in said:  # a default would override it
            del added["max_new_tokens"]
        added = {
            name: value for name, value in added.items() if name not in said and value is not None
        }
        if config is None:
            return keywords | added
        config = copy.deepcopy(config)
        config.update(**added)
        return keywords | {"generation_config": config}

    def _rows(self, found: Any, batch: Sequence[Chunk]) -> list[dict[str, Any]]:
        """Take what `generate` returned apart, chunk by chunk."""
        named = found if isinstance(found, Mapping) else {"sequences": found}
        sequences, segments = named["sequences"].cpu(), named.get("segments")
        # Several sequences of one chunk stand together, the best first.
        each = len(sequences) // len(batch)
        rows = []
        for i, chunk in enumerate(batch):
            row: dict[str, Any] = {"tokens": sequences[i * each : i * each + 1]}
            if self._options.timestamps == "word":
                row["token_timestamps"] = [self._token_times(named, segments, i * each)]
            if self._options.languages and segments is not None and segments[i * each]:
                row["tokens"] = self._with_language(row["tokens"], segments[i * each][0])
            if chunk.stride is not None:
                rate_hz = self._extractor.sampling_rate
                row["stride"] = tuple(samples / rate_hz for samples in chunk.stride)
            rows.append(row)
        return rows

    def _token_times(self, named: Any, segments: Any, index: int) -> Tensor:
        if segments is None:
            times: Tensor = named["token_timestamps"][index]
            return times.cpu()
        found = [segment["token_timestamps"] for segment in segments[index]]
        return torch.cat(found).cpu() if found else torch.zeros(0)

    def _with_language(self, tokens: Tensor, segment: Mapping[str, Any]) -> Tensor:
        """Put the language's token before the text, which `generate` returns without prompt."""
        result = segment["result"]
        prompt_and_text = result["sequences"] if isinstance(result, Mapping) else result
        config = self._options.generate.get("generation_config") or self._model.generation_config
        languages = set((getattr(config, "lang_to_id", None) or {}).values())
        named = [token for token in prompt_and_text.tolist() if token in languages]
        language = torch.tensor([named[:1]], dtype=tokens.dtype)  # (1, 0 or 1)
        return torch.cat([language, tokens], dim=-1)

    def _text(self, heard: list[dict[str, Any]], extra: Mapping[str, Any]) -> dict[str, Any]:
        config = self._model.config
        text, optional = self._tokenizer._decode_asr(
            heard,
            return_timestamps=self._options.timestamps,
            return_language=self._options.languages,
            time_precision=self._extractor.chunk_length / config.max_source_positions,
        )
        more = {name: [value] * len(heard) for name, value in extra.items()}
        return {"text": text, **optional, **more}


def _said(config: Any) -> set[str]:
    """Name the settings that have a value."""
    if config is None:
        return set()
    return {name for name, value in config.to_dict().items() if value is not None}
