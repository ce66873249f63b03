"""A job is read whole, or refused in one message that names every key that is wrong."""

import contextlib
import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.config import load
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.config.extraction import SpeakerSettings
from corpus_asr.config.finetune import FinetuneConfig
from corpus_asr.config.load import (
    load_config,
    load_finetune,
    name_hint,
    resolved,
    yaml_value,
)
from corpus_asr.config.options import options_from
from corpus_asr.config.run import PseudoLabelConfig
from corpus_asr.config.settings import Settings, keys_of, section_of
from corpus_asr.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"

MINIMAL = """
source: {uri: recordings}
model: {checkpoint: openai/whisper-tiny}
output: {uri: out}
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_yaml(text: str) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_yaml


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


# What training data may also be asked for.
LABELS = MINIMAL + "pipeline: pseudo_label\ndataset: {uri: training}\n"

_PIPELINES = {"classify.yaml": "classify_audio", "pseudo_label.yaml": "pseudo_label"}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in re.findall(r"\$\{env:(\w+)\}", path.read_text(encoding="utf-8")):
        monkeypatch.setenv(name, "value")
    if path.name == "finetune.yaml":
        assert load_finetune(path).training
        return
    expected = _PIPELINES.get(path.name, "transcribe_corpus")
    assert load_config(path).pipeline == expected


def test_what_is_left_out_carries_its_default(write: Write) -> None:
    config = load_config(write(MINIMAL + "decoding:\n  # language: en\n"))
    assert config.source.uri == ("recordings",)
    assert config.decoding.settings() == DecodingSettings()


def test_overrides_are_read_as_yaml_and_win_over_the_file(write: Write) -> None:
    path = write(MINIMAL + "decoding: {language: de}\n")
    config = load_config(
        path,
        [
            "decoding.language=[en, no]",
            "extract.part_s=60",
            "decoding.logprob_threshold=null",
            "source.uri=s3://bucket/talks #1/*.wav",
        ],
    )
    assert config.decoding.language == ("en", "no")
    assert config.extract.part_s == 60
    assert config.decoding.logprob_threshold is None
    assert config.source.uri == ("s3://bucket/talks #1/*.wav",)
    source = load_config(path, ["source={manifest: files.jsonl}"]).source
    assert (source.uri, source.manifest) == ((), ("files.jsonl",))


def test_a_language_per_window_cannot_go_to_several_models(write: Write) -> None:
    path = write(MINIMAL)
    routed = ["model.by_language.de=other", "decoding.language_mode=window"]
    assert load_config(path, routed[:1]).model.by_language == {"de": "other"}
    assert "model.by_language: found decoding.language_mode window" in refusal(path, *routed)


def test_texts_are_aligned_in_a_transcription_of_one_channel_with_a_manifest(write: Write) -> None:
    path = write("source: {manifest: m.jsonl}\noutput: {uri: out}\ndecoding: {align: true}\n")
    assert load_config(path).decoding.align
    assert load_config(path, ["extract.channels=1"]).decoding.align
    for source in ("{uri: ['in/s-{0..9}.tar']}", "{uri: 'in/*.parquet', audio_column: audio}"):
        assert load_config(path, [f"source={source}"]).decoding.align
    for override, messages in (
        ("source={uri: recordings}", "found no source of texts"),
        ("source={uri: in/*.parquet}", "found no source of texts"),
        ("extract.channels=each", "found extract.channels: each"),
        ("pipeline=classify_audio", "found pipeline classify_audio"),
    ):
        assert messages in refusal(path, override, "model.checkpoint=base")


def test_a_transcription_needs_no_model_and_other_jobs_do(write: Write) -> None:
    unnamed = write("source: {uri: recordings}\noutput: {uri: out}\n")
    config = load_config(unnamed)
    assert (config.model.checkpoint, config.model.is_named) == ("whisper-tiny.en", False)
    assert load_config(unnamed, ["model.checkpoint=whisper-tiny.en"]).model.is_named
    messages = refusal(unnamed, "pipeline=classify_audio")
    assert "model.checkpoint: missing, expected a multilingual model for classify_audio" in messages
    assert "such as small" in messages


def test_languages_may_be_names(write: Write) -> None:
    for written, read in (
        ("ENGLISH", "en"),
        ("<|fr|>", "fr"),
        ("Auto", "auto"),
        ("[English, de, German]", ("en", "de")),
        ("xx", "xx"),
    ):
        config = load_config(write(MINIMAL), [f"decoding.language={written}"])
        assert config.decoding.language == read, written


def test_all_problems_are_told_at_once_with_line_and_nearest_key(write: Write) -> None:
    message = refusal(
        write("source: {uri: a, mainfest: b}\nextract:\n  part_s: ten\nmodel: {}\nout: {uri: x}\n")
    )
    lines = message.splitlines()
    assert lines[0].endswith("job.yaml: 4 problems")
    assert "line 1: source.mainfest: unknown key; did you mean source.manifest?" in lines[1]
    assert 'line 3: extract.part_s: found the text "ten", expected a number at least 30' in message
    assert "line 5: out: unknown key; did you mean output?" in message
    assert "output: missing; a section with uri" in message


REFUSALS = {
    MINIMAL: [
        ("language=en", "language: unknown key; did you mean decoding.language?"),
        ("extract.part-s=60", "did you mean extract.part_s?"),
        ("extract.part_s.x=60", "extract.part_s"),
        ("nothing.like.it=1", "expected one of: pipeline, source, extract"),
        ("decoding.temperature=[0, 9]", "item 2: found 9, expected a number at least 0 and at"),
        ("transcribe.slots=true", "transcribe.slots: found true, expected a whole number"),
        ("decoding.language=7", "quote it"),
        ("extract.part_s=null", "remove the key for its default, 600.0"),
        ("extract.part_s=.inf", "found inf, expected a number"),
        ("decoding.strategy=seq", "expected auto or sequential or chunked"),
        ("pipeline=classify", "classify_audio or pseudo_label; did you mean classify_audio?"),
        ("classification.languages=de", "expected two codes or more to choose among"),
        ("model.by_language.de=[a]", "model.by_language: de: found a list, expected text"),
        ("model.by_language={de: null}", "model.by_language: de: found null, expected text"),
        ("speakers.segmentation=null", "found null, expected segmentation-3.0 or none or text; r"),
        ("speakers.model=null", "found null, expected campplus or text; remove the key for its de"),
        ("extract.track=null", "expected auto or all or a whole number at least 1 or text"),
        ("decoding.language=null", "found null, expected auto or text or a list of text; remove"),
        ("decoding.language=[null]", "decoding.language: item 1: found null, expected auto or te"),
        ("source.exclude=null", "remove the key for its default, []"),
        ("source.ignore=null", '"_temporary", "__MACOSX"'),
        ("hooks=null", "hooks: found null, expected keys below it: name, function"),
        ("hooks=[{name: null}]", "hooks: item 1: name: found null, expected text such as: Name o"),
        ("hooks=[{name: a, function: a:b, columns: {a: bool}, pre: b}]", "key; did you mean per?"),
        ("source.manifest=m.csv", "set either source.uri or source.manifest"),
        ("model=7", "model: found 7, expected keys below it: checkpoint"),
        ("source.uri=[a", "reading --set source.uri: line 1"),
        ("decoding.language", "expected key=value"),
        # One problem of a union, though each of its types complains.
        ("transcribe.slots=many", 'text "many", expected a whole number above 0 or auto'),
        ("extract.part_s=s3://a:secret@b/" + "x" * 500, 'part_s: found the text "s3://***@b/xxx'),
        ("selection.max_wer=0.1", "unknown key"),
    ],
    LABELS: [
        ("selection.max_were=0.1", "did you mean selection.max_wer?"),
        ("selection.max_duration_s=45", "expected a number above 0 and at most 30"),
        ("dataset.format=tfrecord", "expected huggingface or webdataset or nemo"),
        ("dataset.test_fraction=0.99", "add up to 1 or more"),
        ("dataset={}", "dataset.uri: missing"),
        ("pipeline=transcribe_corpus", "dataset: unknown key"),
    ],
}


@pytest.mark.parametrize(
    ("job", "override", "messages"), [(job, *row) for job, rows in REFUSALS.items() for row in rows]
)
def test_a_wrong_override_is_refused_in_plain_words(
    job: str, override: str, messages: str, write: Write
) -> None:
    message = refusal(write(job), override)
    assert messages in message
    assert "secret" not in message


def test_resolved_settings_are_plain_and_hide_secrets(write: Write) -> None:
    config = load_config(
        write(MINIMAL),
        [
            "source.uri=https://host/a.mp3?X-Amz-Signature=abc&part=1",
            "output.uri=s3://bucket/out",
            "output.storage_options.endpoint_url=http://user:secret@store:9000",
        ],
    )
    plain = resolved(config)
    assert plain["source"]["uri"] == ["https://host/a.mp3?X-Amz-Signature=***&part=1"]
    assert plain["output"]["storage_options"]["endpoint_url"] == "http://***@store:9000"
    assert plain["decoding"]["temperature"] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_the_podcast_example_is_what_init_writes(tmp_path: Path) -> None:
    """Write it again: corpus-asr init configs/podcasts.yaml --full --force, with these options."""
    call = [
        "init", str(tmp_path / "podcasts.yaml"), "--full", "--source", "s3://podcasts/**/*.mp3",
        "--output", "s3://transcripts/podcasts", "--model", "small",
    ]  # fmt: skip
    assert CliRunner().invoke(cli.app, call).exit_code == 0
    text = (tmp_path / "podcasts.yaml").read_text(encoding="utf-8")
    assert (CONFIGS / "podcasts.yaml").read_text(encoding="utf-8") == text


LOG_PROBABILITIES = {"logprob_threshold", "min_avg_logprob"}
ANY_SIGN = {"min_snr_db", "min_level_dbfs", "length_penalty"}
FRACTION = re.compile(r"_(fraction|prob|probability|confidence)$|no_speech_threshold|vad_threshold")


@pytest.mark.parametrize(
    "model", [PseudoLabelConfig, FinetuneConfig], ids=lambda each: each.__name__
)
def test_numbers_have_the_bounds_of_what_they_measure(model: type[Settings]) -> None:
    for path, field in keys_of(model):
        name, kinds = path[-1], str(field.annotation)
        if section_of(field) is not None or not re.search(r"\b(int|float)\b", kinds):
            continue
        section = functools.reduce(section_below, path[:-1], model)
        if name not in LOG_PROBABILITIES | ANY_SIGN and "tuple" not in kinds:
            assert is_refused(section, name, -1), path
        if name in LOG_PROBABILITIES or FRACTION.search(name):
            assert is_refused(section, name, 1.1), path
            assert not is_refused(section, name, -0.5 if name in LOG_PROBABILITIES else 0.5), path
        assert is_refused(section, name, float("inf")), path


def section_below(model: type[Settings], key: str) -> type[Settings]:
    section = section_of(model.model_fields[key])
    assert section is not None
    return section


def is_refused(section: type[Settings], name: str, value: float) -> bool:
    try:
        section.model_validate({name: value})
    except ValidationError as error:
        return any(name in each["loc"] for each in error.errors())
    return False


def test_a_value_is_written_plainly_and_read_as_it_was() -> None:
    for value in ("true", "Null", "a b", "a: b", "1e3", "-", "größe", '"', "", "s3://a/b-1.mp3"):
        assert yaml.safe_load(yaml_value(value)) == value
    assert yaml_value("s3://a/b-1.mp3") == "s3://a/b-1.mp3"
    assert yaml_value("größe") == '"größe"'


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_VALUES = st.recursive(
    _SCALARS,
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers(), children, max_size=3)
    ),
    max_leaves=6,
)
_KEYS = st.sampled_from(
    ["source", "uri", "extract", "part_s", "channels", "decoding", "language", "temperature",
     "model", "output", "hooks", "name", "pipeline", "slots"]
)  # fmt: skip


@given(st.dictionaries(_KEYS, st.dictionaries(_KEYS, _VALUES, max_size=3) | _VALUES, max_size=5))
def test_whatever_a_file_holds_it_loads_or_is_refused_as_a_whole(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "job.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    with contextlib.suppress(ConfigError):
        assert resolved(load_config(path, ["decoding.task=translate"]))


def test_speakers_may_be_one_word_and_have_keys_all_the_same(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("source: {uri: a}\nspeakers: auto\noutput: {uri: c}\n")
    assert load_config(job).speakers == SpeakerSettings(mode="auto")
    for overrides in (["speakers.num_speakers=2"], ["speakers=auto", "speakers.num_speakers=2"]):
        assert load_config(job, overrides).speakers == SpeakerSettings(mode="auto", num_speakers=2)
    assert not load_config(job, ["speakers=none"]).speakers.wanted
    for overrides, message in (
        (
            ["speakers=everybody"],
            r'speakers\.mode: found the text "everybody", expected none or auto',
        ),
        (["extract.vad_filter=false"], "speakers need detected speech"),
        (["pipeline=classify_audio", "model.checkpoint=b"], "expected a transcription"),
        (["speakers.min_speakers=3", "speakers.max_speakers=2"], "min_speakers: 3 is more than"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(job, overrides)


MODELS = (PseudoLabelConfig, FinetuneConfig)
OURS = [".".join(key) for model in MODELS for key, _ in keys_of(model)]


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("num_beams", "did you mean decoding.beam_size?"),
        ("--beam-width", "did you mean decoding.beam_size?"),
        ("fp16", "did you mean model.compute_type?"),
        ("dtype", "did you mean model.compute_type?"),
        ("Prompt", "did you mean decoding.initial_prompt?"),
        ("word_level", "did you mean decoding.word_timestamps?"),
        ("batch_size", "did you mean transcribe.slots?"),
        ("condition_on_previous_text", "did you mean decoding.condition_on_prev_tokens?"),
        ("best_of", "there is none here: one sample"),
        ("patience", "there is none here: beam search"),
        ("suppress_tokens", "there is none here: the checkpoint's generation_config.json"),
        ("temprature", ""),  # only slips of a name of the same place are guessed
        ("quite_another", ""),
    ],
)
def test_a_foreign_name_is_answered_with_ours(written: str, hint: str) -> None:
    found = name_hint(written, [], OURS)
    assert found.startswith(hint)
    assert bool(found) == bool(hint)


def test_no_foreign_name_is_one_of_ours_and_every_hint_names_a_setting() -> None:
    known = {key.rpartition(".")[2] for key in OURS} | {"num_threads"}
    named = load._FOREIGN_NAMES
    foreign = [name for names in named.values() for name in names.split()]
    assert set(named) <= known
    assert not known & {*foreign, *load._ABSENT}


def test_every_way_in_gives_the_hint(tmp_path: Path) -> None:
    job, tuning = tmp_path / "job.yaml", tmp_path / "tuning.yaml"
    job.write_text("source: {uri: a}\nmodel: {checkpoint: b, dtype: int8}\noutput: {uri: c}\n")
    tuning.write_text("model: {checkpoint: a, freez: b}\ndata: {train: [a]}\noutput: b\n")
    with pytest.raises(ConfigError, match=r"line 2: model\.dtype: .*mean model\.compute_type\?"):
        load_config(job)
    job.write_text("source: {uri: a}\nextract: {device: cuda}\nmodel: {checkpoint: b}\n")
    with pytest.raises(ConfigError, match=r"extract\.device: .* raise extract\.workers or add CPU"):
        load_config(job)
    job.write_text("source: {uri: a}\nmodel: {checkpoint: b}\noutput: {uri: c}\n")
    with pytest.raises(ConfigError, match=r"num_beams: .* did you mean decoding\.beam_size\?"):
        load_config(job, ["decoding.num_beams=5"])
    with pytest.raises(ConfigError, match=r"model\.freez: .* did you mean model\.freeze\?"):
        load_finetune(tuning)
    with pytest.raises(ConfigError, match=r"num_beams: .* beam_size\?; dtype: .* compute_type\?"):
        options_from({"num_beams": 5, "dtype": True}, fixed=["compute_type"])
