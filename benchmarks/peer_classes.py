"""A pytest plugin that lets the tests of others run on this package's classes.

Given to the child process of `benchmarks.peer_suites` by `-p`. With `CORPUS_ASR_PEER_CLASSES=ours`
the names of transformers' Whisper and Speech2Text stand for the classes of here; with `theirs`
nothing is replaced. Every outcome is appended to `CORPUS_ASR_PEER_LOG`, one JSON object a line.
"""

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import peer_data
from corpus_asr.families.layers.kv_cache import Cache, DecoderCache
from corpus_asr.families.model_config import ModelConfig
from corpus_asr.families.pretrained import PreTrainedModel
from corpus_asr.models.generation.outputs import GenerateEncoderDecoderOutput

_MODULES = {
    "whisper": ("corpus_asr.models.whisper", "corpus_asr.families.whisper"),
    "speech_to_text": ("corpus_asr.models.speech2text", "corpus_asr.families.speech2text"),
}
# Classes that only tests and subclasses name, by their module within a family.
_PARTS = {"encoder": "Encoder", "model": "Decoder"}
# Classes of results. `generate` returns those of here or, where it runs transformers' search, those
# of transformers: a test's `isinstance` takes both. Replaced in test files alone, since inside
# transformers its own search would work on other classes than a program's does.
_RESULTS = {
    "GenerateEncoderDecoderOutput": GenerateEncoderDecoderOutput,
    "GenerateBeamEncoderDecoderOutput": GenerateEncoderDecoderOutput,
    "EncoderDecoderCache": DecoderCache,
    "Cache": Cache,
}
# What the common tests read from a class of transformers before they come to their point: flags of
# its own machinery, which no program reads. Each says what holds for the classes of here.
_FLAGS: dict[str, Any] = {
    "_supports_sdpa": True,
    "_supports_flash_attn": False,
    "_supports_flex_attn": False,
    "_supports_attention_backend": False,
    "supports_gradient_checkpointing": True,
    "_is_stateful": False,
    "_can_compile_fullgraph": False,
    "_no_split_modules": None,
    "_tp_plan": None,
    "_pp_plan": None,
    "_keep_in_fp32_modules": frozenset(),
    "_keep_in_fp32_modules_strict": frozenset(),
    "_keys_to_ignore_on_load_missing": None,
    "_keys_to_ignore_on_load_unexpected": None,
    "_auto_class": None,
    "input_modalities": ("audio",),
    "_can_set_experts_implementation": classmethod(lambda cls: False),
    "_can_set_attn_implementation": classmethod(lambda cls: True),
}
_CONFIG_FLAGS: dict[str, Any] = {
    "sub_configs": {},
    "base_model_tp_plan": None,
    "base_model_pp_plan": None,
    "base_model_ep_plan": None,
    "attribute_map": {},
    "per_layer_config": property(lambda config: [config] * config.num_hidden_layers),
}
# By the folder of its tests, what stands for the names of another package.
_PEERS = {
    "openai": "benchmarks.peer_openai",
    "faster_whisper": "benchmarks.peer_faster_whisper",
}
# The vocabularies of the multilingual checkpoints are one, and so are those of the English ones.
_TEXT_ONLY = {
    "openai/whisper-tiny": "whisper-base",
    "openai/whisper-small": "whisper-base",
    "openai/whisper-small.en": "whisper-tiny.en",
    "onnx-community/whisper-tiny.en_timestamped": "whisper-tiny.en",
}


def pytest_configure(config: Any) -> None:
    """Put the classes in place before any test file is imported."""
    models = os.environ.get("CORPUS_ASR_TEST_MODELS")
    ours = os.environ["CORPUS_ASR_PEER_CLASSES"] == "ours"
    if ours:
        _replace()
    _omit_torchaudio()
    peer = Path(config.args[0]).parts[0]
    if models and peer in _PEERS:
        names = importlib.import_module(_PEERS[peer])
        (names.replace if ours else names.serve)(Path(models))
    _serve(models)
    if data := os.environ.get("CORPUS_ASR_TEST_DATA"):
        peer_data.serve_clips(Path(data))


def pytest_collection_finish(session: Any) -> None:
    """Let the test files that name a class of results take those of here, too."""
    if os.environ["CORPUS_ASR_PEER_CLASSES"] != "ours":
        return
    files = [vars(module) for name, module in sys.modules.items() if name.startswith("tests.")]
    for name, kind in _RESULTS.items():
        for names in files:
            if name in names:
                names[name] = (names[name], kind)


def pytest_runtest_logreport(report: Any) -> None:
    """Append what came of a test, or of its setup, to the log."""
    if report.when != "call" and report.outcome == "passed":
        return
    line = {
        "test": report.nodeid,
        "when": report.when,
        "outcome": report.outcome,
        "said": _said(report),
        "expected": hasattr(report, "wasxfail"),
    }
    with Path(os.environ["CORPUS_ASR_PEER_LOG"]).open("a") as log:
        log.write(f"{json.dumps(line)}\n")


