"""NeMo's archives: the network, the vocabulary and the texts that went in come out."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
import yaml
from torch import Tensor
from transformers.convert_slow_tokenizer import ParakeetConverter
from typer.testing import CliRunner

from corpus_asr.cli.main import app
from corpus_asr.errors import CheckpointError, ConfigError, CorpusAsrError
from corpus_asr.models.auto import AutoModelForCTC, AutoModelForRNNT, AutoModelForTDT
from corpus_asr.models.convert import convert
from corpus_asr.models.parakeet import ParakeetProcessor
from tests.support.parakeet import KINDS, Pair, parakeet_pair
from tests.support.tokenizers import made_words

SIZE = 64
CLASSES = {"CTC": "EncDecCTCModelBPE", "RNNT": "EncDecRNNTBPEModel", "TDT": "EncDecRNNTBPEModel"}
HYBRID = "EncDecHybridRNNTCTCBPEModel"
# Of transformers' names NeMo's, in this order.
INVERSE = (
    ("encoder.subsampling.layers.", "encoder.pre_encode.conv."),
    ("encoder.subsampling.linear.", "encoder.pre_encode.out."),
    (".conv.norm.", ".conv.batch_norm."),
    (".relative_k_proj.", ".linear_pos."),
    (".o_proj.", ".linear_out."),
    (".q_proj.", ".linear_q."),
    (".k_proj.", ".linear_k."),
    (".v_proj.", ".linear_v."),
    (".bias_u", ".pos_bias_u"),
    (".bias_v", ".pos_bias_v"),
    ("ctc_head.", "decoder.decoder_layers.0."),
    ("decoder.decoder_projector.", "joint.pred."),
    ("encoder_projector.", "joint.enc."),
    ("joint.head.", "joint.joint_net.2."),
    ("decoder.embedding.", "decoder.prediction.embed."),
    ("decoder.lstm.", "decoder.prediction.dec_rnn.lstm."),
)
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model, with padding as the newest of NeMo's have it."""
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()), model_prefix=str(path), vocab_size=SIZE, model_type="bpe",
        minloglevel=2, bos_id=-1, eos_id=-1, user_defined_symbols=["<pad>"],
        character_coverage=1.0, num_threads=1,
    )  # fmt: skip
    return path.with_suffix(".model")


def texts() -> list[str]:
    words = made_words(300)
    return [" ".join(words[at : at + 10]) for at in range(0, len(words), 10)]


@pytest.fixture(scope="module")
def pairs(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("networks")
    return {
        kind: parakeet_pair(
            kind, folder / kind, encoder={"num_mel_bins": 80}, vocab_size=SIZE + 1, blanks=9.0,
            seed=7, **{"pad_token_id" if kind == "CTC" else "blank_token_id": SIZE},
        )
        for kind in KINDS
    }  # fmt: skip


def nemo_name(name: str) -> str:
    for theirs, nemos in INVERSE:
        name = name.replace(theirs, nemos)
    return name


def settings(pair: Pair, kind: str) -> dict[str, Any]:
    """Return model_config.yaml of a network, with the keys of NVIDIA's."""
    config, encoder = pair.theirs.config, pair.theirs.config.encoder_config
    labels = [f"piece {number}" for number in range(SIZE)]
    found: dict[str, Any] = {
        "target": f"nemo.collections.asr.models.{CLASSES[kind]}",
        "sample_rate": 16_000,
        "tokenizer": {"dir": "/data", "type": "bpe", "model_path": "nemo:0a_tokenizer.model"},
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "sample_rate": 16_000, "normalize": "per_feature", "window_size": 0.025,
            "window_stride": 0.01, "window": "hann", "features": 80, "n_fft": 512, "log": True,
            "frame_splicing": 1, "dither": 1e-5, "pad_to": 0, "pad_value": 0.0,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConformerEncoder", "feat_in": 80,
            "feat_out": -1, "n_layers": encoder.num_hidden_layers, "d_model": encoder.hidden_size,
            "subsampling": "dw_striding", "subsampling_factor": 8, "causal_downsampling": False,
            "subsampling_conv_channels": encoder.subsampling_conv_channels, "reduction": None,
            "ff_expansion_factor": 2, "self_attention_model": "rel_pos", "xscaling": True,
            "n_heads": encoder.num_attention_heads, "att_context_size": [-1, -1],
            "untie_biases": True, "conv_kernel_size": encoder.conv_kernel_size,
            "conv_norm_type": "batch_norm", "dropout": 0.1, "dropout_emb": 0.0, "dropout_att": 0.1,
        },
        "labels": labels,
    }  # fmt: skip
    if kind == "CTC":
        return found | {"decoder": {"num_classes": SIZE, "vocabulary": labels}}
    durations = list(getattr(config, "durations", ()))
    prednet = {"pred_hidden": config.decoder_hidden_size, "pred_rnn_layers": 2}
    joint: dict[str, Any] = {"num_classes": SIZE, "jointnet": {"activation": "relu"}}
    if durations:
        joint["num_extra_outputs"] = len(durations)
    return found | {
        "decoder": {"prednet": prednet, "vocab_size": SIZE},
        "joint": joint,
        "decoding": {"strategy": "greedy", "durations": durations},
    }


