"""Fine-tunes a checkpoint on datasets of `label`; writes checkpoints and the best model.

Input: Parquet files with `audio` and `text`, optionally `whisper_transcript`, `condition_on_prev`,
`language`, `task` and `speaker`. Output folder: `checkpoint-N` for resuming, `model` in Hugging
Face layout, and with LoRA `adapter` in PEFT layout. The training loop, precision, processes, logs
and trackers are those of transformers' `Seq2SeqTrainer`.
"""

import contextlib
import dataclasses
import fnmatch
import io
import json
import math
import random
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset

from corpus_asr.audio.decode import open_audio
from corpus_asr.config.finetune import FinetuneConfig, TrainingDataSettings
from corpus_asr.config.load import name_hint, resolved
from corpus_asr.decoding.device import set_threads
from corpus_asr.errors import ConfigError, install_words
from corpus_asr.families.pretrained import IGNORED_LABEL
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.labelling.writers import DATA_FOLDER
from corpus_asr.models.auto import AutoModelForSpeechSeq2Seq, AutoProcessor
from corpus_asr.report.scoring import Hypothesis, Reference, language_code, score, total
from corpus_asr.runtime.terminal import line_writer
from corpus_asr.storage.manifest import SPEAKER
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import SAMPLE_RATE_HZ, TIMESTAMP_STEP_S, WINDOW_S, WINDOW_SAMPLES, counted

try:
    import datasets
    import peft
    import transformers
except ImportError as error:
    raise ConfigError(
        f"training: {error.name} cannot be imported ({error}), expected that package; "
        f"{install_words('finetune')}"
    ) from error

MODEL_FOLDER, ADAPTER_FOLDER, SETTINGS_NAME = "model", "adapter", "finetune.json"
_STATE_NAME = "trainer_state.json"  # written last: marks a complete checkpoint
# Arguments determined by the data and the output folder.
_FIXED: dict[str, Any] = {"label_names": ["labels"], "remove_unused_columns": False}
_USUAL: dict[str, Any] = {
    "adam_beta2": 0.98, "learning_rate": 1e-5, "logging_steps": 10, "predict_with_generate": True,
    "report_to": "none", "save_total_limit": 2, "warmup_steps": 50,
}  # fmt: skip
_USUAL_STEPS = 200
_USUAL_TARGETS = ["q_proj", "v_proj"]
_TIMED = re.compile(r"<\|(\d+\.\d\d)\|>(.*?)<\|(\d+\.\d\d)\|>", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetuned:
    """Outcome of a training."""

    model_path: str
    steps: int
    kept_step: int
    """Step of the written model."""
    error_rates: tuple[tuple[int, float], ...]
    """Step and WER of each evaluation, from step 0; empty without validation data."""


def run(config: FinetuneConfig, *, progress: TextIO | None) -> Finetuned:
    """Run the remaining training steps, and write the model with the lowest WER, else the last one.

    Raises:
        ConfigError: an argument, the data or the output folder is unusable.
    """
    output = Path(config.output)
    arguments = _training_arguments(config)
    lora = None if config.lora is None else _lora_config(config.lora)
    with arguments.main_process_first():
        checkpoint = _last_checkpoint(output)
        _check_output(config, output, checkpoint)
    if checkpoint is None or not _is_finished(arguments, _state(checkpoint)):
        # Progress bars and logs go to stderr.
        with contextlib.redirect_stdout(sys.stderr):
            _train(config, arguments, lora, checkpoint, line_writer(progress))
    with arguments.main_process_first():  # which may still be writing its last checkpoint
        return _write_model(config, output, writes=arguments.process_index == 0)


def _training_arguments(config: FinetuneConfig) -> Any:
    kind = transformers.Seq2SeqTrainingArguments
    chosen = config.training or {}
    _check_arguments("training", chosen, kind, fixed={*_FIXED, "output_dir"})
    # A checkpoint per evaluation, since the best one must be saved.
    steps = chosen.get("eval_steps", chosen.get("save_steps", _USUAL_STEPS))
    evaluations = {
        "eval_strategy": "steps", "eval_steps": steps, "eval_on_start": True,
        "metric_for_best_model": "wer", "greater_is_better": False,
    }  # fmt: skip
    usual = {"save_steps": steps, "disable_tqdm": not sys.stderr.isatty(), **_USUAL}
    usual |= evaluations if config.data.validation else {}
    try:
        arguments = kind(**{**usual, **chosen, **_FIXED, "output_dir": config.output})
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"training: {error}; correct these arguments") from error
    if arguments.save_strategy == "no":
        raise ConfigError(
            "training.save_strategy: found no, expected steps or epoch, which save checkpoints; "
            "remove it"
        )
    return arguments


