"""Names of files: like the recordings', safe anywhere, and no two alike."""

import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_asr.export.write import Names
from corpus_asr.storage.stores.uri import recording_id, within


def names(*uris: str, suffixes: tuple[str, ...] = (".srt",)) -> dict[str, str]:
    rows = sorted(set(uris))
    table = pa.table({"uri": rows, "recording_id": [recording_id(uri) for uri in rows]})
    found = Names(table, suffixes)
    return {uri: found[at] for at, uri in enumerate(rows)}


def test_folders_below_the_common_one_are_kept_and_suffixes_where_they_differ() -> None:
    for expected in (
        {"s3://b/2026/01/a.mp3": "01/a", "s3://b/2026/02/a.mp3": "02/a",
         "s3://b/2026/c.d.wav": "c.d"},
        {"/x/talk1.mp3": "talk1", "/x/talk2.mp3": "talk2"},
        {"/x/dir1/a.mp3": "dir1/a", "/x/dir2/a.mp3": "dir2/a"},
        {"/x/dir/only.mp3": "only"},
        {"s3://b/x.mp3": "s3/b/x", "https://h.org/x.mp3?sig=a/b": "https/h.org/x"},
        {"/x/a.mp3": "a.mp3", "/x/a.wav": "a.wav", "/x/b.wav": "b"},
    ):  # fmt: skip
        assert names(*expected) == expected


def test_what_is_still_alike_gets_its_id() -> None:
    found = names("/x/a.mp3", "/x/A.MP3", "/x/a.wav")
    assert found["/x/a.wav"] == "a.wav"
    assert found["/x/a.mp3"] == f"a.mp3~{recording_id('/x/a.mp3')}"
    guess = f"/x/a.mp3~{recording_id('/x/a.mp3')}.srt/trap.wav"
    found = names("/x/a.mp3", "/x/A.MP3", guess)  # as one who wants to overwrite it would guess
    assert found["/x/a.mp3"] == f"a.mp3~~{recording_id('/x/a.mp3')}"
    composed, parted = "/x/é.mp3", unicodedata.normalize("NFD", "/x/é.mp3")
    found = names(composed, parted)
    assert len({unicodedata.normalize("NFC", name) for name in found.values()}) == 2


def test_a_file_is_not_named_like_a_folder() -> None:
    assert names("/x/a.wav", "/x/a.srt/b.wav")["/x/a.wav"] == "a.wav"
    assert names("/x/a.wav", "/x/a.wav.srt/b.wav", "/x/a.srt/b.wav")["/x/a.wav"] == (
        f"a.wav~{recording_id('/x/a.wav')}"
    )


def test_files_of_one_recording_are_not_those_of_another() -> None:
    found = names("/x/a.wav", "/x/a.whisperx.wav", suffixes=(".json", ".whisperx.json"))
    files = [name + suffix for name in found.values() for suffix in (".json", ".whisperx.json")]
    assert len(set(files)) == 4


def test_dangerous_names_are_written_out() -> None:
    expected = {
        "..": "%2E%2E", ".": "%2E", "-rf.wav": "-rf", "a\\..\\b.wav": "a%5C..%5Cb",
        "a:b*?.wav": "a%3Ab%2A%3F", "100%.wav": "100%25", "new\nline\t.wav": "new%0Aline%09",
        ".tmp-x.wav": "%2Etmp-x", ".hidden": ".hidden", " ": "%20",
        "\u202egnp.wav": "%E2%80%AEgnp", "no suffix. At all": "no suffix. At all",
    }  # fmt: skip
    for name, written in expected.items():
        assert names(f"s3://b/x/{name}", "s3://b/x/zz.wav")[f"s3://b/x/{name}"] == written


def test_long_names_are_cut_and_stay_apart() -> None:
    found = names(*(f"/x/{'ä' * 400}{number}.wav" for number in (1, 2)))
    assert len(set(found.values())) == 2
    assert all(len((name + ".srt").encode()) <= 255 for name in found.values())


STEP: Any = st.text(
    st.sampled_from("aA.~/%\\:é\u0301\n ") | st.characters(codec="utf-8", exclude_characters="\0"),
    max_size=6,
)
SUFFIX = st.sampled_from([".wav", ".mp3", ".srt", "", ".srt/x.wav", "/../../e.wav"])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["s3://b/", "s3://b/c/", "/r/"]), STEP, SUFFIX), min_size=1)
)
def test_no_two_are_alike_and_none_leads_out(parts: list[tuple[str, str, str]]) -> None:
    found = names(*("".join(part) for part in parts), suffixes=(".srt", ".json"))
    files = {name + suffix for name in found.values() for suffix in (".srt", ".json")}
    folded = {unicodedata.normalize("NFKC", name.casefold()) for name in files}
    assert len(folded) == 2 * len(found)
    folders = {str(parent) for name in folded for parent in Path(name).parents}
    assert not folders & folded
    for name in files:
        assert within("/to", name) == f"/to/{name}"
        assert all(step.strip(". ") for step in name.split("/"))
        assert all(len(step.encode()) <= 255 for step in name.split("/"))
