"""Fine-tuning by transformers' Trainer: what it learns from, resuming, adapters, bad input."""

import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import peft
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
import yaml
from typer.testing import CliRunner

from corpus_asr.cli.main import app
from corpus_asr.config.finetune import FinetuneConfig, TrainingDataSettings
from corpus_asr.config.load import load_finetune
from corpus_asr.errors import ConfigError
from corpus_asr.families.pretrained import IGNORED_LABEL
from corpus_asr.families.weights import stored_tensors
from corpus_asr.models.auto import AutoConfig, AutoProcessor
from corpus_asr.pipelines import finetune
from corpus_asr.pipelines.finetune import Examples, Finetuned, collate
from tests.support.audio import wav_bytes
from tests.support.checkpoints import tiny_speech2text
from tests.support.tokenizers import tiny_speech2text_tokenizer
from tests.support.training import spoken, tiny_student, training, write_set, write_shard

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*pin_memory:UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Keep what `datasets` caches out of the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_set(folder / "set", train=6, validation=2)
    tiny_student(folder)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Speech2Text checkpoint, whose steps take no windows of 30 s."""
    folder = tmp_path_factory.mktemp("small")
    write_set(folder / "set", train=6, validation=2)
    tokenizer = tiny_speech2text_tokenizer(folder / "tokenizer")
    tiny_speech2text(
        folder / "model", tokenizer=tokenizer, d_model=16, heads=2, layers=1, conv_channels=16
    )
    return folder


def run(config: FinetuneConfig) -> Finetuned:
    return finetune.run(config, progress=None)


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: stored.read() for name, stored in stored_tensors(folder).items()}


def transcribed(model: Path, folder: Path) -> str:
    audio = folder / "a.wav"
    audio.write_bytes(wav_bytes(spoken("wind sun"), rate_hz=16_000))
    done = CliRunner().invoke(app, ["transcribe", str(audio), "--model", str(model), "-f", "txt"])
    assert done.exit_code == 0, done.output
    return done.stdout


def examples(folder: Path, split: str = "train", **data: Any) -> Examples:
    settings = TrainingDataSettings(train=(str(folder / "set"),), validation=(str(folder / "set"),))
    settings = settings.model_copy(update=data)
    model = folder / "model"
    return Examples(
        settings, split, AutoProcessor.from_pretrained(model), AutoConfig.from_pretrained(model)
    )


def test_targets_are_those_of_whisper(place: Path) -> None:
    tokenizer = transformers.WhisperTokenizer.from_pretrained(place / "model")
    for timed, prompted in ((0, 0), (1, 0), (0, 1), (1, 1)):
        data: dict[str, Any] = {
            "timestamp_probability": timed,
            "condition_on_prev_probability": prompted,
        }
        found = examples(place, **data)
        [text, *_] = [reference.text for reference in found.references()]
        example = found[0]
        before = "<|startofprev|> the wind" if prompted else ""
        said = f"<|0.30|> {text}<|2.00|>" if timed else f"<|notimestamps|> {text}"
        start = "<|startoftranscript|><|en|><|transcribe|>"
        expected = f"{before}{start}{said}<|endoftext|>"
        ids = example["tokens"]
        assert tokenizer.decode(ids, decode_with_timestamps=True) == expected
        batch = collate(
            [example], extractor=AutoProcessor.from_pretrained(place / "model").feature_extractor,
            padding=0,
        )  # fmt: skip
        assert batch["decoder_input_ids"].tolist() == [ids[:-1]]
        [labels] = batch["labels"].tolist()
        num_prompt = ids.index(tokenizer.convert_tokens_to_ids("<|startoftranscript|>"))
        assert labels[:num_prompt] == [IGNORED_LABEL] * num_prompt
        assert labels[num_prompt:] == ids[num_prompt + 1 :]
        assert batch["input_features"].shape == (1, 80, 3000)


def test_control_tokens_of_a_text_and_long_prompts_do_no_harm(place: Path, tmp_path: Path) -> None:
    rows = [
        {"text": "sun", "whisper_transcript": "<|0.00|> a<|endoftext|>b<|1.00|>", "language": "en",
         "condition_on_prev": "wind " * 100},
    ]  # fmt: skip
    write_shard(tmp_path, "other", rows)
    always: dict[str, Any] = {"timestamp_probability": 1, "condition_on_prev_probability": 1}
    found = examples(place, train=(str(tmp_path / "other.parquet"),), **always)
    tokenizer = AutoProcessor.from_pretrained(place / "model").tokenizer
    ids = found[0]["tokens"]
    assert ids.index(tokenizer.eot) == len(ids) - 1
    assert found[0]["num_prompt"] == 30  # half of the positions
    assert len(ids) - 1 <= 60


def test_held_out_speakers_are_in_no_example(place: Path) -> None:
    assert len(examples(place, held_out_speakers=("reader_0", "*_2"))) == 2
    assert len(examples(place, "validation", held_out_speakers=("reader_0",))) == 2
    for wanted, message in (("raeder_*", "found no speaker of"), ("reader_*", "found no row")):
        with pytest.raises(ConfigError, match=message):
            examples(place, held_out_speakers=(wanted,))


@pytest.mark.long
def test_a_training_that_was_stopped_ends_with_the_same_weights(small: Path) -> None:
    at_once = run(training(small, small / "model", "at_once", training={"max_steps": 5}))
    assert (at_once.steps, at_once.kept_step, at_once.error_rates) == (5, 5, ())
    stopped = training(small, small / "model", "stopped")
    run(stopped)
    # As of a process that was killed while it wrote a checkpoint.
    (small / "stopped" / "checkpoint-2" / "trainer_state.json").unlink()
    resumed = run(training(small, small / "model", "stopped", training={"max_steps": 5}))
    assert resumed.steps == 5
    expected = weights_in(Path(at_once.model_path))
    for name, weight in weights_in(Path(resumed.model_path)).items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)
    start = weights_in(small / "model")
    assert any(not torch.equal(weight, start[name]) for name, weight in expected.items())


@pytest.mark.long
def test_the_command_keeps_the_best_model_and_repeats_nothing(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = training(
        small,
        small / "model",
        "best",
        data={"validation": [str(small / "set")]},
        training={"max_steps": 3, "save_steps": 2},
    )
    path = small / "job.yaml"
    path.write_text(config.model_dump_json(), encoding="utf-8")  # YAML reads JSON
    rates = iter([0.9, 0.5, 0.7])  # before the first step, at the second and at the last
    monkeypatch.setattr(finetune, "error_rates", lambda *_, **__: {"wer": next(rates)})
    done = CliRunner().invoke(app, ["finetune", str(path)])
    assert done.exit_code == 0, done.output
    model = small / "best" / "model"
    assert done.stdout.splitlines() == [
        "step 0: wer 90.00%", "step 2: wer 50.00%", "step 3: wer 70.00%",
        f"{model}: kept step 2 of 3",
    ]  # fmt: skip
    assert "6 examples to train on, 2 to evaluate" in done.stderr
    kept = weights_in(small / "best" / "checkpoint-2")
    assert all(torch.equal(weight, kept[name]) for name, weight in weights_in(model).items())
    for name in ("config.json", "generation_config.json"):
        changed = json.loads((model / name).read_text())
        start = json.loads((small / "model" / name).read_text())
        assert {key: changed[key] for key in start if key != "transformers_version"} == {
            key: value for key, value in start.items() if key != "transformers_version"
        }
    monkeypatch.setattr(finetune, "_train", None)
    again = CliRunner().invoke(app, ["finetune", str(path)])
    assert (again.exit_code, again.stdout) == (0, done.stdout)
    transcribed(model, small)
    assert transformers.Speech2TextForConditionalGeneration.from_pretrained(model)


@pytest.mark.long
def test_adapters_are_pefts_and_the_model_has_them_merged(place: Path) -> None:
    config = training(
        place,
        place / "model",
        "lora",
        lora={"r": 2, "target_modules": ["q_proj", "fc1"]},
        data={"validation": [str(place / "set")]},
        training={"max_steps": 1, "gradient_checkpointing": True},
    )
    done = run(config)
    model, adapter = place / "lora" / "model", place / "lora" / "adapter"
    assert [step for step, _ in done.error_rates] == [0, 1]
    transcribed(model, place)
    base = transformers.WhisperForConditionalGeneration.from_pretrained(place / "model")
    merged = peft.PeftModel.from_pretrained(base, adapter).merge_and_unload()
    theirs, start = merged.state_dict(), weights_in(place / "model")
    ours = weights_in(model)
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-6)
        is_adapted = name.endswith(("q_proj.weight", "fc1.weight"))
        assert torch.equal(weight, start[name]) != is_adapted, name
    guide = (REPOSITORY / "docs/how-to/finetuning.md").read_text(encoding="utf-8")
    code = guide.partition("## LoRA")[2].partition("```python")[2].partition("```")[0]
    paths = {
        "openai/whisper-tiny.en": "model",
        "better/adapter": "lora/adapter",
        "merged": "merged",
    }
    for name, path in paths.items():
        code = code.replace(f'"{name}"', repr(str(place / path)))
    exec(code, {})
    for name, weight in weights_in(place / "merged").items():
        torch.testing.assert_close(weight, ours[name], rtol=0, atol=1e-6)
    done_again = run(config)
    assert done_again == done


@pytest.mark.long
def test_frozen_parameters_stay(small: Path) -> None:
    config = training(
        small, small / "model", "frozen", model={"freeze": ["model.encoder.*"]},
        training={"max_steps": 1},
    )  # fmt: skip
    start = weights_in(small / "model")
    for name, weight in weights_in(Path(run(config).model_path)).items():
        if name.startswith("model.encoder."):
            assert torch.equal(weight, start[name]), name
        elif name.endswith("fc1.weight"):
            assert not torch.equal(weight, start[name]), name


BAD: list[tuple[dict[str, Any], str]] = [
    ({"training": {"lerning_rate": 1}}, r"training\.lerning_rate: unknown key; did you mean train"),
    ({"training": {"output_dir": "a"}}, r"training\.output_dir: unknown key"),
    ({"training": {"max_steps": "ten"}}, r"training\.max_steps: found 'ten', expected a number"),
    ({"training": {"max_steps": True}}, r"training\.max_steps: found True, expected a number"),
    ({"training": {"lr_scheduler_type": "curvy"}}, "training: .*curvy.* is not a valid"),
    ({"training": {"save_strategy": "no"}}, r"training\.save_strategy: found no"),
    ({"lora": {"rank": 8}}, r"lora\.rank: unknown key"),
    ({"lora": {"lora_alhpa": 8}}, r"did you mean lora\.lora_alpha\?"),
    ({"lora": {"target_modules": ["gate"]}}, r"lora: .*correct lora\.target_modules"),
    ({"model": {"freeze": ["encoder.*"]}}, r"found no parameter 'encoder\.\*' among"),
    ({"model": {"freeze": ["*"]}}, "no parameter to train"),
    ({"data": {"train": ["missing.parquet"]}}, "missing.parquet"),
    ({"data": {"train": ["missing"]}}, r"found no data/train-\*\.parquet among 0 files"),
    ({"data": {"validation": ["missing"]}}, r"found no data/validation-\*\.parquet"),
    ({"data": {"held_out_speakers": ["nobody"]}}, r"found no speaker of data\.held_out_speakers"),
]


@pytest.mark.parametrize(("sections", "message"), BAD)
def test_what_cannot_be_trained_is_refused(
    small: Path, tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    config = training(small, small / "model", str(tmp_path / "out"), **sections)
    with pytest.raises(ConfigError, match=message):
        run(config)
    assert not list(tmp_path.glob("out/checkpoint-*"))


@pytest.mark.parametrize(
    ("column", "message"),
    [("text", "no column text among"), ("audio", "no column audio among"), (None, "no text in 6")],
)
def test_files_without_audio_or_text_are_refused(
    small: Path, tmp_path: Path, column: str | None, message: str
) -> None:
    path = tmp_path / "data.parquet"
    table = pq.read_table(next((small / "set" / "data").glob("train-*")))
    texts = table.schema.get_field_index("text")
    if column is None:
        nothing = pa.nulls(len(table), pa.string())
        pq.write_table(table.set_column(texts, "text", nothing), path)
    else:
        pq.write_table(table.drop_columns([column]), path)
    with pytest.raises(ConfigError, match=message):
        examples(small, train=(str(path),))
    path.write_bytes(b"no table")
    with pytest.raises(ConfigError, match="expected Parquet"):
        examples(small, train=(str(path),))


def test_an_output_of_something_else_or_another_training_is_refused(
    small: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    (output / "segments").mkdir(parents=True)
    config = training(small, small / "model", str(output))
    with pytest.raises(ConfigError, match=r"found segments without finetune\.json, expected an"):
        run(config)
    shutil.rmtree(output)
    (output / "checkpoint-1").mkdir(parents=True)
    (output / "checkpoint-1" / "trainer_state.json").write_text("{}")
    (output / "finetune.json").write_text('{"model": 1, "data": 2, "lora": null}')
    with pytest.raises(ConfigError, match="found a training with another model and data, expected"):
        run(config)


def test_languages_and_lengths_that_do_not_fit_name_their_row(place: Path, tmp_path: Path) -> None:
    source: dict[str, Any] = {"train": (str(write_shard(tmp_path, "none", [{"text": "sun"}])),)}
    with pytest.raises(ConfigError, match=r"reading x\.wav: .*found no language.*; give data.lang"):
        examples(place, **source)[0]
    assert examples(place, language="de", **source)[0]["num_prompt"] == 0
    longer = write_shard(tmp_path, "long", [{"text": "sun " * 60, "language": "en"}])
    with pytest.raises(ConfigError, match=r"found 48\.30 s of audio, expected at most 30 s"):
        examples(place, train=(str(longer),))[0]


@pytest.mark.parametrize("name", ["transformers", "peft", "datasets"])
def test_without_a_package_the_extra_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "corpus_asr.pipelines.finetune")
    with pytest.raises(ConfigError, match=rf"{name} .*pip install .*\(extra finetune\)"):
        importlib.import_module("corpus_asr.pipelines.finetune")


def shown() -> dict[str, dict[str, Any]]:
    guide = (REPOSITORY / "docs" / "how-to" / "finetuning.md").read_text(encoding="utf-8")
    [first, *_] = re.findall(r"^```yaml\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    example = load_finetune(REPOSITORY / "configs" / "finetune.yaml")
    return {"guide": yaml.safe_load(first), "example": example.model_dump(mode="json")}


@pytest.mark.long
@pytest.mark.parametrize("name", ["guide", "example"])
def test_the_files_shown_train(small: Path, tmp_path: Path, name: str) -> None:
    config = shown()[name]
    config["model"]["checkpoint"] = str(small / "model")
    config["data"] |= {"train": [str(small / "set")], "validation": [str(small / "set")]}
    if config["data"].get("held_out_speakers"):
        config["data"]["held_out_speakers"] = ["reader_0"]
    config["training"] |= {"max_steps": 1, "use_cpu": True, "bf16": False}
    config["output"] = str(tmp_path / "out")
    assert run(FinetuneConfig.model_validate(config)).steps == 1