def _lora_config(chosen: Mapping[str, Any]) -> Any:
    _check_arguments("lora", chosen, peft.LoraConfig)
    try:
        return peft.LoraConfig(**{"target_modules": _USUAL_TARGETS, **chosen})
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"lora: {error}; correct these arguments") from error


def _check_arguments(
    section: str, chosen: Mapping[str, Any], kind: Any, *, fixed: Collection[str] = ()
) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    names = [f"{section}.{name}" for name in defaults if name not in fixed]
    for name, value in chosen.items():
        if f"{section}.{name}" not in names:
            hint = name_hint(name, names) or f"expected an argument of {kind.__name__}"
            raise ConfigError(f"{section}.{name}: unknown key; {hint}")
        default = defaults[name]
        if isinstance(default, bool) or not isinstance(default, int | float):
            continue  # transformers itself rejects an invalid choice
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{section}.{name}: found {value!r}, expected a number; correct it")


def _check_output(config: FinetuneConfig, output: Path, checkpoint: Path | None) -> None:
    stored, settings = OutputStore(config.output).read_json(SETTINGS_NAME), _identity(config)
    if stored is None:
        for path in output.iterdir() if output.is_dir() else ():
            raise ConfigError(
                f"training into {output}: found {path.name} without {SETTINGS_NAME}, expected an "
                "empty folder or that of a training; name another output"
            )
    elif checkpoint is not None and stored != settings:
        changed = [name for name, value in settings.items() if stored.get(name) != value]
        raise ConfigError(
            f"training into {output}: found a training with another {' and '.join(changed)}, "
            "expected the same; restore it to resume, or name another output"
        )


def _identity(config: FinetuneConfig) -> dict[str, Any]:
    """Return the settings that identify a training; its length may change."""
    return {name: resolved(config)[name] for name in ("model", "data", "lora")}


def _last_checkpoint(output: Path) -> Path | None:
    whole = [path.parent for path in output.glob(f"checkpoint-*/{_STATE_NAME}")]
    return max(whole, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / _STATE_NAME).read_text(encoding="utf-8"))
    return state


def _is_finished(arguments: Any, state: Mapping[str, Any]) -> bool:
    # The Trainer makes an extra step if it resumes a completed training.
    if arguments.max_steps > 0:
        return bool(state["global_step"] >= arguments.max_steps)
    has_epochs = state["num_train_epochs"] >= arguments.num_train_epochs
    return bool(has_epochs and state["global_step"] >= state["max_steps"])


