"""The command: a real run of ours and transformers, and one clear message for each mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from corpus_asr.benchmark import measuring, orders
from corpus_asr.benchmark.command import main, run
from corpus_asr.benchmark.measuring import SHAPES, Shape
from corpus_asr.benchmark.rounds import Row, serve
from corpus_asr.cli import main as cli
from corpus_asr.errors import CheckpointError, ConfigError, DecodeError, FetchError
from tests.support.corpora import tiny_model

CLIP = Path(__file__).parents[1] / "data" / "clips" / "english.wav"
SUMMARY_KEYS = {
    "engine", "dtype", "settings", "label", "failed", "times_real_time", "median_total_s",
    "median_stages_s", "median_cpu_s",
    "ours_times_as_fast", "peak_memory_mib", "peak_gpu_mib", "word_error_rate", "runs",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A checkpoint whose babble transformers ends early."""
    folder = tiny_model(tmp_path_factory.mktemp("model"))
    generation = folder / "generation_config.json"
    values = json.loads(generation.read_text())
    generation.write_text(json.dumps(values | {"max_length": 30}))
    return folder


def bench(*arguments: object) -> tuple[str, str]:
    """Run the command; returns what it prints and what it tells while it works."""
    said: list[str] = []
    messages: list[str] = []
    run([str(argument) for argument in arguments], say=said.append, tell=messages.append)
    return "\n".join(said), "\n".join(messages)


def measure_here(orders, *, runs, tell):
    """Take turns in this process: starting others is tested elsewhere."""
    rows = [Row(case=order) for order in orders]
    for row, order in zip(rows, orders, strict=True):
        replies: list[dict] = []
        serve(iter([order.to_json(), *["run"] * runs]), replies.append)
        row.runs += [reply["run"] for reply in replies if "run" in reply]
        row.failed = replies[-1].get("failed")
    return rows


@pytest.fixture(scope="module")
def measured(model, tmp_path_factory) -> tuple[str, dict]:
    folder = tmp_path_factory.mktemp("audio")
    manifest = folder / "manifest.jsonl"
    manifest.write_text(json.dumps({"path": str(CLIP), "text": "Four score and seven years ago"}))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measuring, "measure", measure_here)
        printed, _ = bench(
            "--model", model, "--manifest", manifest, "--peers", "transformers:float32",
            "--dtype", "float32", "--runs", 2, "--batch", 2, "--json", folder / "result.json",
            "--settings", "thresholds-off,default",
            "--threads", torch.get_num_threads(),
        )  # fmt: skip
    return printed, json.loads((folder / "result.json").read_text())


def test_a_run_prints_a_row_for_each_engine(measured):
    printed, _ = measured
    for words in (
        "batch 2, beams 1, medians of 2 alternating runs", "1 recordings, 9 s of audio, sequential",
        "x real time", "features s", "encode s", "decode s", "total s", "peak MiB", "WER %",
        "\ncorpus-asr float32 ", "\ntransformers float32 ",
    ):  # fmt: skip
        assert words in printed


def test_the_json_holds_machine_versions_settings_and_every_run(measured):
    _, found = measured
    assert set(found) == {"date", "hardware", "versions", "settings", "skipped", "tables"}
    assert found["hardware"]["cores"] >= 1
    assert {"cpu", "cpu_flags", "memory_gib", "gpu"} <= set(found["hardware"])
    assert {"torch", "transformers", "faster-whisper", "ctranslate2"} <= set(found["versions"])
    assert found["settings"]["batch"] == 2
    (table,) = found["tables"]
    assert table["audio_s"] == pytest.approx(9.458, abs=0.01)
    for row in table["rows"]:
        assert set(row) == SUMMARY_KEYS
    ours, with_defaults, theirs = table["rows"]
    assert with_defaults["label"] == "corpus-asr float32, defaults"
    for row in table["rows"]:
        assert len(row["runs"]) == 2
        assert list(row["median_stages_s"]) == ["features", "encode", "decode"]
        assert all(seconds > 0 for seconds in row["median_stages_s"].values())
        assert row["peak_memory_mib"] > 50
        assert row["word_error_rate"] > 0
        assert all("texts" not in one for one in row["runs"])
    ratio = theirs["ours_times_as_fast"]["float32"]
    each = [b["total_s"] / a["total_s"] for a, b in zip(ours["runs"], theirs["runs"], strict=True)]
    assert ratio["median"] == pytest.approx(sum(each) / 2)
    assert ours["ours_times_as_fast"] == {}


def test_a_size_is_measured_without_weights_or_audio(monkeypatch, tmp_path):
    nano = Shape(name="tiny", width=64, encoder_layers=1, decoder_layers=1)
    monkeypatch.setattr("corpus_asr.benchmark.measuring.SHAPES", {**SHAPES, "tiny": nano})
    monkeypatch.setattr(measuring, "measure", measure_here)
    printed, messages = bench(
        "--shape", "tiny", "--peers", "none", "--dtype", "auto,none-such", "--runs", 1,
        "--batch", 2, "--threads", torch.get_num_threads(),
        "--tokens-per-window", 3, "--json", tmp_path / "found.json",
    )  # fmt: skip
    assert "2 windows of 30 s, 3 tokens each" in printed
    for word in ("encode s", "first token s", "tokens s"):
        assert word in printed
    assert "writing random weights of tiny" in messages
    (table,) = json.loads((tmp_path / "found.json").read_text())["tables"]
    assert table["audio_s"] == 60.0
    done, failed = table["rows"]
    assert list(done["median_stages_s"]) == ["encode", "first_token", "tokens"]
    assert failed["failed"].startswith("ConfigError: choosing a compute type: found 'none-such'")
    assert failed["runs"] == []
    assert f"corpus-asr none-such  failed: {failed['failed']}" in printed


