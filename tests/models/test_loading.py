"""Keywords of `from_pretrained` and `save_pretrained` that code written for transformers passes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from corpus_asr.errors import CheckpointError, WeightsError
from corpus_asr.models import auto, speech2text, whisper
from corpus_asr.models.auto import AutoModelForSpeechSeq2Seq
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from tests.support.checkpoints import tiny_speech2text, tiny_whisper
from tests.support.tokenizers import tiny_speech2text_tokenizer, tiny_tokenizer

KINDS = ("Config", "Tokenizer", "FeatureExtractor", "Processor", "ForConditionalGeneration")
LOADERS = [
    *((whisper, f"Whisper{kind}") for kind in KINDS),
    *((speech2text, f"Speech2Text{kind}") for kind in KINDS),
    (whisper, "GenerationConfig"),
    *(
        (auto, f"Auto{kind}")
        for kind in (*KINDS[:4], "ModelForSpeechSeq2Seq")
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family with all its files."""
    root = tmp_path_factory.mktemp("checkpoints")
    tiny_tokenizer(root / "whisper")
    sizes: dict[str, Any] = {"d_model": 16, "layers": 1, "heads": 2}
    tiny_whisper(root / "whisper", tokenizer=root / "whisper", **sizes)
    whisper.WhisperFeatureExtractor().save_pretrained(root / "whisper")
    tokens = tiny_speech2text_tokenizer(root / "tokens")
    tiny_speech2text(root / "speech2text", tokenizer=tokens, layers=1)
    speech2text.Speech2TextFeatureExtractor().save_pretrained(root / "speech2text")
    return {name: root / name for name in ("whisper", "speech2text")}


def loader(package: Any, name: str, folders: dict[str, Path]) -> tuple[Any, Path]:
    family = "speech2text" if name.startswith("Speech2Text") else "whisper"
    return getattr(package, name), folders[family]


NEUTRAL: dict[str, Any] = {
    "use_fast": True, "trust_remote_code": True, "proxies": None, "resume_download": None,
    "max_memory": {0: "1GB"}, "offload_folder": "offload", "low_cpu_mem_usage": True,
    "variant": None, "quantization_config": None, "use_auth_token": None, "token": None,
    "load_in_8bit": False, "gguf_file": None, "adapter_kwargs": {}, "weights_only": True,
    "_from_auto": True, "mirror": None, "tp_plan": None, "key_mapping": None,
    "cache_dir": None, "force_download": False, "local_files_only": True, "revision": "main",
    "subfolder": "",
}  # fmt: skip


@pytest.mark.parametrize(("package", "name"), LOADERS, ids=[name for _, name in LOADERS])
def test_what_means_nothing_is_taken_everywhere(
    package: Any, name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    kind, folder = loader(package, name, folders)
    loaded = kind.from_pretrained(folder, **NEUTRAL)
    settings = loaded.to_dict() if hasattr(loaded, "to_dict") else {}
    assert not NEUTRAL.keys() & settings.keys()
    loaded.save_pretrained(
        tmp_path, token=None, variant=None, legacy_format=False, save_function=torch.save,
        safe_serialization=True, max_shard_size="1GB", is_main_process=True,
        save_peft_format=True, repo_id=None,
    )  # fmt: skip
    assert any(tmp_path.iterdir())
    with pytest.raises(TypeError, match="repo_id"):
        loaded.save_pretrained(tmp_path, repo_id="a/b")
    for call in (kind.from_pretrained, loaded.save_pretrained):
        with pytest.raises(TypeError, match="gguf_file"):
            call(folder, gguf_file="x")
    for nowhere in ("./nowhere", "/no/such/folder"):
        with pytest.raises(OSError, match=r"nowhere|no/such") as raised:
            kind.from_pretrained(nowhere)
        assert isinstance(raised.value, CheckpointError)


@pytest.mark.parametrize("name", ["WhisperConfig", "GenerationConfig", "WhisperFeatureExtractor"])
def test_keywords_that_are_no_settings_come_back(name: str, folders: dict[str, Path]) -> None:
    changed: dict[str, dict[str, Any]] = {
        "WhisperConfig": {"dropout": 0.5},
        "GenerationConfig": {"num_beams": 3},
        "WhisperFeatureExtractor": {"chunk_length": 20},
    }
    given = changed[name]
    found, unused = getattr(whisper, name).from_pretrained(
        folders["whisper"], return_unused_kwargs=True, foo=1, **given
    )
    there, unused_there = getattr(transformers, name).from_pretrained(
        folders["whisper"], return_unused_kwargs=True, foo=1, **given
    )
    assert unused == unused_there
    for key, value in given.items():
        assert getattr(found, key) == getattr(there, key) == value
    # Settings of decoding may have any name.
    assert hasattr(found, "foo") == hasattr(there, "foo") == ("foo" not in unused)


def test_weights_may_be_given(folders: dict[str, Path]) -> None:
    stored = WhisperForConditionalGeneration.from_pretrained(folders["whisper"])
    state = stored.state_dict()
    model = WhisperForConditionalGeneration.from_pretrained(
        None, config=stored.config, state_dict=state, dtype=torch.float64
    )
    assert model.dtype == torch.float64
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name].double())
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    kinds = WhisperForConditionalGeneration
    for given in (
        {"state_dict": state}, {"config": stored.config},
        {"pretrained_model_name_or_path": folders["whisper"], "state_dict": state},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="expected a checkpoint, or None"):
            kinds.from_pretrained(**{"pretrained_model_name_or_path": None, **given})