class _EvaluateLast(transformers.TrainerCallback):  # type: ignore[misc]
    """Evaluates after the last step, regardless of `eval_steps`."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.eval_strategy == "steps" and state.global_step >= state.max_steps:
            control.should_evaluate = True


def _train(
    config: FinetuneConfig,
    arguments: Any,
    lora: Any,
    checkpoint: Path | None,
    say: Callable[[str], None],
) -> None:
    set_threads()
    transformers.set_seed(arguments.seed)  # for the initialization of adapters
    network, processor = _network(config), _processor(config)
    with arguments.main_process_first():  # other processes use its cache
        train = Examples(config.data, "train", processor, network.config)
        validation = Examples(config.data, "validation", processor, network.config)
    say(f"{counted(len(train), 'example')} to train on, {len(validation):,} to evaluate")
    _freeze(network, config.model.freeze)
    padding = network.config.pad_token_id
    if lora is not None:
        try:
            network = peft.get_peft_model(network, lora)
        except ValueError as error:
            raise ConfigError(f"lora: {error}; correct lora.target_modules") from error
    # A resumed training has already evaluated its start.
    arguments.eval_on_start = arguments.eval_on_start and checkpoint is None
    trainer = transformers.Seq2SeqTrainer(
        args=arguments,
        model=network,
        train_dataset=train,
        eval_dataset=validation if len(validation) else None,
        data_collator=partial(collate, extractor=processor.feature_extractor, padding=padding),
        compute_metrics=partial(error_rates, validation=validation, processor=processor),
        processing_class=processor,
        callbacks=[_EvaluateLast()],
    )
    trainer.evaluate = partial(trainer.evaluate, **validation.generation())
    if trainer.is_world_process_zero():
        OutputStore(config.output).write_json(SETTINGS_NAME, _identity(config))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _network(config: FinetuneConfig) -> Any:
    model = config.model
    return AutoModelForSpeechSeq2Seq.from_pretrained(
        model.checkpoint, revision=model.revision, dtype=torch.float32
    )


def _processor(config: FinetuneConfig) -> Any:
    return AutoProcessor.from_pretrained(config.model.checkpoint, revision=config.model.revision)


def _freeze(network: torch.nn.Module, patterns: Sequence[str]) -> None:
    parameters = dict(network.named_parameters())
    for pattern in patterns:
        names = fnmatch.filter(parameters, pattern)
        if not names:
            raise ConfigError(
                f"model.freeze: found no parameter {pattern!r} among {len(parameters)}, such as "
                f"{next(iter(parameters))}; correct it, for example to model.encoder.*"
            )
        for name in names:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError(
            "model.freeze: found no parameter to train, expected one; name fewer parameters"
        )


class Examples(Dataset[dict[str, Any]]):
    """Rows of a split as features and tokens; a text's form is sampled on each access."""

    def __init__(self, data: TrainingDataSettings, split: str, processor: Any, config: Any) -> None:
        sources = data.train if split == "train" else data.validation
        self._data, self._processor, self._config = data, processor, config
        self._is_training = split == "train"
        self._tables = [_table(source, split) for source in sources]
        if self._is_training and data.held_out_speakers:
            self._hold_out(data.held_out_speakers)
        self._rows: Any = ConcatDataset(self._tables) if self._tables else ()
        if sources and not len(self._rows):
            raise ConfigError(
                f"reading data.{split}: found no row in {counted(len(sources), 'source')}, "
                "expected examples; add sources, or hold out fewer speakers"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        uri = row["audio"]["path"] or f"row {index}"
        with open_audio(io.BytesIO(row["audio"]["bytes"]), uri=uri) as decoder:
            samples = np.concatenate([piece[0] for piece in decoder])
        if (
            isinstance(self._processor.tokenizer, WhisperTokenizer)
            and samples.size > WINDOW_SAMPLES
        ):
            raise ConfigError(
                f"reading {uri}: found {samples.size / SAMPLE_RATE_HZ:.2f} s of audio, expected "
                f"at most {WINDOW_S:g} s; cut it by `corpus-asr label`"
            )
        features = self._processor.feature_extractor(samples, sampling_rate=SAMPLE_RATE_HZ)
        try:
            tokens, num_prompt = self._tokens(row)
        except ValueError as error:
            raise ConfigError(f"reading {uri}: {error}; give data.language") from error
        return {
            "input_features": features.input_features[0],
            "tokens": tokens,
            "num_prompt": num_prompt,
        }

    def references(self) -> list[Reference]:
        """Return the reference texts for evaluation."""
        usual = self._data.language
        return [
            Reference(
                uri="", text=row["text"], language=language_code(row.get("language") or usual)
            )
            for table in self._tables
            for row in table.remove_columns("audio")
        ]

    def generation(self) -> dict[str, Any]:
        """Return the common language of all rows, for generation; empty if there are several."""
        tokenizer = self._processor.tokenizer
        languages = {reference.language for reference in self.references()} - {None}
        if len(languages) != 1:
            return {}
        [language] = languages
        if not isinstance(tokenizer, WhisperTokenizer):
            token_id = tokenizer.lang_code_to_id.get(language)
            return {} if token_id is None else {"forced_bos_token_id": token_id}
        return {"language": language} if tokenizer.is_multilingual else {}

    def _hold_out(self, patterns: Sequence[str]) -> None:
        num_rows = sum(map(len, self._tables))
        for number, table in enumerate(self._tables):
            column = next((name for name in SPEAKER if name in table.column_names), None)
            kept = [
                index
                for index, speaker in enumerate(table[column] if column else ())
                if not any(fnmatch.fnmatchcase(str(speaker or ""), pattern) for pattern in patterns)
            ]
            if column:
                self._tables[number] = table.select(kept)
        if sum(map(len, self._tables)) == num_rows:
            # A misspelled name would train on the test speakers.
            raise ConfigError(
                f"reading data.train: found no speaker of data.held_out_speakers "
                f"({', '.join(patterns)}), expected some to exclude; correct it, or remove it"
            )

    def _tokens(self, row: Mapping[str, Any]) -> tuple[list[int], int]:
        """Return the decoder's tokens, and the length of the prompt, which has no loss."""
        tokenizer, language = self._processor.tokenizer, row.get("language") or self._data.language
        most = self._config.max_target_positions
        if not isinstance(tokenizer, WhisperTokenizer):
            if language in tokenizer.lang_code_to_id:
                tokenizer.tgt_lang = language
            ids = tokenizer(row["text"]).input_ids
            return [self._config.decoder_start_token_id, *ids][: most + 1], 0
        timed = self._drawn(row, "whisper_transcript", self._data.timestamp_probability)
        spans = _TIMED.findall(timed)
        ids = list(tokenizer.prompt(language, row.get("task") or "transcribe", bool(spans)))
        for start, text, end in spans or [(None, row["text"], None)]:
            ids += [*self._time(start), *self._encoded(text), *self._time(end)]
        ids = [*ids, tokenizer.eot][: most + 1]  # the last one is not an input
        previous = self._drawn(row, "condition_on_prev", self._data.condition_on_prev_probability)
        # At most half of the positions, as in decoding: the transcript needs the rest.
        room = min(most // 2, most + 1 - len(ids)) - 1
        previous_ids = self._encoded(previous)[-room:] if room > 0 else []
        prompt = [tokenizer.start_of_prev, *previous_ids] if previous_ids else []
        return [*prompt, *ids], len(prompt)

    def _drawn(self, row: Mapping[str, Any], column: str, probability: float) -> str:
        text = row.get(column)
        return text if text and self._is_training and random.random() < probability else ""

    def _encoded(self, text: str) -> list[int]:
        # Control tokens spelled out in a text would end it.
        plain = text.strip().replace("<|", "< |")
        ids: list[int] = self._processor.tokenizer.encode(f" {plain}", add_special_tokens=False)
        return ids if plain else []

    def _time(self, text: str | None) -> list[int]:
        steps = None if text is None else round(float(text) / TIMESTAMP_STEP_S)
        return [] if steps is None else [self._processor.tokenizer.timestamp_begin + steps]


def _table(source: str, split: str) -> Any:
    files = [source]
    if not source.lower().endswith(".parquet"):
        store = OutputStore(source)
        names = sorted(store.all_names(DATA_FOLDER))
        of_split = re.compile(rf"{DATA_FOLDER}/{split}-[^/]*\.parquet")
        files = [store.address(name) for name in names if of_split.fullmatch(name)]
        if not files:
            raise ConfigError(
                f"reading the dataset {redact_uri(source)}: found no "
                f"{DATA_FOLDER}/{split}-*.parquet among {len(names)} files, expected one; write "
                "it by `corpus-asr label` with dataset.format: huggingface"
            )
    try:
        table = datasets.load_dataset("parquet", data_files=files, split="train")
        for column in ("audio", "text"):
            if column not in table.column_names:
                raise ValueError(f"no column {column} among {', '.join(table.column_names)}")
            if empty := table.data.column(column).null_count:
                raise ValueError(f"no {column} in {counted(empty, 'row')}")
        return table.cast_column("audio", datasets.Audio(decode=False))
    except (OSError, TypeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(
            f"reading data.{split} {redact_uri(source)}: found {error}, expected Parquet with "
            "columns audio and text; correct it"
        ) from error


def collate(
    examples: Sequence[Mapping[str, Any]], *, extractor: Any, padding: int
) -> dict[str, torch.Tensor]:
    """Stack examples to a batch; padding and prompt tokens are excluded from the loss."""
    features = [{"input_features": example["input_features"]} for example in examples]
    batch = dict(extractor.pad(features, return_tensors="pt"))
    width = max(len(example["tokens"]) for example in examples) - 1
    inputs = torch.full((len(examples), width), padding)
    labels = torch.full_like(inputs, IGNORED_LABEL)
    for row, example in enumerate(examples):
        ids, num_prompt = torch.tensor(example["tokens"]), example["num_prompt"]
        inputs[row, : len(ids) - 1] = ids[:-1]
        labels[row, num_prompt : len(ids) - 1] = ids[num_prompt + 1 :]
    return batch | {"decoder_input_ids": inputs, "labels": labels}


def error_rates(prediction: Any, *, validation: Examples, processor: Any) -> dict[str, float]:
    """Compare generated texts with a split, using the normalizers of `corpus-asr evaluate`."""
    tokenizer = processor.tokenizer
    ids = np.where(prediction.predictions < 0, tokenizer.pad_token_id, prediction.predictions)
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    scores = [
        score(reference, Hypothesis(text=text, language=reference.language, duration_s=0.0))
        for reference, text in zip(validation.references(), texts, strict=True)
    ]
    rates = {
        "wer": total(counts.words for counts in scores).rate,
        "cer": total(counts.characters for counts in scores).rate,
    }
    return {name: math.nan if rate is None else rate for name, rate in rates.items()}


def _write_model(config: FinetuneConfig, output: Path, *, writes: bool) -> Finetuned:
    last = _last_checkpoint(output)
    assert last is not None, "the Trainer saves its last step"
    state = _state(last)
    best = state["best_model_checkpoint"]
    kept = last if best is None else output / Path(best).name
    if writes:
        network = _network(config)  # the Trainer has not changed its settings
        if config.lora is None:
            trained = AutoModelForSpeechSeq2Seq.from_pretrained(kept, dtype=torch.float32)
            network.load_state_dict(trained.state_dict())
        else:
            adapted = peft.PeftModel.from_pretrained(network, str(kept))
            adapted.save_pretrained(str(output / ADAPTER_FOLDER))
            network = adapted.merge_and_unload()
        network.save_pretrained(output / MODEL_FOLDER)
        _processor(config).save_pretrained(output / MODEL_FOLDER)
    return Finetuned(
        model_path=str(output / MODEL_FOLDER),
        steps=state["global_step"],
        kept_step=_step_of(kept),
        error_rates=tuple(
            (row["step"], row["eval_wer"]) for row in state["log_history"] if "eval_wer" in row
        ),
    )
