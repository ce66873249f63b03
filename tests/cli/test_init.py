"""`corpus-asr init` writes files that load, have every key there is, and spoil nothing."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from corpus_asr.cli import main as cli
from corpus_asr.config.load import load_config, written
from corpus_asr.config.run import PseudoLabelConfig, RunConfig
from corpus_asr.config.settings import described, section_of

CHOSEN = {"source.uri": "audio", "model.checkpoint": "openai/whisper-tiny", "output.uri": "out"}
COMMENTED_KEY = re.compile(r"^  # (?!null: )(?=[a-z_]+: )", re.MULTILINE)


def call(*arguments: str, answers: str = "") -> Result:
    return CliRunner().invoke(cli.app, ["init", *arguments], input=answers)


@pytest.mark.parametrize("pipeline", ["transcribe_corpus", "classify_audio", "pseudo_label"])
@pytest.mark.parametrize("options", [(), ("--full",)])
def test_what_is_written_loads_and_is_kept(
    pipeline: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "jobs" / "job.yaml"
    result = call(
        str(file), "--pipeline", pipeline, "--source", "s3://b/*.mp3", "--output", "null", *options
    )
    assert result.exit_code == 0, result.stderr
    assert f"corpus-asr run {file}" in result.stdout
    config = load_config(file)
    assert config.pipeline == pipeline
    assert (config.source.uri, config.output.uri) == (("s3://b/*.mp3",), "null")
    before = file.read_text()
    refused = call(str(file), "--pipeline", pipeline)
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert file.read_text() == before
    assert call(str(file), "--force", "--model", "lab/mine").exit_code == 0
    assert load_config(file).model.checkpoint == "lab/mine"


@pytest.mark.parametrize(
    ("pipeline", "model", "unread"),
    [
        ("transcribe_corpus", RunConfig, {"classification"}),
        ("classify_audio", RunConfig, {"decoding", "align"}),
        ("pseudo_label", PseudoLabelConfig, {"classification"}),
    ],
)
def test_a_full_file_has_every_key_with_its_default_and_description(
    pipeline: str, model: type[RunConfig], unread: set[str], tmp_path: Path
) -> None:
    chosen = CHOSEN | ({"dataset.uri": "set"} if pipeline == "pseudo_label" else {})
    text = written(pipeline, chosen, full=True)
    file = tmp_path / "job.yaml"
    file.write_text(text)
    usual = load_config(file)
    file.write_text(COMMENTED_KEY.sub("  ", text))
    spelt_out = load_config(file)
    assert spelt_out == usual
    prose = " ".join(text.replace("#", " ").split())
    for name, field in model.model_fields.items():
        section = section_of(field)
        if section is None:
            continue
        if name in unread:
            assert f"\n{name}:" not in text
            continue
        set_here = getattr(spelt_out, name).model_fields_set
        assert set_here == set(section.model_fields)
        for key in described(section).values():
            assert " ".join((key.description or "?").split()) in prose


def test_a_manifest_becomes_one_and_a_table_of_audio_recordings(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    audio = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = tmp_path / "clips.parquet"
    pq.write_table(pa.table({"sound": pa.array([], audio)}), table)
    pq.write_table(pa.table({"uri": ["a.wav"]}), tmp_path / "list.parquet")
    manifests = ("m.jsonl", "s3://b/lists/*.CSV", "m.tsv.gz", str(tmp_path / "list.parquet"))
    for pipeline in ("transcribe_corpus", "classify_audio", "pseudo_label"):
        for source in (*manifests, "all.parquet"):
            result = call(str(file), "--force", "--pipeline", pipeline, "--source", source)
            assert result.exit_code == 0, result.stderr
            config = load_config(file)
            assert (config.source.manifest, config.source.uri) == ((source,), ())
    assert call(str(file), "--force", "--full", "--source", str(table)).exit_code == 0
    config = load_config(file)
    assert (config.source.uri, config.source.audio_column) == ((str(table),), "sound")


def test_what_cannot_be_loaded_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("mine")
    result = call(str(file), "--force", "--source", "${env:NO_SUCH_VARIABLE_HERE}")
    assert result.exit_code == 2
    assert f"what {file} would be" in result.stderr
    assert "NO_SUCH_VARIABLE_HERE is not set" in result.stderr
    assert file.read_text() == "mine"
    nowhere = call(str(file / "job.yaml"))
    assert nowhere.exit_code == 2
    assert "choose another" in nowhere.stderr


def test_a_model_that_nobody_named_is_said(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    for pipeline, model, line in (
        (
            "transcribe_corpus",
            "whisper-tiny.en",
            "--model small or large-v3 is more accurate, and multil",
        ),
        (
            "classify_audio",
            "small",
            "model: small, fetched from the hub; --model names another one",
        ),
        ("pseudo_label", "large-v3", "model: large-v3, fetched from the hub; --model names"),
    ):
        assert line in call(str(file), "--force", "--pipeline", pipeline).stdout
        assert load_config(file).model.checkpoint == model
        comment = " ".join(file.read_text().replace("#", " ").split())
        assert "turbo (809M) and large-v3 (1550M) are multilingual and more accurate" in comment
        named = call(str(file), "--force", "--pipeline", pipeline, "--model", "base")
        assert "model:" not in named.stdout