def test_settings_of_decoding_may_be_given(folders: dict[str, Path]) -> None:
    for package in (whisper, transformers):
        settings = package.GenerationConfig(max_new_tokens=7, num_beams=2)
        model = WhisperForConditionalGeneration.from_pretrained(
            folders["whisper"], generation_config=settings
        )
        assert model.generation_config.max_new_tokens == 7
        assert model.generation_config.num_beams == 2


def test_what_was_missing_is_told(folders: dict[str, Path]) -> None:
    options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, found = WhisperForConditionalGeneration.from_pretrained(folders["whisper"], **options)
    kind = transformers.WhisperForConditionalGeneration
    _, expected = kind.from_pretrained(folders["whisper"], **options)
    assert isinstance(model, WhisperForConditionalGeneration)
    assert found == expected
    assert not any(found.values())
    with pytest.warns(UserWarning, match="these are random"):
        _, found = WhisperForConditionalGeneration.from_pretrained(
            folders["whisper"], encoder_ffn_dim=99, **options
        )
    _, expected = kind.from_pretrained(folders["whisper"], encoder_ffn_dim=99, **options)
    assert found == expected
    assert found["mismatched_keys"]
    with pytest.warns(UserWarning, match="these are random"):
        _, found = whisper.WhisperForAudioClassification.from_pretrained(
            folders["whisper"], **options
        )
    _, expected = transformers.WhisperForAudioClassification.from_pretrained(
        folders["whisper"], **options
    )
    assert found["missing_keys"] == expected["missing_keys"]


@pytest.mark.parametrize("name", ["WhisperForConditionalGeneration", "WhisperForCausalLM"])
@pytest.mark.parametrize("removed", ["decoder.layers.0.fc1", "."])
def test_what_a_file_lacks_and_has_too_much_is_told_to_who_asks(
    folders: dict[str, Path], name: str, removed: str, tmp_path: Path
) -> None:
    ours, theirs = getattr(whisper, name), getattr(transformers, name)
    ours.from_pretrained(folders["whisper"]).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    rest = {key: tensor for key, tensor in stored.items() if removed not in key}
    save_file(rest | {"other": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"missing.*1 unexpected: other"):
        ours.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="these are random"):
        model, found = ours.from_pretrained(tmp_path, output_loading_info=True)
    _, expected = theirs.from_pretrained(tmp_path, output_loading_info=True)
    assert found["missing_keys"] == expected["missing_keys"]
    assert found["unexpected_keys"] == expected["unexpected_keys"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in rest.items())


def test_weights_are_not_loaded_to_the_meta_device(folders: dict[str, Path]) -> None:
    for package, name in ((whisper, "Whisper"), (speech2text, "Speech2Text")):
        for kinds in (package, transformers):
            model = getattr(kinds, f"{name}ForConditionalGeneration")
            with torch.device("meta"), pytest.raises(RuntimeError, match="meta device context"):
                model.from_pretrained(folders[name.lower()])


@pytest.mark.parametrize("shard_size", ["1GB", "100KB"])
def test_a_variant_of_the_weights_is_saved_and_loaded_here_and_there(
    folders: dict[str, Path], shard_size: str, tmp_path: Path
) -> None:
    whole = WhisperForConditionalGeneration.from_pretrained(folders["whisper"])
    whole.save_pretrained(tmp_path)
    plain = (tmp_path / "model.safetensors").read_bytes()
    whole.half().save_pretrained(tmp_path, variant="fp16", max_shard_size=shard_size)
    names = {path.name for path in tmp_path.iterdir() if "fp16" in path.name}
    assert (names == {"model.fp16.safetensors"}) == (shard_size == "1GB")
    assert (tmp_path / "model.safetensors").read_bytes() == plain
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path, variant="fp16")
    ours = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path, variant="fp16")
    for loaded in (theirs, ours):
        assert loaded.dtype == torch.float16
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, whole.state_dict()[name])
    theirs.save_pretrained(tmp_path, variant="theirs", max_shard_size=shard_size)
    again = WhisperForConditionalGeneration.from_pretrained(tmp_path, variant="theirs")
    assert torch.equal(again.state_dict()["proj_out.weight"], whole.proj_out.weight)
    # A smaller number of files takes the place of all that were there.
    whole.save_pretrained(tmp_path, variant="fp16")
    assert [path.name for path in tmp_path.glob("*fp16*")] == ["model.fp16.safetensors"]
