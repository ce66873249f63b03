"""What tables may make this machine read: what this user's own runs read, or what is allowed."""

import os
import shutil
from pathlib import Path

import pytest

from corpus_asr.config.run import RunConfig
from corpus_asr.config.storage_options import StorageOptions
from corpus_asr.errors import FetchError
from corpus_asr.failure_kinds import REFUSED_FILE, REFUSED_HOST
from corpus_asr.storage.run_state import own_sources
from corpus_asr.storage.run_state.forget import summaries_of
from corpus_asr.storage.run_state.own_sources import source_options
from corpus_asr.storage.run_state.plan import make_plan, read_listing
from corpus_asr.storage.run_state.run_files import CONFIG_NAME, begin_run
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import StoreOptions, read_bytes
from tests.support.stores import web_server
from tests.support.tables import run_config

SECRET = b"of this machine"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has run nothing yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture(name="audio")
def audio_folder(tmp_path: Path) -> Path:
    for name in ("audio/a.wav", "audio/deep/b.wav", "audio2/c.wav", "private.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(SECRET)
    return tmp_path / "audio"


def begun(config: RunConfig) -> OutputStore:
    store = OutputStore(config.output.uri)
    plan = make_plan(config, store)
    begin_run(store, config, "settings", listing=read_listing(store, plan.name))
    return store


def opens(uri: object, options: StoreOptions) -> bool:
    try:
        return read_bytes(str(uri), options) == SECRET
    except FetchError as error:
        if error.kind != REFUSED_FILE or "--audio-folder" not in str(error):
            raise
        return False


def test_below_the_source_of_an_own_run_all_is_read_and_nothing_else(audio: Path) -> None:
    options = source_options(begun(run_config(audio, audio.parent / "output")))
    for inside in (
        audio / "a.wav",
        audio / "deep" / ".." / "deep" / "b.wav",
        f"file://{audio}/a.wav",
    ):
        assert opens(inside, options)
    outside = audio.parent / "private.txt"
    (audio / "link.wav").symlink_to(outside)
    (audio / "up").symlink_to(audio.parent)
    for uri in (
        outside, audio.parent / "audio2" / "c.wav", audio / ".." / "private.txt",
        audio / "link.wav", audio / "up" / "private.txt", f"file://{outside}", f"FILE://{outside}",
        f"file://localhost{outside}", f"file://{audio}/../private.txt", f"local://{outside}",
        f"simplecache::file://{outside}", f"zip://a::{outside}", f"filecache://{outside}",
        os.path.relpath(outside), "/proc/self/environ", "/dev/stdin",
        f"sftp://localhost{outside}", f"{audio}/../no such file", "memory://a",
    ):  # fmt: skip
        assert not opens(uri, options), uri
    with pytest.raises(FetchError, match="not found"):  # a name like any other
        read_bytes(f"{audio}/%2e%2e/private.txt", options)


@pytest.mark.parametrize("pattern", ["audio/*.wav", "audio/a.wav", "audio/**/b.wav"])
def test_globs_and_single_files_count_as_sources(audio: Path, pattern: str) -> None:
    options = source_options(begun(run_config(audio.parent / pattern, audio.parent / "output")))
    assert opens(audio / ("deep/b.wav" if "**" in pattern else "a.wav"), options)
    assert not opens(audio.parent / "audio2" / "c.wav", options)


def test_a_manifests_recordings_are_read_and_its_neighbors_are_not(audio: Path) -> None:
    manifest = audio.parent / "list.csv"
    manifest.write_text("uri\naudio/deep/b.wav\ns3://bucket/a.wav\n")
    source = {"manifest": str(manifest)}
    config = run_config(audio, audio.parent / "output", source=source)
    options = source_options(begun(config))
    assert options.files is not None
    assert options.files.folders == (str(audio / "deep"),)
    assert opens(audio / "deep" / "b.wav", options)
    assert not opens(audio / "a.wav", options)
    assert not opens(audio.parent / "private.txt", options)


def test_later_runs_over_other_folders_keep_what_earlier_ones_read(audio: Path) -> None:
    output = audio.parent / "output"
    for folder in (audio, audio.parent / "audio2"):
        store = begun(run_config(folder, output))
    assert opens(audio / "a.wav", source_options(store))
    assert opens(audio.parent / "audio2" / "c.wav", source_options(store))


def test_where_many_folders_are_read_those_above_them_are_recorded(
    audio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_sources, "MOST_FOLDERS", 2)
    uris = [str(audio / name / "x.wav") for name in "abcd"]
    store = OutputStore(str(audio.parent / "output"))
    begin_run(store, run_config("", store.uri, source={"uri": uris}), "settings")
    assert opens(audio / "a.wav", source_options(store))
    assert not opens(audio.parent / "private.txt", source_options(store))


def test_what_an_output_folder_says_of_itself_opens_nothing(
    audio: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = begun(run_config("/", audio.parent / "output", source={"uri": [str(audio)]}))
    assert opens(audio / "a.wav", source_options(store))
    (record,) = (state / "corpus-asr" / "sources").iterdir()
    assert record.stat().st_mode & 0o077 == 0
    # Another user, or another machine: settings are those of a run of somebody else.
    monkeypatch.setenv("XDG_STATE_HOME", str(state.parent / "other"))
    assert not opens(audio / "a.wav", source_options(store))
    begun(run_config("s3://bucket/audio", audio.parent / "mine", source={"uri": [str(audio)]}))
    assert not opens(audio / "a.wav", source_options(store))
    # A folder of this user's with the settings of somebody else.
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    copy = OutputStore(str(shutil.copytree(audio.parent / "output", audio.parent / "copy")))
    assert copy.read_json(CONFIG_NAME)["source"]["uri"] == [str(audio)]
    assert not opens(audio / "a.wav", source_options(copy))
    assert opens(audio / "a.wav", source_options(copy, allowed=[str(audio)]))
    record.write_text("{}")
    assert not opens(audio / "a.wav", source_options(store))


def test_a_link_to_what_may_be_read_is_followed(audio: Path) -> None:
    (audio / "link.wav").symlink_to(audio.parent / "audio2" / "c.wav")
    store = begun(run_config(audio, audio.parent / "output"))
    assert not opens(audio / "link.wav", source_options(store))
    allowed = source_options(store, allowed=[str(audio.parent / "audio2")])
    assert opens(audio / "link.wav", allowed)


def test_without_a_place_for_the_record_a_run_begins_all_the_same(
    audio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(audio / "a.wav" / "below a file"))
    store = begun(run_config(audio, audio.parent / "output"))
    assert not opens(audio / "a.wav", source_options(store))


def test_hosts_of_this_network_are_asked_for_own_runs_and_allowed_ones_only(
    audio: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web_server() as web:
        web.files["a.wav"] = SECRET
        uri = web.url("a.wav")
        store = begun(run_config(uri, audio.parent / "output"))
        assert read_bytes(uri, source_options(store)) == SECRET
        monkeypatch.setenv("XDG_STATE_HOME", str(state.parent / "other"))
        with pytest.raises(FetchError) as caught:
            read_bytes(uri, source_options(store))
        assert caught.value.kind == REFUSED_HOST
        allowed = source_options(store, allowed=[web.url("")])
        assert read_bytes(uri, allowed) == SECRET


def test_the_endpoint_and_the_options_of_a_store_count_for_own_runs_only(
    audio: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "endpoint_url": "http://127.0.0.1:9", "requester_pays": True, "profile": "work",
        "client_kwargs": {"verify": False},
    }  # fmt: skip
    source = {"uri": "s3://bucket/a", "storage_options": options}
    store = OutputStore(str(audio.parent / "output"))
    begin_run(store, run_config("", store.uri, source=source), "settings")
    assert source_options(store).storage.values() == options
    monkeypatch.setenv("XDG_STATE_HOME", str(state.parent / "other"))
    config = store.read_json(CONFIG_NAME)
    store.write_json(CONFIG_NAME, config | {"source": source})
    assert source_options(store).storage.values() == {}
    named = StorageOptions.of({"endpoint_url": "http://127.0.0.1:8"})
    assert source_options(store, storage=named).storage.values() == named.values()
    # Own settings that somebody has changed: the record is what counts.
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    assert source_options(store).storage.values() == options


def test_where_settings_from_elsewhere_want_summaries_nothing_is_changed(
    audio: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = begun(run_config(audio, audio.parent / "output"))
    elsewhere = {"nightly": {"summaries": str(audio)}}
    store.write_json(CONFIG_NAME, store.read_json(CONFIG_NAME) | elsewhere)
    assert summaries_of(store).uri == str(audio)
    monkeypatch.setenv("XDG_STATE_HOME", str(state.parent / "other"))
    assert summaries_of(store).uri == store.address("nights")