def pytest_collectreport(report: Any) -> None:
    """Let a file that cannot be imported count as one failed test."""
    if report.outcome == "failed":
        report.when = "collect"
        pytest_runtest_logreport(report)


def _said(report: Any) -> list[str]:
    """The reason of a skip, or the error and the lines that led to it, the last one last."""
    if isinstance(report.longrepr, tuple):
        return [str(report.longrepr[2])]
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        return [str(report.longrepr or "").strip().rpartition("\n")[2]]
    entries = [entry.reprfileloc for entry in report.longrepr.reprtraceback.reprentries]
    places = [f"{place.path}:{place.lineno}" for place in entries if place is not None]
    return [crash.message, *places]


def _replace() -> None:
    transformers = importlib.import_module("transformers")
    _keep_configs(transformers.AutoConfig)
    for family, (package, folder) in _MODULES.items():
        ours = importlib.import_module(package)
        # Not the Auto classes, by which transformers' own search finds its configurations.
        begins = "Whisper" if family == "whisper" else "Speech2Text"
        named = {name: getattr(ours, name) for name in ours.__all__ if name.startswith(begins)}
        for module, ends in _PARTS.items():
            name = f"{begins}{ends}"
            named[name] = getattr(importlib.import_module(f"{folder}.{module}"), name)
        for name, kind in named.items():
            for module in _places(family, transformers):
                if hasattr(module, name):
                    setattr(module, name, kind)
            setattr(transformers, name, kind)
    utils: Any = importlib.import_module("transformers.utils")
    # The common tests read this name; a folder of tests is no package of transformers.
    utils.direct_transformers_import = lambda *arguments, **keywords: transformers
    _put(PreTrainedModel, _FLAGS)
    _put(ModelConfig, _CONFIG_FLAGS)


def _omit_torchaudio() -> None:
    """Run tests that ask for torchaudio, which neither ours nor Whisper's features there need."""
    testing: Any = importlib.import_module("transformers.testing_utils")
    testing.require_torchaudio = testing.require_speech = lambda test: test
    for name in ("transformers", "transformers.utils"):
        module: Any = importlib.import_module(name)
        module.is_speech_available = module.is_torchaudio_available = lambda: True


def _keep_configs(auto: Any) -> None:
    """Let transformers' search, which `generate` runs for rare settings, find its own configs."""
    for_model = auto.for_model
    own = {family: type(for_model(family)) for family in _MODULES}

    def made(model_type: str, *arguments: Any, **keywords: Any) -> Any:
        return own.get(model_type, partial(for_model, model_type))(*arguments, **keywords)

    auto.for_model = made


def _places(family: str, transformers: Any) -> list[Any]:
    package = importlib.import_module(f"transformers.models.{family}")
    ends = ("modeling", "configuration", "tokenization", "feature_extraction", "processing")
    names = [f"{package.__name__}.{end}_{family}" for end in ends]
    # Whatever imports these later sets the names of the packages above them once more.
    auto = ("configuration", "tokenization", "feature_extraction", "processing", "modeling")
    names += ["transformers.models.auto", *(f"transformers.models.auto.{end}_auto" for end in auto)]
    found = [importlib.import_module(name) for name in names if importlib.util.find_spec(name)]
    return [package, *found]


def _put(kind: type, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if not hasattr(kind, name):
            setattr(kind, name, value)


def _serve(models: str | None) -> None:
    """Let checkpoints that are here answer to their names on the hub."""
    if not models:
        return
    folders = {f"openai/{path.name}": str(path) for path in Path(models).iterdir()}
    texts = folders | {name: str(Path(models) / here) for name, here in _TEXT_ONLY.items()}
    # What tests of it expect holds for any multilingual model.
    folders["openai/whisper-tiny"] = texts["openai/whisper-tiny"]
    peer_data.serve_text_models(Path(models) / "whisper-tiny.en", texts)
    transformers = importlib.import_module("transformers")
    for name in ("Model", "ForConditionalGeneration", "Config"):
        _redirect(getattr(transformers, f"Whisper{name}"), folders)
    for name in ("Tokenizer", "TokenizerFast", "FeatureExtractor", "Processor"):
        _redirect(getattr(transformers, f"Whisper{name}"), texts)
    _redirect(transformers.AutoTokenizer, texts)


def _redirect(kind: Any, folders: dict[str, str]) -> None:
    # Not twice: two names may stand for one class.
    load: Callable[..., Any] = kind.from_pretrained.__func__
    if getattr(load, "is_redirected", False):
        return

    def from_pretrained(
        cls: Any, pretrained_model_name_or_path: Any, *arguments: Any, **keywords: Any
    ) -> Any:
        name = folders.get(str(pretrained_model_name_or_path), pretrained_model_name_or_path)
        return load(cls, name, *arguments, **keywords)

    from_pretrained.is_redirected = True  # type: ignore[attr-defined]
    kind.from_pretrained = classmethod(from_pretrained)
