"""Sizes are the published ones; every engine returns exactly as many tokens as requested."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from benchmarks import networks
from benchmarks.networks import SHAPES, STAGES, main, staged, to_ctranslate2
from corpus_asr.errors import ConfigError

NANO = SHAPES["nano"]
SIZES: dict[str, Any] = {
    "shape": asdict(NANO), "device": "cpu", "dtype": "float32", "batch": 3, "tokens": 5,
}  # fmt: skip

# Millions of parameters, tied ones and fixed encoder positions counted once each.
PUBLISHED = {
    "tiny": 37.8, "base": 72.6, "small": 241.7, "medium": 763.9, "large-v3": 1543.5,
    "large-v3-turbo": 808.9,
}  # fmt: skip


def test_each_size_has_as_many_parameters_as_the_published_one():
    assert list(SHAPES) == ["nano", *PUBLISHED]
    for name, millions in PUBLISHED.items():
        network = SHAPES[name].network()
        assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
        assert network.num_parameters() / 1e6 == pytest.approx(millions, abs=0.05), name


@pytest.mark.parametrize(("name", "size"), [("tiny", 51_865), ("large-v3", 51_866)])
def test_control_tokens_are_at_the_published_ids(name, size):
    shape = SHAPES[name]
    words = shape.vocabulary
    config = shape.config()
    assert config.vocab_size == size
    assert len(words) + 1501 == size
    assert words.index("<|endoftext|>") == config.eos_token_id
    assert words.index("<|startoftranscript|>") == config.decoder_start_token_id
    assert words.index("<|en|>") == 50_259
    assert words.index("<|notimestamps|>") == size - 1502
    assert len(set(words)) == len(words)


def test_a_checkpoint_of_noise_loads_in_transformers_and_is_the_same_again(tmp_path):
    folders = [NANO.write(tmp_path / name) for name in ("one", "two")]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    model, report = transformers.WhisperForConditionalGeneration.from_pretrained(
        folders[0], output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.num_parameters() == NANO.network().num_parameters()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return NANO.write(tmp_path_factory.mktemp("nano") / "nano")


@pytest.mark.parametrize("beams", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["corpus_asr", "ctranslate2", "transformers"])
def test_every_engine_measures_all_stages(folder, tmp_path, name, beams):
    model = to_ctranslate2(NANO, folder, tmp_path / "ct2") if name == "ctranslate2" else folder
    threads = torch.get_num_threads()
    work = getattr(networks, name)(model=str(model), threads=threads, beams=beams, **SIZES)
    run = work([])
    assert run["wall_s"] == pytest.approx(sum(run[stage] for stage in STAGES))
    assert all(run[stage] > 0 for stage in STAGES[:2])


def test_engines_decode_the_same(folder, monkeypatch):
    """Encoders of one checkpoint, fed by each engine's own way in, agree."""
    seen = []

    def kept(encode, decode, **_):
        seen.append((encode, decode))
        return lambda _: {}

    monkeypatch.setattr(networks, "staged", kept)
    for name in ("corpus_asr", "transformers"):
        threads = torch.get_num_threads()
        getattr(networks, name)(model=str(folder), threads=threads, beams=1, **SIZES)
    ours, theirs = (encode() for encode, _ in seen)
    torch.testing.assert_close(torch.stack(ours), theirs, atol=1e-3, rtol=0)
    assert [decode(ours if not at else theirs, 4) for at, (_, decode) in enumerate(seen)] == [
        [4, 4, 4], [4, 4, 4],
    ]  # fmt: skip


def test_an_engine_that_returns_fewer_tokens_fails():
    work = staged(lambda: None, lambda encoded, length: [min(length, 4)] * 2, batch=2, tokens=5)
    with pytest.raises(ValueError, match=r"requested 5 tokens for 2 windows, found \[4, 4\]"):
        work([])


def test_a_type_that_it_does_not_have_is_refused(folder):
    with pytest.raises(ConfigError, match="float7"):
        networks.corpus_asr(str(folder), **SIZES | {"dtype": "float7", "threads": 1, "beams": 1})


@pytest.mark.long
def test_a_size_is_measured_without_weights_or_audio(tmp_path, capsys):
    path = tmp_path / "found.json"
    main([
        "nano", "--peers", "--dtype", "auto", "none-such", "--runs", "1", "--batch", "2",
        "--tokens-per-window", "3", "--device", "cpu", "--json", str(path),
    ])  # fmt: skip
    printed = capsys.readouterr().out
    assert "2 windows of 30 s, 3 tokens each" in printed
    assert all(stage in printed for stage in STAGES)
    (table,) = json.loads(path.read_text())
    done, failed = table["rows"]
    assert len(done["runs"]) == 1
    assert "found 'none-such'" in failed["failed"]
    assert f"corpus-asr none-such failed: {failed['failed']}" in printed