def test_a_missing_peer_is_left_out_with_how_to_get_it(model, monkeypatch):
    seen: list = []

    def measure(orders, **_):
        seen.extend(orders)
        return []

    monkeypatch.setattr(orders, "find_spec", lambda name: None if name == "whisper" else name)
    monkeypatch.setattr(measuring, "measure", measure)
    _, messages = bench("--model", model, CLIP, "--peers", "openai-whisper,transformers:float32",
                        "--settings", "default")  # fmt: skip
    assert "openai-whisper float32 is skipped: whisper not installed" in messages
    assert "pip install 'corpus-asr[bench]'" in messages
    assert [case.label for case in seen] == [
        "corpus-asr auto, defaults",
        "transformers float32, defaults",
    ]


MISTAKES = [
    ([], "found neither --model nor --shape"),
    (["--shape", "large-v4"], "choosing a shape: found 'large-v4'"),
    (["--shape", "large-v4"], "; did you mean large-v3?"),
    (["--shape", "tiny", "--model", "x"], "--shape together with a model"),
    (["--shape", "tiny", "--peers", "faster-wisper"], "choosing peers: found 'faster-wisper'"),
    (["--shape", "tiny", "--peers", "faster-wisper"], "; did you mean faster-whisper?"),
    (["--shape", "tiny", "--peers", "faster-whisper-batched"], "there is no audio"),
    (["--model", "MODEL", "CLIP", "--settings", "defaults"], "found 'defaults', expected some of"),
    (["--model", "MODEL", "CLIP", "--settings", "none"], "found 'none', expected some of"),
    (["--shape", "tiny", "--batch", "0"], "--batch: found 0, expected 1 or more"),
    (["--shape", "tiny", "--runs", "x"], "argument --runs: invalid int value"),
    (["--shape", "tiny", "--tokens-per-window", "225"], "expected at most 224"),
    (["--shape", "tiny", "--device", "tpu"], "choosing a device: found 'tpu'"),
    (["--shape", "tiny", "--json", "no/such/folder.json"], "there is no folder no/such"),
    (["--shape", "tiny", "--language", "xx"], "--language: choosing the language"),
    (["--shapee", "tiny"], "unrecognized arguments: --shapee"),
    (["--model", "MODEL"], "looking for audio: found none"),
    (["--model", "MODEL", "none.wav"], "opening none.wav: no such file"),
    (["--model", "MODEL", "--manifest", "none.jsonl"], "none.jsonl: not found"),
    (["--extract", "a.wav", "--runs", "0"], "--runs: found 0, expected 1 or more"),
    (["--extract", "a.wav", "--shape", "tiny"], "neither --model nor --shape"),
]


def test_each_mistake_has_one_clear_message(model):
    for arguments, message in MISTAKES:
        named = {"MODEL": str(model), "CLIP": str(CLIP)}
        words = [named.get(word, word) for word in arguments]
        with pytest.raises((ConfigError, FetchError)) as caught:
            bench(*words)
        assert message in str(caught.value), arguments


def test_a_missing_checkpoint_or_one_of_another_kind_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        bench("--model", tmp_path / "none", CLIP)
    for kind, message in (
        ("bert", "found model_type 'bert'"),
        ("speech_to_text", "found one of speech_to_text, expected one of whis"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(CheckpointError, match=message):
            bench("--model", tmp_path, CLIP)


def test_bad_audio_is_told_before_anything_is_measured(model, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF")
    with pytest.raises(DecodeError, match=r"bad\.wav"):
        bench("--model", model, bad, CLIP)


def test_both_ways_in_say_the_same_and_exit_alike(capsys):
    assert main(["--shape", "huge"]) == 2
    direct = capsys.readouterr().err
    result = CliRunner().invoke(cli.app, ["bench", "--shape", "huge"])
    assert result.exit_code == 2
    assert direct.removeprefix("corpus-asr bench: ") == result.output.removeprefix("corpus-asr: ")
    assert "Traceback" not in direct
    assert "--tokens-per-window" in CliRunner().invoke(cli.app, ["bench", "--help"]).output


WITHOUT = """
import sys
from importlib.machinery import PathFinder
absent = {"ray", "av", "pyarrow", "pydantic", "yaml", "typer", "rich", "s3fs", "faster_whisper",
          "ctranslate2", "whisper", "jiwer", "onnxruntime"}
find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(
    lambda name, *rest: None if name.partition(".")[0] in absent else find(name, *rest))
import corpus_asr.benchmark.ours, corpus_asr.benchmark.engines
from corpus_asr.benchmark.command import main
sys.exit(main(["--shape", "huge"]))
"""


def test_sizes_need_no_more_than_a_gpu_image_has():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "choosing a shape" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sequential", "chunked"])
def test_every_engine_takes_part_in_a_process_of_its_own(float_model, tmp_path, mode):
    # On a checkpoint that ends its sentences; one of noise babbles for minutes.
    _, messages = bench(
        "--model", float_model, CLIP, "--runs", 1, "--batch", 2,
        "--mode", mode, "--dtype", "float32", "--json", tmp_path / "found.json",
    )  # fmt: skip
    rows = json.loads((tmp_path / "found.json").read_text())["tables"][0]["rows"]
    assert [row["failed"] for row in rows] == [None] * 10, messages
    assert all(len(row["runs"]) == 1 for row in rows)
    assert all(row["ours_times_as_fast"].keys() == {"float32"} for row in rows[2:])