def files_of(pair: Pair, vocabulary: Path, *more: Pair) -> Files:
    """Return the files of an archive; `more` has the CTC head of a hybrid."""
    tensors: dict[str, Tensor] = {
        nemo_name(name): tensor for name, tensor in pair.theirs.state_dict().items()
    }
    tensors["preprocessor.featurizer.window"] = torch.ones(400)
    content = settings(pair, pair.kind)
    for other in more:
        content["target"] = f"nemo.collections.asr.models.{HYBRID}"
        tensors |= {
            f"ctc_{nemo_name(name)}": tensor
            for name, tensor in other.theirs.state_dict().items()
            if name.startswith("ctc_head.")
        }
    weights = io.BytesIO()
    torch.save(tensors, weights)
    return {
        "model_config.yaml": yaml.safe_dump(content).encode(),
        "0a_tokenizer.model": vocabulary.read_bytes(),
        "0b_vocab.txt": b"of no use\n",
        "model_weights.ckpt": weights.getvalue(),
    }


def packed(path: Path, files: Files, *, gzipped: bool = False) -> Path:
    with tarfile.open(path, "w:gz" if gzipped else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


LOADERS = {"CTC": AutoModelForCTC, "RNNT": AutoModelForRNNT, "TDT": AutoModelForTDT}


def same_network(pair: Pair, folder: Path) -> None:
    """Both packages load the folder and compute what the network computed that went in."""
    values = torch.randn(1, 90, 80, generator=torch.Generator().manual_seed(1))
    theirs = getattr(transformers, f"ParakeetFor{pair.kind}").from_pretrained(folder).eval()
    stored = theirs.state_dict()
    assert stored.keys() == pair.theirs.state_dict().keys()
    for name, tensor in pair.theirs.state_dict().items():
        assert torch.equal(stored[name], tensor), name
    ours = LOADERS[pair.kind].from_pretrained(folder)
    found = ours.transcribe(values, num_frames=[90]).rows()[0]
    expected = pair.ours.transcribe(values, num_frames=[90]).rows()[0]
    assert found.tokens
    assert found == expected


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_becomes_the_network_that_it_was_made_of(
    kind: str, pairs: dict[str, Pair], vocabulary: Path, tmp_path: Path
) -> None:
    pair, folder = pairs[kind], tmp_path / "folder"
    files = files_of(pair, vocabulary)
    source = packed(tmp_path / "a.nemo", files, gzipped=kind == "CTC")
    assert "million weights" in convert(source, folder)
    same_network(pair, folder)
    assert {path.name for path in tmp_path.iterdir()} == {"a.nemo", "folder"}
    written = json.loads((folder / "config.json").read_text())
    assert written["architectures"] == [f"ParakeetFor{kind}"]
    theirs = transformers.AutoProcessor.from_pretrained(folder)
    ours = ParakeetProcessor.from_pretrained(folder)
    assert ours.decoder_type == theirs.decoder_type == kind.lower()
    assert theirs.feature_extractor.preemphasis == 0.97
    assert theirs.tokenizer.pad_token == ("<pad>" if kind == "TDT" else "<blank>")
    assert theirs.tokenizer.pad_token_id == written["pad_token_id"]
    assert len(theirs.tokenizer) == SIZE + 1


def test_a_hybrid_is_a_transducer_or_ctc(
    pairs: dict[str, Pair], vocabulary: Path, tmp_path: Path
) -> None:
    # The CTC head is another network's: encoders are compared with the transducer's.
    files = files_of(pairs["TDT"], vocabulary, pairs["CTC"])
    source = packed(tmp_path / "hybrid.nemo", files)
    convert(source, tmp_path / "tdt")
    same_network(pairs["TDT"], tmp_path / "tdt")
    arguments = ["convert", str(source), str(tmp_path / "ctc"), "--head", "ctc"]
    result = CliRunner().invoke(app, [*arguments, "--dtype", "float16"])
    assert result.exit_code == 0, result.output
    stored = AutoModelForCTC.from_pretrained(tmp_path / "ctc").state_dict()
    for kind, begin in (("TDT", "encoder."), ("CTC", "ctc_head.")):
        for name, tensor in pairs[kind].theirs.state_dict().items():
            if name.startswith(begin) and tensor.is_floating_point():
                assert torch.equal(stored[name], tensor.half().float()), name


@pytest.mark.parametrize("kind", ["rel_pos", "rel_pos_local_attn"])
def test_a_limited_context_is_that_of_the_archive(
    kind: str, pairs: dict[str, Pair], vocabulary: Path, tmp_path: Path
) -> None:
    limited = {"self_attention_model": kind, "att_context_size": [[4, 2]]}
    change = with_settings(lambda c: c["encoder"].update(limited))
    convert(packed(tmp_path / "a.nemo", change(files_of(pairs["TDT"], vocabulary))), tmp_path / "b")
    found = AutoModelForTDT.from_pretrained(tmp_path / "b")
    assert found.config.encoder_config.att_context_size == (4, 2)
    values = torch.randn(1, 300, 80, generator=torch.Generator().manual_seed(1))
    expected, _ = pairs["TDT"].ours.encoder.encode(values, num_frames=[300], context=(4, 2))
    states, _ = found.encoder.encode(values, num_frames=[300])
    assert torch.equal(states, expected)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_texts_become_the_ids_of_transformers_and_of_sentencepiece(
    model_type: str, pairs: dict[str, Pair], vocabulary: Path, tmp_path: Path
) -> None:
    if model_type == "unigram":
        vocabulary = tmp_path / "other.model"
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts()), model_prefix=str(vocabulary.with_suffix("")),
            vocab_size=SIZE, model_type="unigram", minloglevel=2, bos_id=-1, eos_id=-1,
            num_threads=1,
        )  # fmt: skip
    source = packed(tmp_path / "a.nemo", files_of(pairs["CTC"], vocabulary))
    convert(source, tmp_path / "folder")
    ours = ParakeetProcessor.from_pretrained(tmp_path / "folder").tokenizer
    theirs = ParakeetConverter(str(vocabulary)).converted()
    sentence_piece = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
    named = ["a <pad> b"] if model_type == "bpe" else []
    for text in [*texts()[:8], *named, "", " two  blanks ", "ﬁne Ａ日", "x" * 40]:
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text).ids
        if model_type == "bpe" and text in texts():
            assert ids == sentence_piece.encode(text)
            assert ours.decode_text(ids) == text


