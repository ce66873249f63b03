"""From options to tables: which cases, on which checkpoints or random weights; a table for each."""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from corpus_asr.benchmark.orders import (
    ENGINES,
    INSTALL,
    Order,
    Recording,
    find_recordings,
    nearest,
    our_cases,
    peer_cases,
    with_settings,
)
from corpus_asr.benchmark.rounds import Row, measure, render, summarize
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families.registry import family_of
from corpus_asr.families.weights import without_weights
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.languages import LANGUAGES
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.units import WINDOW_S

# Weights are stored as half-precision floats, which every engine reads and which halve the disk.
_STORED = torch.float16
_SEED = 0

# Text tokens of the multilingual vocabulary, the end token not among them.
_NUM_TEXT_TOKENS = 50_257
# Control tokens after the languages; then 1,501 times.
_AFTER_LANGUAGES = (
    "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>",
    "<|notimestamps|>",
)  # fmt: skip
_NUM_TIMES = 1_501


# Sizes with random weights need no download: how long a network takes depends on its sizes and
# types, not on the values of its weights.
@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a network; those not named follow as in all of Whisper."""

    name: str
    width: int
    encoder_layers: int
    decoder_layers: int
    num_mel_bins: int = 80
    # Without Cantonese, which large-v3 added as the last one.
    num_languages: int = len(LANGUAGES) - 1

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token but the times, with the published control tokens at their ids."""
        codes = tuple(LANGUAGES)[: self.num_languages]
        return (
            *(f"text{number}" for number in range(_NUM_TEXT_TOKENS)),
            "<|endoftext|>",
            "<|startoftranscript|>",
            *(f"<|{code}|>" for code in codes),
            *_AFTER_LANGUAGES,
        )

    def config(self) -> WhisperConfig:
        """Describe the network as config.json does."""
        # Every published size has heads of 64 values.
        heads = self.width // 64
        end = _NUM_TEXT_TOKENS
        return WhisperConfig(
            vocab_size=end + 2 + self.num_languages + len(_AFTER_LANGUAGES) + _NUM_TIMES,
            num_mel_bins=self.num_mel_bins,
            d_model=self.width,
            encoder_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=4 * self.width,
            decoder_ffn_dim=4 * self.width,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            decoder_start_token_id=end + 1,
        )

    def network(self) -> WhisperForConditionalGeneration:
        """Build the network on the meta device, which takes no memory."""
        with without_weights():
            return WhisperForConditionalGeneration(self.config())

    def write(self, folder: Path) -> Path:
        """Write config.json, generation_config.json and random weights, everywhere the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            model = WhisperForConditionalGeneration(self.config())
        model.to(_STORED).save_pretrained(folder)
        (folder / "vocabulary.txt").write_text("\n".join(self.vocabulary), encoding="utf-8")
        return folder


# Source: Radford et al. 2022, table 1; the config.json of openai/whisper-large-v3 and -turbo.
_V3 = {"num_mel_bins": 128, "num_languages": len(LANGUAGES)}
SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        shape.name: shape
        for shape in (
            Shape(name="tiny", width=384, encoder_layers=4, decoder_layers=4),
            Shape(name="base", width=512, encoder_layers=6, decoder_layers=6),
            Shape(name="small", width=768, encoder_layers=12, decoder_layers=12),
            Shape(name="medium", width=1024, encoder_layers=24, decoder_layers=24),
            Shape(name="large-v3", width=1280, encoder_layers=32, decoder_layers=32, **_V3),
            Shape(name="large-v3-turbo", width=1280, encoder_layers=32, decoder_layers=4, **_V3),
        )
    }
)


def find_shapes(names: Sequence[str]) -> list[Shape]:
    """Return the sizes of these names."""
    for name in names:
        if name not in SHAPES:
            raise ConfigError(
                f"choosing a shape: found {name!r}, expected some of {', '.join(SHAPES)}"
                f"{nearest(name, tuple(SHAPES))}"
            )
    return [SHAPES[name] for name in dict.fromkeys(names)]


class Bench:
    """The measurements that the options ask for; all that can be refused is refused here."""

    def __init__(
        self, options: argparse.Namespace, *, device: torch.device, tell: Callable[[str], None]
    ) -> None:
        self._options = options
        self._device = device
        self._tell = tell
        self._shapes = find_shapes(options.shape or ())
        cuda = device.type == "cuda"
        peers = peer_cases(options.peers, cuda=cuda, shapes=bool(self._shapes))
        self.left_out = {
            case.label: f"{', '.join(missing)} not installed; {INSTALL}"
            for case in peers
            if (missing := case.missing_modules)
        }
        """Why a peer that was asked for is not measured, by its label."""
        cases = [
            *our_cases(options.dtype, cuda=cuda),
            *(case for case in peers if case.label not in self.left_out),
        ]
        # A network alone has no thresholds.
        self._cases = cases if self._shapes else with_settings(cases, options.settings)
        self._recordings: list[Recording] = []
        if not self._shapes:
            _check_checkpoint(Path(options.model))
            self._recordings = find_recordings(options.audio, options.manifest)
            has_text = any(recording.text is not None for recording in self._recordings)
            if has_text and find_spec("jiwer") is None:
                self.left_out["word error rate"] = f"jiwer not installed; {INSTALL}"
        for name, reason in self.left_out.items():
            tell(f"{name} is skipped: {reason}")

    def tables(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Measure, and yield each table as soon as it is known, drawn and as JSON values."""
        for shape in self._shapes:
            yield self._shape_table(shape)
        if not self._shapes:
            yield self._audio_table()

    def _audio_table(self) -> tuple[str, dict[str, Any]]:
        model = Path(self._options.model)
        audio_s = sum(recording.duration_s for recording in self._recordings)
        with tempfile.TemporaryDirectory(prefix="corpus-asr-bench-") as scratch:
            rows = self._measure(model, scratch)
        title = (
            f"{model.name}, {len(self._recordings)} recordings, {audio_s:.0f} s of audio, "
            f"{self._options.mode}, from files to text"
        )
        return self._table(title, rows, audio_s)

    def _shape_table(self, shape: Shape) -> tuple[str, dict[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="corpus-asr-bench-") as scratch:
            self._tell(f"writing random weights of {shape.name}")
            rows = self._measure(shape.write(Path(scratch) / shape.name), scratch)
        millions = shape.network().num_parameters() / 1e6
        title = (
            f"{shape.name} ({millions:.1f} M parameters, random), {self._options.batch} windows of "
            f"{WINDOW_S} s, {self._options.tokens_per_window} tokens each, the network alone"
        )
        return self._table(title, rows, float(self._options.batch * WINDOW_S))

    def _table(self, title: str, rows: Sequence[Row], audio_s: float) -> tuple[str, dict[str, Any]]:
        summaries = summarize(rows, audio_s, self._recordings, language=self._options.language)
        data = {"title": title, "audio_s": audio_s, "rows": [asdict(each) for each in summaries]}
        return f"{title}\n{render(summaries)}", data

    def _measure(self, model: Path, scratch: str) -> list[Row]:
        options = self._options
        orders = [
            Order(
                engine=case.engine,
                dtype=case.dtype,
                settings=case.settings,
                runner=(ENGINES[case.engine].decoding if self._shapes else None)
                or ENGINES[case.engine].transcribing,
                model=str(model.resolve()),
                scratch=scratch,
                device=str(self._device),
                threads=options.threads,
                batch=options.batch,
                beams=options.beams,
                audio=tuple(str(recording.path.resolve()) for recording in self._recordings),
                language=options.language,
                mode=options.mode,
                tokens_per_window=options.tokens_per_window,
            )
            for case in self._cases
        ]
        return measure(orders, runs=options.runs, tell=self._tell)


def _check_checkpoint(folder: Path) -> None:
    # Nothing is downloaded here: the other engines read a folder.
    if not folder.is_dir():
        raise CheckpointError(
            f"opening the checkpoint {folder}: there is no such folder; give one in Hugging Face "
            "layout with --model"
        )
    model_type = family_of(folder).model_type
    if model_type != WhisperConfig.model_type:
        raise CheckpointError(
            f"opening the checkpoint {folder}: found one of {model_type}, expected one of "
            f"{WhisperConfig.model_type}: the other engines are measured with this value only"
        )
