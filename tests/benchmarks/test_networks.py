"""Sizes are the published ones; every engine returns exactly as many tokens as requested."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import networks
from benchmarks.networks import SHAPES, STAGES, main

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return NANO.write(tmp_path_factory.mktemp("nano") / "nano")


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
