"""Cases and recordings from the command line, and one clear message for each wrong one."""

import json

import pytest

from corpus_asr.benchmark.orders import (
    ENGINES,
    PEERS,
    Case,
    find_recordings,
    our_cases,
    peer_cases,
    with_settings,
)
from corpus_asr.errors import ConfigError
from corpus_asr.families.registry import resolve
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import tone, wav_bytes


def labels(cases: list[Case]) -> list[str]:
    return [case.label for case in cases]


CPU_PEERS = [
    "faster-whisper-batched int8", "faster-whisper int8", "transformers float32",
    "transformers bfloat16", "openai-whisper float32",
]  # fmt: skip
GPU_PEERS = [
    "faster-whisper float16", "transformers float16", "transformers bfloat16",
    "openai-whisper float16",
]  # fmt: skip
NAMED = ["transformers:bfloat16", "transformers", "faster-whisper:float32"]
NAMED_PEERS = ["transformers bfloat16", "transformers float32", "faster-whisper float32"]


def test_peers_are_measured_once_in_the_types_named_or_their_usual_ones():
    for wanted, on_gpu, expected in (
        (None, False, CPU_PEERS),
        (None, True, GPU_PEERS),
        (NAMED, False, NAMED_PEERS),
        ([], False, []),
    ):
        assert labels(peer_cases(wanted, cuda=on_gpu, shapes=on_gpu)) == expected, wanted


def test_our_types_are_passed_on_as_they_are():
    assert labels(our_cases([], cuda=False)) == ["corpus-asr auto"]
    assert labels(our_cases(["int8", "float32", "int8"], cuda=False)) == [
        "corpus-asr int8",
        "corpus-asr float32",
    ]


def test_each_engine_is_measured_per_settings_but_once_where_there_are_no_thresholds():
    cases = [*our_cases([], cuda=False), *peer_cases(["transformers"], cuda=True, shapes=False)]
    assert labels(with_settings(cases, ["default", "thresholds-off"])) == [
        "corpus-asr auto",
        "corpus-asr auto, defaults",
        "transformers float16",
        "transformers bfloat16",
    ]
    assert {case.settings for case in with_settings(cases, ["default"])} == {"default"}


def test_every_runner_named_exists():
    for entry in ENGINES.values():
        assert callable(resolve(entry.transcribing))
        assert entry.decoding is None or callable(resolve(entry.decoding))
    assert "corpus-asr" not in PEERS


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(wav_bytes(tone(1.5), rate_hz=SAMPLE_RATE_HZ))
    return path


def manifest_of(folder, *lines):
    path = folder / "lists" / "manifest.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return path


def test_length_and_text_are_known(clip):
    (found,) = find_recordings([clip], None)
    assert found.duration_s == pytest.approx(1.5, abs=0.01)
    assert found.text is None
    clip.with_suffix(".txt").write_text("What is said.", encoding="utf-8")
    (found,) = find_recordings([clip], None)
    assert found.text == "What is said."


@pytest.mark.parametrize("key", ["path", "uri", "audio_filepath"])
def test_a_manifest_names_files_beside_it_and_their_texts(clip, key):
    clip.with_suffix(".txt").write_text("Only where the manifest says nothing.")
    manifest = manifest_of(
        clip.parent, {key: "../clip.wav", "text": "Hello."}, "", {key: str(clip)}
    )
    named, bare = find_recordings([], manifest)
    assert named.path.resolve() == bare.path.resolve() == clip
    assert named.text == "Hello."
    assert bare.text == "Only where the manifest says nothing."


def test_a_manifest_that_says_no_address_or_no_text_is_refused(tmp_path):
    for line, message in (
        ('{"text": "x"}', "line 2: found columns text"),
        ('{"path": "a.wav", "text": 3}', "line 2: found text 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            find_recordings([], manifest_of(tmp_path, "", line))


def test_a_text_that_is_not_utf8_is_refused(clip):
    clip.with_suffix(".txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"clip\.txt.*UTF-8"):
        find_recordings([clip], None)
