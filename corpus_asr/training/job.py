"""One training from its settings to its model, in one process or several, and its error rates.

The output folder, at any address:

checkpoints/step-00000200/state.safetensors   trained weights and optimizer state
checkpoints/step-00000200/state.json          written last: the checkpoint is whole
model/                                        a checkpoint in Hugging Face layout
adapter/                                      LoRA: the adapters alone, in PEFT's layout
log.jsonl                                     one line per step or evaluation
report.html                                   learning curves
"""

import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from corpus_asr.config.finetune import EvaluationSettings, FinetuneConfig, WindowSettings
from corpus_asr.decoding.device import set_threads
from corpus_asr.errors import CheckpointError, ConfigError, EngineError
from corpus_asr.families.loading import resolve_device, resolve_dtype
from corpus_asr.families.model_config import CONFIG_NAME
from corpus_asr.families.registry import family_of
from corpus_asr.families.weights import stored_tensors
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.features.mel import log_mel
from corpus_asr.models.generation.whisper import WhisperForConditionalGeneration
from corpus_asr.models.lora import ADAPTER_CONFIG_NAME, LoraAdapters
from corpus_asr.models.whisper.processor import WhisperProcessor
from corpus_asr.report.accuracy.scoring import Errors, Hypothesis, Reference, score, total
from corpus_asr.report.html.training import training_page
from corpus_asr.scratch import scratch_folder
from corpus_asr.storage.model_files import fetch_checkpoint, full_name, model_revision
from corpus_asr.storage.run_state.run_files import PAGE_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import read_bytes, remove_folder, upload
from corpus_asr.storage.stores.uri import redact_uri, without_secrets
from corpus_asr.training.audio_cache import SUMMARY_NAME, AudioCache, prepare
from corpus_asr.training.examples import Examples, LabelWriter
from corpus_asr.training.logs import TrainingLogs, check_trackers
from corpus_asr.training.trainer import (
    Group,
    NamedAdamW,
    Objective,
    Record,
    Trainer,
    freeze,
)
from corpus_asr.training.utterances import utterances_in
from corpus_asr.training.windows import runs_of
from corpus_asr.units import WINDOW_SAMPLES