def with_settings(change: Callable[[dict[str, Any]], Any]) -> Callable[[Files], Files]:
    def changed(files: Files) -> Files:
        content = yaml.safe_load(files["model_config.yaml"])
        change(content)
        return files | {"model_config.yaml": yaml.safe_dump(content).encode()}

    return changed


def without(name: str) -> Callable[[Files], Files]:
    return lambda files: {key: value for key, value in files.items() if key != name}


def replaced(name: str, content: bytes) -> Callable[[Files], Files]:
    return lambda files: files | {name: content}


class Runs:
    """Unpickled, it would call a function."""

    def __reduce__(self) -> Any:
        return print, ("it ran",)


def running() -> bytes:
    saved = io.BytesIO()
    torch.save({"encoder": Runs()}, saved)
    return saved.getvalue()


CANARY = "nemo.collections.asr.models.EncDecMultiTaskModel"
SPECIAL_CASES: list[tuple[Callable[[Files], Files], str]] = [
    (with_settings(lambda c: c.update(target=CANARY)), "found 'EncDecMultiTaskModel', expected"),
    (with_settings(lambda c: c.pop("target")), "found 'None', expected"),
    (without("model_config.yaml"), "it lacks model_config.yaml"),
    (without("model_weights.ckpt"), "it lacks model_weights.ckpt"),
    (without("0a_tokenizer.model"), "found 0 SentencePiece models"),
    (replaced("model_config.yaml", b"a: [1"), "no readable model_config.yaml"),
    (replaced("model_config.yaml", b"a: &a [1, *a]\n"), "more than 4 times its size"),
    (replaced("model_config.yaml", b"[" * 5_000), "no readable model_config.yaml"),
    (replaced("model_config.yaml", b"a list"), "found 'no settings'"),
    (replaced("model_weights.ckpt", b"PK\x03\x04 nothing"), "model_weights.ckpt: found"),
    (replaced("model_weights.ckpt", running()), "found a call of .*print"),
    (replaced("0a_tokenizer.model", b"\xff\xff"), "no readable SentencePiece model"),
    (replaced("0a_tokenizer.model", b""), "found 0 pieces"),
    (with_settings(lambda c: c["tokenizer"].update(type="agg")), "tokenizer of type 'agg'"),
    (with_settings(lambda c: c.pop("encoder")), "no settings encoder"),
    (with_settings(lambda c: c["encoder"].pop("d_model")), "no hidden_size"),
    (with_settings(lambda c: c["encoder"].update(d_model="16")), "hidden_size"),
    (with_settings(lambda c: c["encoder"].update(n_layers=10**9)), "num_hidden_layers"),
    (with_settings(lambda c: c["encoder"].update(n_layers=3)), "tensors do not fit"),
    (
        with_settings(lambda c: c["encoder"].update(self_attention_model="rel_pos_local_attn")),
        "self_attention_model 'rel_pos_local_attn' .expected 'rel_pos'",
    ),
    (with_settings(lambda c: c["encoder"].update(att_context_size=[70, -1])), "att_context_size"),
    (with_settings(lambda c: c["encoder"].update(att_context_size="all")), "att_context_size"),
    (
        with_settings(lambda c: c["encoder"].update(att_context_size=[[70, 1], [70, 0]])),
        "att_context_size",
    ),
    (with_settings(lambda c: c["preprocessor"].update(features=64)), "features 64 .expected 80"),
    (with_settings(lambda c: c["joint"].update(num_extra_outputs=7)), "expected 7 durations"),
    (
        with_settings(lambda c: c["decoding"].update(durations=["x"] * 5)),
        "durations",
    ),
    (with_settings(lambda c: c["decoder"]["prednet"].pop("pred_hidden")), "decoder_hidden_size"),
]


