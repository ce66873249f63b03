"""Every argument of both families' networks against transformers, over many shapes."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from torch import Tensor

from corpus_asr.models import speech2text, whisper
from tests.support.checkpoints import tiny_network, tiny_whisper

# Products of float32 in another order.
TOLERANCE = 2e-5
# Sums over all tokens and positions of such.
GRADIENT_TOLERANCE = 1e-4
# Logits of the real checkpoint reach 20, so one rounding step is 2e-6.
REAL_TOLERANCE = 1e-4

VOCAB, FRAMES, TOKENS, HEAD_DIM = 120, 60, 7, 12
ATTENTIONS = ("eager", "sdpa")
STATES = (
    "decoder_hidden_states", "decoder_attentions", "cross_attentions", "encoder_hidden_states",
    "encoder_attentions",
)  # fmt: skip


def write_whisper(folder: Path, **settings: Any) -> Path:
    sizes: dict[str, Any] = {"d_model": 2 * HEAD_DIM, "layers": 3, "heads": 2, "vocab_size": VOCAB}
    sizes |= {"max_source_positions": FRAMES // 2, "max_target_positions": 16}
    return tiny_whisper(folder, **sizes | settings)


def write_speech2text(folder: Path, **settings: Any) -> Path:
    return tiny_network(folder, **{"layers": 3, **settings})


def labels(rows: int, tokens: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(2, VOCAB - 2, (rows, tokens), generator=generator)
    drawn[0, tokens - tokens // 3 :] = -100
    return drawn


def whisper_inputs(*, rows: int = 3, mel: int = 80, seed: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, mel, FRAMES, generator=generator)
    return {"input_features": features, "labels": labels(rows, TOKENS, generator)}


def speech2text_inputs(
    lengths: tuple[int, ...] = (61, 30, 5), *, tokens: int = TOKENS, mel: int = 80, seed: int = 3
) -> dict[str, Tensor]:
    """Features, padded with zeros as the feature extractor does, their mask, and labels."""
    generator = torch.Generator().manual_seed(seed)
    rows, longest = len(lengths), max(lengths)
    mask = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None]).long()
    features = torch.randn(rows, longest, mel, generator=generator) * mask[:, :, None]
    given = {"input_features": features, "attention_mask": mask}
    return given | {"labels": labels(rows, tokens, generator)}


@dataclass(frozen=True)
class Family:
    package: Any
    name: str
    write: Callable[..., Path]
    inputs: Callable[..., dict[str, Tensor]]

    @property
    def ours(self) -> Any:
        return getattr(self.package, f"{self.name}ForConditionalGeneration")

    @property
    def theirs(self) -> Any:
        return getattr(transformers, f"{self.name}ForConditionalGeneration")

    @functools.cache  # noqa: B019 - families are as few as checkpoints
    def both(self, folder: Path, attention: str = "eager") -> tuple[Any, Any]:
        """Load the same weights here and in transformers, which always runs eagerly."""
        ours = self.ours.from_pretrained(folder, attn_implementation=attention)
        return ours, self.theirs.from_pretrained(folder, attn_implementation="eager").eval()

    def sound_and_tokens(self) -> tuple[dict[str, Tensor], Tensor]:
        given = self.inputs()
        tokens = given.pop("labels").clamp(min=2)
        return given, tokens


WHISPER = Family(whisper, "Whisper", write_whisper, whisper_inputs)
SPEECH2TEXT = Family(speech2text, "Speech2Text", write_speech2text, speech2text_inputs)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    families = (WHISPER, SPEECH2TEXT)
    return {f.name: f.write(tmp_path_factory.mktemp("checkpoint")) for f in families}


@pytest.fixture(params=[WHISPER, SPEECH2TEXT], ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    chosen: Family = request.param
    return chosen


@pytest.fixture
def folder(family: Family, folders: dict[str, Path]) -> Path:
    return folders[family.name]


@pytest.fixture
def whisper_folder(folders: dict[str, Path]) -> Path:
    return folders["Whisper"]


def close(found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_losses_states_and_attentions_are_those_of_transformers(
    family: Family, folder: Path
) -> None:
    ours, theirs = family.both(folder)
    options = {"output_attentions": True, "output_hidden_states": True}
    with torch.no_grad():
        found = ours(**family.inputs(), **options)
        expected = theirs(**family.inputs(), **options)
    assert list(found) == list(expected)
    for name in ("loss", "logits", "encoder_last_hidden_state", *STATES):
        close(found[name], expected[name])
    for at, name in enumerate(found):
        assert type(found[at]) is type(expected[at]) or name == "past_key_values"
    with torch.no_grad():
        listed = ours(**family.inputs(), **options, return_dict=False, use_cache=False)
    close(listed, tuple(found[name] for name in found if name != "past_key_values"))


Shape = tuple[Family, dict[str, Any], dict[str, Any]]
SHAPES: dict[str, Shape] = {
    "large-v3 bins": (WHISPER, {"num_mel_bins": 128, "vocab_size": 1234}, {"mel": 128}),
    "towers of two depths": (WHISPER, {"encoder_layers": 3, "decoder_layers": 1}, {}),
    "embeddings scaled": (WHISPER, {"scale_embedding": True}, {}),
    "one frame": (SPEECH2TEXT, {}, {"lengths": (1,)}),
    "rows of every remainder": (SPEECH2TEXT, {}, {"lengths": (16, 15, 14, 13, 12)}),
    "longer than the checkpoint's positions": (
        SPEECH2TEXT, {"max_source_positions": 8, "max_target_positions": 4}, {"lengths": (61, 9)},
    ),
    "three convolutions": (
        SPEECH2TEXT, {"num_conv_layers": 3, "conv_kernel_sizes": [5, 3, 7]}, {},
    ),
    "two channels": (
        SPEECH2TEXT, {"input_channels": 2, "input_feat_per_channel": 20}, {"mel": 40},
    ),
    "embeddings not scaled": (SPEECH2TEXT, {"scale_embedding": False}, {}),
    "an odd width": (SPEECH2TEXT, {"d_model": 25, "heads": 5}, {}),
    "towers that differ": (SPEECH2TEXT, {"encoder_layers": 3, "decoder_layers": 1}, {}),
    "no layers": (SPEECH2TEXT, {"encoder_layers": 0, "decoder_layers": 0}, {}),
    "gelu": (SPEECH2TEXT, {"activation_function": "gelu"}, {}),
    "an output of its own": (SPEECH2TEXT, {"tie_word_embeddings": False}, {}),
    "padding is token 9": (SPEECH2TEXT, {"pad_token_id": 9}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_gives_what_transformers_gives(tmp_path: Path, name: str) -> None:
    family, settings, shape = SHAPES[name]
    folder = family.write(tmp_path, **settings)
    ours, theirs = family.both(folder)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        expected = theirs(**family.inputs(**shape))
        for attention in ATTENTIONS:
            ours = type(ours).from_pretrained(folder, attn_implementation=attention)
            found = ours(**family.inputs(**shape))
            for part in ("logits", "loss", "encoder_last_hidden_state"):
                close(found[part], expected[part])


@pytest.mark.parametrize(
    ("family", "tied"), [(WHISPER, True), (SPEECH2TEXT, True), (SPEECH2TEXT, False)]
)
def test_gradients_are_those_of_transformers(family: Family, tmp_path: Path, tied: bool) -> None:
    folder = family.write(tmp_path, tie_word_embeddings=tied)
    ours, theirs = family.both(folder)
    theirs(**family.inputs()).loss.backward()
    for attention in ATTENTIONS:
        ours = type(ours).from_pretrained(folder, attn_implementation=attention)
        ours(**family.inputs()).loss.backward()
        for (name, found), (other, expected) in zip(
            ours.named_parameters(), theirs.named_parameters(), strict=True
        ):
            assert name == other
            if name == "model.encoder.embed_positions.weight":
                assert found.grad is None  # fixed; loading makes transformers forget it
            else:
                close(found.grad, expected.grad, GRADIENT_TOLERANCE)


DROPPED: dict[str, Any] = {
    "dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1,
    "encoder_layerdrop": 0.2, "decoder_layerdrop": 0.2,
}  # fmt: skip
MASKED: dict[str, Any] = {
    "apply_spec_augment": True, "mask_time_prob": 0.1, "mask_time_length": 7,
    "mask_feature_prob": 0.2, "mask_feature_length": 9, "mask_feature_min_masks": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "settings"),
    [(WHISPER, DROPPED), (WHISPER, MASKED), (WHISPER, DROPPED | MASKED), (SPEECH2TEXT, DROPPED)],
)
def test_training_drops_the_same_under_the_same_seeds(
    family: Family, tmp_path: Path, settings: dict[str, Any]
) -> None:
    ours, theirs = family.both(family.write(tmp_path, **settings))
    losses = []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(5)
        np.random.seed(5)
        losses.append(torch.stack([model(**family.inputs(seed=seed)).loss for seed in range(4)]))
    close(losses[0], losses[1])
    ours.eval()
    theirs.eval()
    close(ours(**family.inputs()).loss, theirs(**family.inputs()).loss)
    assert (losses[0][3] - ours(**family.inputs()).loss).abs() > TOLERANCE


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_hidden_tokens_are_not_seen(family: Family, folder: Path, attention: str) -> None:
    ours, theirs = family.both(folder, attention)
    # At the start, at the end, a whole row, none.
    for hidden in (slice(0, 3), slice(-3, None), slice(None), slice(0, 0)):
        mask = torch.ones(3, TOKENS, dtype=torch.long)
        mask[1, hidden] = 0
        options: list[dict[str, Tensor]] = [{}]
        if family is WHISPER:
            options.append({"decoder_position_ids": (mask.cumsum(-1) - 1).clamp(min=0)})
        for more in options:
            given = {**family.inputs(), "decoder_attention_mask": mask, **more}
            with torch.no_grad():
                found, expected = ours(**given), theirs(**given)
            # What hidden tokens themselves give means nothing.
            close(found.logits[mask.bool()], expected.logits[mask.bool()])
            assert found.logits.isfinite().all()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_mask_may_say_what_each_token_sees(family: Family, folder: Path, attention: str) -> None:
    ours, theirs = family.both(folder, attention)
    generator = torch.Generator().manual_seed(1)
    sees = torch.rand(3, 1, TOKENS, TOKENS, generator=generator) < 0.6
    sees |= torch.eye(TOKENS, dtype=torch.bool)
    added = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
    for mask in (added, added[:1]):
        given = {**family.inputs(), "decoder_attention_mask": mask}
        with torch.no_grad():
            close(ours(**given).logits, theirs(**given).logits)
    given = family.inputs()
    with torch.no_grad():
        close(
            ours(**given, decoder_attention_mask=sees).logits,
            ours(**given, decoder_attention_mask=added).logits,
        )
    for shape in ((3, 2, TOKENS, TOKENS), (2, 1, TOKENS, TOKENS), (3, 1, TOKENS, TOKENS + 1)):
        with pytest.raises(ValueError, match="one value per pair of tokens"):
            ours(**given, decoder_attention_mask=torch.ones(shape))


def test_one_prompt_is_read_with_every_window(family: Family, folder: Path) -> None:
    ours, theirs = family.both(folder, "eager")
    sound, tokens = family.sound_and_tokens()
    one = tokens[:1].clamp(min=0)
    with torch.no_grad():
        found = ours(**sound, decoder_input_ids=one).logits
        close(found, theirs(**sound, decoder_input_ids=one.expand(3, -1)).logits)
        masked = ours(**sound, decoder_input_ids=one, decoder_attention_mask=torch.ones_like(one))
    close(masked.logits, found)
    with pytest.raises(ValueError, match="one window per sequence"):
        ours(**sound, decoder_input_ids=one.expand(2, -1))


def test_caches_of_transformers_are_continued(family: Family, folder: Path) -> None:
    ours, theirs = family.both(folder, "sdpa")
    sound, tokens = family.sound_and_tokens()
    tokens = tokens.clamp(min=0)
    with torch.no_grad():
        whole = theirs(**sound, decoder_input_ids=tokens).logits
        kept = theirs(**sound, decoder_input_ids=tokens[:, :3]).past_key_values
        empty = transformers.EncoderDecoderCache(
            transformers.DynamicCache(), transformers.DynamicCache()
        )
        begun = ours(**sound, decoder_input_ids=tokens[:, :3], past_key_values=empty)
        for past in (kept, begun.past_key_values):
            rest = ours(**sound, decoder_input_ids=tokens[:, 3:], past_key_values=past)
            close(rest.logits, whole[:, 3:])
            assert rest.past_key_values.get_seq_length() == tokens.shape[1]
    static = transformers.StaticCache(config=theirs.config, max_cache_len=9)
    with pytest.raises(ValueError, match="found a StaticCache"):
        ours(**sound, decoder_input_ids=tokens, past_key_values=static)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_tokens_one_by_one_and_in_parts_equal_the_whole(
    family: Family, folder: Path, attention: str
) -> None:
    ours, theirs = family.both(folder, attention)
    sound, labels = family.sound_and_tokens()
    with torch.no_grad():
        whole = theirs(**sound, decoder_input_ids=labels).logits
        encoded = ours.get_encoder()(**sound)
        del sound["input_features"]
        for parts in ([1] * TOKENS, [3, 1, 3], [TOKENS - 1, 1]):
            past: Any = None
            found = []
            for tokens in labels.split(parts, dim=1):
                given = {"decoder_input_ids": tokens, "past_key_values": past}
                step = ours(encoder_outputs=encoded, **sound, **given)
                past = step.past_key_values
                found.append(step.logits)
            close(torch.cat(found, dim=1), whole)
            assert past.get_seq_length() == TOKENS


def test_a_cache_goes_on_under_a_mask_as_in_transformers(whisper_folder: Path) -> None:
    sound, tokens = WHISPER.sound_and_tokens()
    mask = torch.ones(3, TOKENS, dtype=torch.long)
    mask[1, :2] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    results = []
    with torch.no_grad():
        for model in WHISPER.both(whisper_folder):
            past, logits = None, []
            for start, end in ((0, 4), (4, 5), (5, 7)):
                step = model(
                    **sound,
                    decoder_input_ids=tokens[:, start:end],
                    decoder_attention_mask=mask[:, :end],
                    decoder_position_ids=positions[:, start:end],
                    past_key_values=past,
                    output_attentions=True,
                )
                past = step.past_key_values
                logits.append(step.logits)
            results.append((torch.cat(logits, dim=1)[mask.bool()], step.decoder_attentions))
    close(results[0], results[1])


FORMS: tuple[Callable[[Any], Any], ...] = (
    lambda encoded: encoded,
    lambda encoded: (encoded.last_hidden_state,),
    lambda encoded: encoded.to_tuple(),
    lambda encoded: [encoded.last_hidden_state, None, None],
    dict,
    lambda encoded: encoded.last_hidden_state,
)


def test_encodings_and_embeddings_may_be_given_instead(family: Family, folder: Path) -> None:
    ours, theirs = family.both(folder)
    sound, tokens = family.sound_and_tokens()
    with torch.no_grad():
        expected = theirs(**sound, decoder_input_ids=tokens).logits
        encoded = ours.get_encoder()(**sound, output_hidden_states=True, output_attentions=True)
        del sound["input_features"]
        for convert in FORMS:
            given = {"encoder_outputs": convert(encoded), "decoder_input_ids": tokens}
            close(ours(**given, **sound).logits, expected)
        scale = getattr(ours.get_decoder(), "embed_scale", 1.0)
        given = {"decoder_inputs_embeds": ours.get_input_embeddings()(tokens) * scale}
        close(ours(**given, **sound, encoder_outputs=encoded).logits, expected)


@pytest.mark.parametrize("which", ["head_mask", "decoder_head_mask", "cross_attn_head_mask"])
def test_a_masked_head_says_nothing(family: Family, folder: Path, which: str) -> None:
    # transformers 5 no longer has these: a head of zeros at its output is the same.
    ours, crippled = (family.ours.from_pretrained(folder) for _ in range(2))
    mask = torch.ones(3, 2)
    mask[1, 0] = 0.0
    tower = crippled.get_encoder() if which == "head_mask" else crippled.get_decoder()
    block = tower.layers[1]
    attention = block.encoder_attn if which == "cross_attn_head_mask" else block.self_attn
    with torch.no_grad():
        attention.out_proj.weight[:, :HEAD_DIM] = 0.0
        plain = ours(**family.inputs()).logits
        found = ours(**family.inputs(), **{which: mask}).logits
        close(found, crippled(**family.inputs()).logits)
        assert not torch.allclose(found, plain)
        close(ours(**family.inputs(), **{which: torch.ones(3, 2)}).logits, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_give_what_transformers_gives(
    family: Family, folder: Path, dtype: torch.dtype
) -> None:
    ours = family.ours.from_pretrained(folder, dtype=dtype)
    theirs = family.theirs.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    given = family.inputs()
    given["input_features"] = given["input_features"].to(dtype)
    with torch.no_grad():
        found, expected = ours(**given).logits, theirs(**given).logits
    assert found.dtype == dtype
    # 8 bits of mantissa through six blocks; logits lie around 10.
    close(found, expected, 0.5 if dtype == torch.bfloat16 else 1e-6)


def test_the_real_checkpoint_gives_what_transformers_gives(checkpoint: Path) -> None:
    stored = WHISPER.ours.from_pretrained(checkpoint)
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    computed = {"proj_out.weight", "model.encoder.embed_positions.weight"}
    assert set(stored.state_dict()) - computed == names - computed
    assert stored.dtype == torch.float16
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, stored.config.num_mel_bins, 3000, generator=generator)
    tokens = torch.randint(0, stored.config.vocab_size, (1, 9), generator=generator)
    with torch.inference_mode():
        found, expected = (
            model.from_pretrained(checkpoint, dtype=torch.float32)
            .eval()(features, decoder_input_ids=tokens)
            .logits
            for model in (WHISPER.ours, WHISPER.theirs)
        )
    close(found, expected, REAL_TOLERANCE)