_NUM_EXAMPLES = 5  # texts in a line of the log
_WEIGHTS, _MOMENTS = "weights.", "moments."
# Settings that change no result, apart from rounding: they may differ when resuming.
_RESUMABLE: dict[str, Any] = {
    "output": True, "cluster": True,
    "evaluation": {"eval_steps", "per_device_eval_batch_size"},
    "model": {"device"},
    "data": {"cache", "endpoint_url", "workers"},
    "training": {
        "per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing",
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The result for one model; its fields are keys of log.jsonl."""

    windows: int
    wer: float | None
    """Word error rate; None if no reference has words."""
    cer: float | None
    hallucinated_words: int
    """Number of words in hypotheses of windows without speech."""
    examples: tuple[tuple[str, str], ...]
    """Reference and hypothesis of the first windows."""


class Evaluator:
    """Evaluates models on the same windows, decoded greedily.

    Texts are normalized by Whisper's normalizers, as in `corpus-asr evaluate`.
    """

    def __init__(
        self,
        cache: AudioCache,
        tokenizer: WhisperTokenizer,
        settings: EvaluationSettings,
        *,
        windows: WindowSettings,
        max_tokens: int,
    ) -> None:
        self._cache = cache
        self._tokenizer = tokenizer
        self._batch_size = settings.per_device_eval_batch_size
        self._windows = windows
        first, end = runs_of(cache, longest=WINDOW_SAMPLES, max_tokens=max_tokens)
        self._runs = list(zip(first.tolist(), end.tolist(), strict=True))[: settings.max_windows]

    @torch.no_grad()
    def __call__(self, network: WhisperForConditionalGeneration) -> Evaluation:
        """Decode all windows and compare."""
        network.eval()
        words, letters = Errors(), Errors()
        hallucinated = 0
        examples: list[tuple[str, str]] = []
        for language, reference, hypothesis in self._hypotheses(network):
            errors = score(
                Reference(uri="", text=reference, language=language),
                Hypothesis(text=hypothesis, language=language, duration_s=0.0),
            )
            words, letters = total([words, errors.words]), total([letters, errors.characters])
            hallucinated += 0 if reference else errors.words.insertions
            if len(examples) < _NUM_EXAMPLES:
                examples.append((reference, hypothesis))
        return Evaluation(
            windows=len(self._runs),
            wer=words.rate,
            cer=letters.rate,
            hallucinated_words=hallucinated,
            examples=tuple(examples),
        )

    def _hypotheses(
        self, network: WhisperForConditionalGeneration
    ) -> Iterator[tuple[str | None, str, str]]:
        # A model that is taught no timestamps cannot be asked for them.
        options: dict[str, Any] = {"return_timestamps": self._windows.timestamp_probability > 0}
        for runs in self._batches():
            language = self._cache.language(runs[0][0])
            features = np.stack([self._features(run, network) for run in runs])
            if self._tokenizer.is_multilingual:
                options |= {"language": language, "task": self._windows.task}
            ids = network.generate(
                torch.from_numpy(features).to(network.device, network.dtype), **options
            )
            texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
            for (first, end), hypothesis in zip(runs, texts, strict=True):
                reference = " ".join(filter(None, map(self._cache.text, range(first, end))))
                yield language, reference, hypothesis.strip()

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        # A batch has one prompt, and so one language.
        for _, group in groupby(self._runs, key=lambda run: self._cache.language(run[0])):
            runs = list(group)
            for first in range(0, len(runs), self._batch_size):
                yield runs[first : first + self._batch_size]

    def _features(
        self, run: tuple[int, int], network: WhisperForConditionalGeneration
    ) -> np.ndarray:
        begin, end = int(self._cache.start[run[0]]), self._cache.ends(slice(*run))
        samples = np.zeros(WINDOW_SAMPLES, np.float32)
        audio = self._cache.samples(begin, min(end, begin + WINDOW_SAMPLES))
        samples[: audio.size] = audio
        return log_mel(samples, num_mel_bins=network.config.num_mel_bins)


MODEL_FOLDER, ADAPTER_FOLDER = "model", "adapter"
LOG_NAME = "log.jsonl"
_FOLDER = "checkpoints"
_TENSORS_NAME, _SUMMARY_NAME = "state.safetensors", "state.json"


@dataclass(frozen=True, slots=True)
class State:
    """Where training stands."""

    tensors: dict[str, Tensor]
    account: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.account["step"])


class TrainingStore:
    """The output folder of one training."""

    def __init__(self, uri: str, *, endpoint_url: str | None, keep: int) -> None:
        self._store = OutputStore(uri, endpoint_url=endpoint_url)
        self.uri = self._store.uri
        self._keep = keep

    def check(self) -> None:
        """Refuse a folder of a run or of a data set, among whose files a model would be lost.

        Raises:
            ConfigError: it is one.
        """
        for name in self._store.all_names("_run"):
            raise ConfigError(
                f"training into {redact_uri(self.uri)}: found {name}, so that it is the folder of "
                "a run or of a data set, expected an empty one or that of a training; name another "
                "output.uri"
            )

    def latest(self) -> State | None:
        """Return the last whole checkpoint."""
        names = self._whole()
        if not names:
            return None
        folder = f"{_FOLDER}/{names[-1]}"
        try:
            account = json.loads(self._read(f"{folder}/{_SUMMARY_NAME}"))
            tensors = load(self._read(f"{folder}/{_TENSORS_NAME}"))
        except (ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"resuming from {redact_uri(self._store.address(folder))}: found a damaged "
                f"checkpoint ({error}); remove its folder to resume from the one before"
            ) from error
        return State(tensors, account)

    def save(self, state: State) -> None:
        """Write a checkpoint, then remove the oldest beyond those that stay."""
        folder = f"{_FOLDER}/step-{state.step:08}"
        with scratch_folder() as here:
            path = here / _TENSORS_NAME
            tensors = {name: t.detach().contiguous().cpu() for name, t in state.tensors.items()}
            save_file(tensors, path)
            self._upload(path, f"{folder}/{_TENSORS_NAME}")
        self._store.write_json(f"{folder}/{_SUMMARY_NAME}", state.account)
        first_kept = self._whole()[-self._keep :][0]
        parts = (_SUMMARY_NAME, _TENSORS_NAME)  # in this order: half a checkpoint is none
        ended = {name for name, part in self._files() if name < first_kept and part in parts}
        for name in sorted(ended):
            for part in parts:
                self._store.remove(f"{_FOLDER}/{name}/{part}")
            remove_folder(self._store.address(f"{_FOLDER}/{name}"))

    def save_folder(self, name: str, folder: Path, *, last: str) -> None:
        """Write the files of a local folder to the folder `name`."""
        # `last` marks the folder as whole for whoever loads it.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == last):
            self._upload(path, f"{name}/{path.name}")

    def log(self) -> list[dict[str, Any]]:
        """Return what was logged."""
        if not self._store.exists(LOG_NAME):
            return []
        return [json.loads(line) for line in self._read(LOG_NAME).decode().splitlines()]

    def write_log(self, rows: Sequence[Mapping[str, Any]], *, steps: int) -> None:
        """Replace the log, whose numbers that are none are null, and the page of its curves."""
        lines = (json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)
        self._store.write_bytes(LOG_NAME, "".join(lines).encode())
        page = training_page(redact_uri(self.uri), rows, steps=steps)
        self._store.write_bytes(PAGE_NAME, page.encode())

    def trackers(self, config: FinetuneConfig, *, done: int) -> TrainingLogs:
        """Open the trackers of the training, which has done so many steps."""
        return TrainingLogs(config, self._store, done=done)

    def _whole(self) -> list[str]:
        """Return the names of whole checkpoints, the oldest first."""
        return sorted(folder for folder, name in self._files() if name == _SUMMARY_NAME)

    def _files(self) -> Iterator[tuple[str, str]]:
        """Yield folder and name of each file of a checkpoint."""
        for path in self._store.all_names(_FOLDER):
            folder, name = path.split("/")[-2:]
            yield folder, name

    def _read(self, name: str) -> bytes:
        return read_bytes(self._store.address(name), self._store.options)

    def _upload(self, path: Path, name: str) -> None:
        upload(str(path), self._store.address(name), self._store.options)


def _finite(value: Any) -> Any:
    """Return a value as JSON can hold it, which knows no infinity."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Finetune:
    """Everything that one process holds while it trains.

    What is done is not done again: the same settings continue after the last checkpoint and end
    with the same model. The first process of a machine, of `local_rank` 0, prepares the audio.
    """

    def __init__(self, config: FinetuneConfig, *, group: Group, local_rank: int = 0) -> None:
        self._config = config
        self._group = group
        self._store = TrainingStore(
            config.output.uri,
            endpoint_url=config.output.endpoint_url,
            keep=config.output.save_total_limit,
        )
        if group.leads:
            check_trackers(config)
        self._device = resolve_device(config.model.device)
        if self._device.type == "cpu":
            set_threads()
        folder = fetch_checkpoint(config.model.checkpoint, revision=config.model.revision)
        self._revision = model_revision(folder)
        self._start_dtype = _stored_dtype(folder)
        self._student = self._load(folder)
        self._processor = WhisperProcessor.from_pretrained(folder)
        self._labels = LabelWriter(
            self._processor.tokenizer, max_tokens=self._student.config.max_target_positions
        )
        self.cache = self._prepared("train", local_rank)
        self._evaluator = None
        if config.data.validation:
            self._evaluator = Evaluator(
                self._prepared("validation", local_rank),
                self._processor.tokenizer,
                config.evaluation,
                windows=config.windows,
                max_tokens=self._labels.room,
            )
        self._objective = Objective(
            self._student,
            label_smoothing=config.training.label_smoothing_factor,
            distillation=config.distillation,
            teacher=self._teacher(),
        )
        self._adapters = None
        if config.lora.rank is None:
            trained = freeze(self._student, config.model.freeze)
        else:
            self._adapters = LoraAdapters(self._student, config.lora, seed=config.training.seed)
            trained = self._adapters.parameters
        self._optimizer = NamedAdamW(trained, config.training)
        self._best: float | None = None

    def run(self) -> Iterator[Record | Evaluation]:
        """Train and write the model; yields what happens."""
        done = self._resumed()
        settings = self._config
        if not self._group.leads or done == settings.training.max_steps:
            trackers = None
        else:
            trackers = self._store.trackers(settings, done=done)
        try:
            yield from self._steps(done, trackers)
        finally:
            if trackers is not None:
                trackers.close()
        if self._best is None or settings.evaluation.keep == "last":
            self._save_model()
        self._group.wait()

    def _steps(self, done: int, trackers: TrainingLogs | None) -> Iterator[Record | Evaluation]:
        # Steps after the last checkpoint are done again, and logged again.
        log = [row for row in self._store.log() if row["step"] <= done]
        settings = self._config
        if done == 0:
            yield from self._evaluated(0, log)
            if trackers is not None and log:
                trackers.log(log)
        for record in self._trainer().run(done):
            first = len(log)
            log.append(asdict(record))
            yield record
            last = record.step == settings.training.max_steps
            if last or record.step % settings.evaluation.eval_steps == 0:
                yield from self._evaluated(record.step, log)
            # Before the checkpoint: what a tracker has twice can be seen, what it misses cannot.
            if trackers is not None:
                trackers.log(log[first:])
            if last or record.step % settings.output.save_steps == 0:
                self._save(record.step, log)

    def _load(self, folder: Path) -> WhisperForConditionalGeneration:
        if family_of(folder).model_type != "whisper":
            raise CheckpointError(
                f"loading {redact_uri(str(folder))} to train it: found a "
                f"{family_of(folder).model_type}, expected a Whisper: only these can be trained "
                "here; name one, or train this one with transformers"
            )
        dropout = self._config.model.dropout
        changed: dict[str, Any] = {} if dropout is None else {"dropout": dropout}
        network: WhisperForConditionalGeneration
        network = WhisperForConditionalGeneration.from_pretrained(
            folder,
            dtype=torch.float32,
            device=self._device,
            # Masks are drawn per window instead, so that they do not depend on micro-batches.
            apply_spec_augment=False,
            **changed,
        )
        if self._config.training.gradient_checkpointing:
            network.gradient_checkpointing_enable()
        return network

    def _prepared(self, name: str, local_rank: int) -> AudioCache:
        data = self._config.data
        folder = Path(data.cache) / name
        if local_rank == 0:
            prepare(
                utterances_in(data, name),
                folder,
                data,
                count_tokens=self._labels.count,
                max_tokens=self._labels.room - 2,
            )
        self._group.wait()
        cache = AudioCache.open(folder)
        self._check_same(cache, folder)
        for language in cache.languages():
            self._labels.check(language, task=self._config.windows.task)
        return cache

    def _check_same(self, cache: AudioCache, folder: Path) -> None:
        # They differ after a failure of a store on one machine; the sums over all show it.
        own = [float(len(cache)), float(cache.audio.size)]
        total = torch.tensor(own, dtype=torch.float64, device=self._device)
        self._group.add_up([total])
        if total.tolist() != [self._group.size * number for number in own]:
            raise EngineError(
                f"preparing {redact_uri(str(folder))}: found other utterances than on other "
                f"machines, expected the same; see {SUMMARY_NAME} there, remove the folder on all "
                "machines, and run again"
            )

    def _teacher(self) -> WhisperForConditionalGeneration | None:
        distillation = self._config.distillation
        if distillation.teacher is None:
            return None
        teacher: WhisperForConditionalGeneration
        teacher = WhisperForConditionalGeneration.from_pretrained(
            fetch_checkpoint(distillation.teacher, revision=distillation.revision),
            dtype=self._dtype,
            device=self._device,
        )
        return teacher

    @property
    def _dtype(self) -> torch.dtype:
        dtype = self._config.model.compute_type
        if dtype == "auto" and self._device.type == "cuda":
            # Never float16: its gradients underflow without loss scaling, which is not done here.
            dtype = "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
        return resolve_dtype(dtype, self._device)

    def _trainer(self) -> Trainer:
        config = self._config
        examples = Examples(
            self.cache,
            self._labels,
            windows=config.windows,
            augmentation=config.augmentation,
            num_mel_bins=self._student.config.num_mel_bins,
            seed=config.training.seed,
        )
        return Trainer(
            self._student,
            self._objective,
            self._optimizer,
            examples,
            config=config,
            dtype=self._dtype,
            padding=self._processor.tokenizer.eot,
            group=self._group,
        )

    def _trained(self) -> dict[str, torch.Tensor]:
        # Frozen weights are those of the start, and need no place in a checkpoint.
        return {f"{_WEIGHTS}{name}": p for name, p in self._optimizer.parameters.items()}

    @property
    def _settings(self) -> dict[str, Any]:
        config = self._config.model_dump(mode="json", exclude=_RESUMABLE)
        config["model"]["checkpoint"] = full_name(self._config.model.checkpoint)
        config["effective_batch_size"] = self._config.effective_batch_size
        return config

    @property
    def _fingerprint(self) -> str:
        content = [self._settings, self._revision, self.cache.summary["fingerprint"]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def _resumed(self) -> int:
        state = self._store.latest()
        if state is None:
            return 0
        if state.account["fingerprint"] != self._fingerprint:
            raise ConfigError(
                f"resuming in {redact_uri(self._store.uri)}: found the checkpoints of a training "
                f"with {_difference(state.account.get('settings'), _readable(self._settings))}, "
                "expected those of this one; name another output.uri, or remove that folder to "
                "start again"
            )
        with torch.no_grad():
            for name, parameter in self._trained().items():
                parameter.copy_(state.tensors[name])
        moments = {n: t for n, t in state.tensors.items() if n.startswith(_MOMENTS)}
        self._optimizer.restore({n.removeprefix(_MOMENTS): t for n, t in moments.items()})
        self._best = state.account["best"]
        return state.step

    def _save(self, step: int, log: list[dict[str, Any]]) -> None:
        if not self._group.leads:
            return
        moments = {f"{_MOMENTS}{n}": t for n, t in self._optimizer.state().items()}
        self._store.write_log(log, steps=self._config.training.max_steps)
        account = {
            "step": step,
            "best": self._best,
            "fingerprint": self._fingerprint,
            "settings": _readable(self._settings),
        }
        self._store.save(State({**self._trained(), **moments}, account))

    def _evaluated(self, step: int, log: list[dict[str, Any]]) -> Iterator[Evaluation]:
        if self._evaluator is None or not self._group.leads:
            return
        with self._merged():
            result = self._evaluator(self._student)
        log.append({"step": step, **asdict(result)})
        yield result
        if result.wer is not None and (self._best is None or result.wer < self._best):
            self._best = result.wer
            if self._config.evaluation.keep == "best":
                # The start is written as it was stored; trained weights need all of float32.
                self._save_model(self._start_dtype if step == 0 else torch.float32)

    def _merged(self) -> AbstractContextManager[None]:
        return nullcontext() if self._adapters is None else self._adapters.merged()

    def _save_model(self, dtype: torch.dtype = torch.float32) -> None:
        if not self._group.leads:
            return
        with scratch_folder() as here, self._merged():
            model, adapter = here / MODEL_FOLDER, here / ADAPTER_FOLDER
            weights = {name: t.to(dtype) for name, t in self._student.state_dict().items()}
            self._student.save_pretrained(model, state_dict=weights)
            self._processor.save_pretrained(model)
            self._store.save_folder(MODEL_FOLDER, model, last=CONFIG_NAME)
            if self._adapters is not None:
                base = redact_uri(full_name(self._config.model.checkpoint))
                self._adapters.save_pretrained(adapter, base=base)
                self._store.save_folder(ADAPTER_FOLDER, adapter, last=ADAPTER_CONFIG_NAME)


def _readable(settings: Mapping[str, Any], section: str = "") -> dict[str, str]:
    """Return settings as people write them, by their whole names, without secrets."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _readable(value, f"{section}{key}.")
        else:
            found[section + key] = without_secrets(json.dumps(value))
    return found


def _difference(before: Mapping[str, str] | None, now: Mapping[str, str]) -> str:
    """Say in what a training differs from one in the same folder."""
    changed = [f"{key}: {(before or {}).get(key)}, not {value}"
               for key, value in now.items() if before and before.get(key) != value]  # fmt: skip
    if changed:
        return f"other settings ({'; '.join(changed)})"
    what = "other data or another starting checkpoint"
    return what if before else f"other settings, {what}"


def _stored_dtype(folder: Path) -> torch.dtype:
    dtypes = [stored.dtype for stored in stored_tensors(folder).values()]
    # A file of several types is written in the one that holds all of them.
    return functools.reduce(torch.promote_types, [dtype for dtype in dtypes if dtype is not None])


def train(settings: dict[str, Any]) -> None:
    """Train as one process of several that `torch.distributed` connects."""
    config = FinetuneConfig.model_validate(settings)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if config.model.device in ("auto", "cuda"):
        # Without GPUs of their own, all of them would compute on the first one.
        device = _gpu(local_rank) if config.cluster.gpus_per_worker else "cpu"
        config = config.model_copy(
            update={"model": config.model.model_copy(update={"device": device})}
        )
    for _ in Finetune(config, group=Group.current(), local_rank=local_rank).run():
        pass


def _gpu(local_rank: int) -> str:
    if not torch.cuda.is_available():
        raise EngineError(
            "training on Ray: found no CUDA device in a worker that has a GPU, expected one; "
            "install a torch with CUDA on that machine, or set cluster.gpus_per_worker to 0"
        )
    # A worker may see its own GPU only, or those of all workers of its machine.
    number = local_rank % torch.cuda.device_count()
    torch.cuda.set_device(number)
    return f"cuda:{number}"