@pytest.mark.parametrize(("change", "message"), SPECIAL_CASES)
def test_what_cannot_be_converted_is_one_clear_error(
    change: Callable[[Files], Files],
    message: str,
    pairs: dict[str, Pair],
    vocabulary: Path,
    tmp_path: Path,
) -> None:
    source = packed(tmp_path / "a.nemo", change(files_of(pairs["TDT"], vocabulary)))
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(source, tmp_path / "folder")
    assert "a.nemo" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nemo"]


def test_another_vocabulary_is_refused(
    pairs: dict[str, Pair], vocabulary: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()), model_prefix=str(other.with_suffix("")),
        vocab_size=SIZE - 10, model_type="bpe", minloglevel=2, num_threads=1,
    )  # fmt: skip
    for kind, scores in (("CTC", 65), ("TDT", 70)):
        source = packed(tmp_path / f"{kind}.nemo", files_of(pairs[kind], other))
        with pytest.raises(CheckpointError, match=f"of 54 pieces and a head of {scores} scores"):
            convert(source, tmp_path / "folder")


def test_an_archive_neither_escapes_nor_unfolds_to_more_than_its_weights(
    pairs: dict[str, Pair], vocabulary: Path, tmp_path: Path
) -> None:
    files = files_of(pairs["TDT"], vocabulary)
    (tmp_path / "in").mkdir()
    source = packed(tmp_path / "in" / "a.nemo", files)
    with tarfile.open(source, "a") as archive:
        for name in ("../outside.model", "/tmp/outside.model"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("./model_weights.ckpt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    convert(source, tmp_path / "in" / "folder")
    same_network(pairs["TDT"], tmp_path / "in" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]

    huge = tmp_path / "huge.nemo"
    with gzip.open(huge, "wb") as file:
        member = tarfile.TarInfo("ignored")
        member.size = 64 << 20
        file.write(member.tobuf())
        file.write(bytes(member.size))
    broken = tmp_path / "broken.nemo"
    broken.write_bytes(source.read_bytes()[:60_000])
    empty = tmp_path / "empty.nemo"
    empty.write_bytes(b"")
    cases = ((huge, "more than 4 times its size"), (broken, "archive"), (empty, "archive"))
    for path, message in cases:
        with pytest.raises(CheckpointError, match=message):
            convert(path, tmp_path / "other")


def test_options_of_other_sources_are_refused(
    pairs: dict[str, Pair], vocabulary: Path, tmp_path: Path
) -> None:
    source, folder = packed(tmp_path / "a.nemo", files_of(pairs["CTC"], vocabulary)), tmp_path / "b"
    wrong: list[tuple[Path, Path, dict[str, Any], str]] = [
        (source, tmp_path / "b.pt", {}, "becomes a folder"),
        (source, folder, {"tokenizer": tmp_path}, "without --tokenizer"),
        (source, folder, {"adapter": tmp_path}, "without --tokenizer and --adapter"),
        (source, folder, {"head": "transducer"}, "found --head transducer, expected ctc"),
        (pairs["CTC"].folder, folder, {"head": "ctc"}, "--head is for .nemo files"),
    ]
    for given, target, options, message in wrong:
        with pytest.raises(ConfigError, match=message):
            convert(given, target, **options)
    with pytest.raises(CorpusAsrError, match=r"found no readable NeMo archive .*No such file"):
        convert(tmp_path / "none.nemo", folder)
