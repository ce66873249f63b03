"""Losses: equal to transformers', to PyTorch's, and zero where there is nothing to learn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from corpus_asr.errors import ConfigError
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.training.examples import Batch, Collate, Example
from corpus_asr.training.labels import Letters, Spoken, TokenRow
from corpus_asr.training.memory import HeardBatch
from corpus_asr.training.objective import Objective, Weights
from tests.support.checkpoints import tiny_whisper

BLANK = 256
END = 998


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # windows of 1 s are enough here
    return tiny_whisper(tmp_path_factory.mktemp("model"), max_source_positions=50)


def network(folder: Path) -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(folder)


@pytest.fixture(scope="module")
def batch() -> Batch:
    draw = np.random.default_rng(0)
    rows = [(999, 950, 3, 4, 5, END), (960, 7, 999, 950, 8, 9, 10, END)]
    spoken = [
        (Spoken(0.1, 0.5, b"so"), Spoken(0.5, 0.71, b"i")),
        (Spoken(0.0, 0.98, b"did"),),
    ]
    return Collate(END)(
        [
            Example(
                features=draw.standard_normal((80, 100)).astype(np.float32),
                tokens=TokenRow(ids=ids, learnt_from=first, spoken=passages),
            )
            for ids, first, passages in zip(rows, (1, 3), spoken, strict=True)
        ]
    )


def test_rows_are_joined_and_only_what_is_to_be_learnt_counts(batch: Batch) -> None:
    assert batch.whole.inputs.tolist() == [
        [999, 950, 3, 4, 5, END, END],
        [960, 7, 999, 950, 8, 9, 10],
    ]
    assert batch.whole.labels.tolist() == [
        [950, 3, 4, 5, END, -100, -100],
        [-100, -100, 950, 8, 9, 10, END],
    ]
    assert batch.whole.num_labels == 10
    assert batch.spans.tolist() == [[0, 5, 25, 2], [0, 25, 35, 1], [1, 0, 49, 3]]
    assert bytes(batch.spoken.tolist()) == b"soidid"


def test_the_loss_is_that_of_transformers(folder: Path, batch: Batch) -> None:
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    expected = theirs(
        batch.features, decoder_input_ids=batch.whole.inputs, labels=batch.whole.labels
    )
    ours = network(folder)
    found = Objective(ours, Weights(), teacher=None)(ours, batch)
    loss = found.parts["labels"] / batch.whole.num_labels
    assert loss == pytest.approx(expected.loss.item(), abs=1e-4)
    assert found.total.item() == pytest.approx(found.parts["labels"])


def test_smoothing_is_pytorchs(folder: Path, batch: Batch) -> None:
    ours = network(folder)
    objective = Objective(ours, Weights(label_smoothing=0.1), teacher=None)
    logits = ours(batch.features, decoder_input_ids=batch.whole.inputs).logits
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.whole.labels.flatten(), label_smoothing=0.1
    )
    assert objective(ours, batch).total.item() == pytest.approx(
        expected.item() * batch.whole.num_labels, rel=1e-5
    )


def test_reading_off_the_encoder_is_ctc_over_the_letters_of_each_passage(
    folder: Path, batch: Batch
) -> None:
    ours = network(folder)
    objective = Objective(ours, Weights(ctc=0.5), teacher=None)
    found = objective(ours, batch)
    assert objective.read_off is not None
    states = ours.model.encoder(batch.features).last_hidden_state
    scores = torch.log_softmax(objective.read_off(states), dim=-1)
    expected = sum(
        torch.nn.functional.ctc_loss(
            scores[row, first : last + 1, None],
            torch.tensor([list(text)]),
            torch.tensor([last + 1 - first]),
            torch.tensor([len(text)]),
            blank=BLANK,
            reduction="sum",
        ).item()
        for row, first, last, text in [(0, 5, 25, b"so"), (0, 25, 35, b"i"), (1, 0, 49, b"did")]
    )
    assert found.parts["ctc"] == pytest.approx(0.5 * expected, rel=1e-4)


def test_sounds_are_named_where_they_are_known(folder: Path, batch: Batch) -> None:
    ours = network(folder)
    objective = Objective(ours, Weights(phones=0.5), teacher=None)
    assert objective(ours, batch).parts["phones"] == 0.0
    phones = torch.full((2, 50), -100)
    phones[0, 10:30], phones[1, 40:] = 7, 3
    assert objective.name_sounds is not None
    states = ours.model.encoder(batch.features).last_hidden_state
    scores = torch.log_softmax(objective.name_sounds(states), dim=-1)
    expected = -(scores[0, 10:30, 7].sum() + scores[1, 40:, 3].sum()).item()
    found = objective(ours, replace(batch, phones=phones))
    assert found.parts["phones"] == pytest.approx(0.5 * expected, rel=1e-4)
    cut = objective(ours, replace(batch, phones=phones, num_frames=80)).parts["phones"]
    assert 0 < cut < 0.5 * 20 * 10  # what is not heard is not asked for


def looking(folder: Path) -> tuple[WhisperForConditionalGeneration, Objective]:
    ours = network(folder)
    ours.generation_config.alignment_heads = ((0, 1), (1, 0))
    return ours, Objective(ours, Weights(ctc=0.5, attention=0.25), teacher=None)


def test_attention_is_led_to_where_letters_are_read_off(folder: Path) -> None:
    letters = (None, None, Letters(0, 0, 2), Letters(0, 2, 3), Letters(1, 0, 2), None)
    spoken = (Spoken(0.0, 0.5, b"abc"), Spoken(0.5, 0.98, b"de"))
    features = np.random.default_rng(1).standard_normal((80, 100)).astype(np.float32)
    tokens = TokenRow(ids=(999, 950, 3, 4, 5, END), learnt_from=1, spoken=spoken, letters=letters)
    silence = TokenRow(ids=(950, END), learnt_from=1)
    batch = Collate(END)([Example(features=features, tokens=one) for one in (silence, tokens)])
    ours, objective = looking(folder)
    assert objective.read_off is not None
    with torch.no_grad():  # each letter at a place of its own
        states = ours.model.encoder(batch.features).last_hidden_state
        objective.read_off.bias.fill_(0.0)[BLANK] = 20.0
        at = {b"a": 3, b"b": 6, b"c": 11, b"d": 30, b"e": 44}
        targets = torch.zeros(50, BLANK + 1)
        for letter, place in at.items():
            targets[place, letter[0]] = 60.0
        objective.read_off.weight.copy_(torch.linalg.lstsq(states[1], targets).solution.T)
    found = objective(ours, batch)
    attentions = ours(
        batch.features, decoder_input_ids=batch.whole.inputs, output_attentions=True
    ).cross_attentions
    expected = 0.0
    # A token is written at the place before it; 0.1 s on each side of its letters is near enough.
    for place, first, last in ((1, 3, 6), (2, 11, 11), (3, 30, 44)):
        for layer, head in ((0, 1), (1, 0)):
            near = attentions[layer][1, head, place, max(0, first - 5) : last + 6].sum()
            expected -= near.log().item() / 2
    assert found.parts["attention"] == pytest.approx(0.25 * expected, rel=1e-3)
    found.total.backward()
    learnt = {name for name, one in ours.named_parameters() if one.grad is not None}
    assert "model.decoder.layers.1.encoder_attn.q_proj.weight" in learnt


def test_windows_and_passages_are_heard_and_written_later(folder: Path, batch: Batch) -> None:
    rows = [(999, 950, 3, 4, END), (999, 950, 5, END), (999, 950, 8, 9, 10, END)]
    alone = tuple(
        TokenRow(ids=ids, learnt_from=1, spoken=(one,), letters=(None, None, Letters(0, 0, 1)))
        for ids, one in zip(
            rows, (Spoken(0.1, 0.5, b"so"), Spoken(0.1, 0.31, b"i"), Spoken(0.0, 0.98, b"did")),
            strict=True,
        )
    )  # fmt: skip
    bare = Example(
        features=np.zeros((80, 100), np.float32), tokens=TokenRow(ids=(950, END), learnt_from=1)
    )
    written = Collate(END)([replace(bare, alone=alone[:2]), replace(bare, alone=alone[2:])]).alone
    assert written is not None
    assert written.letters[:, 1, 0].tolist() == [0, 1, 2]
    ours, objective = looking(folder)
    heard = objective.hear(ours, replace(batch, alone=written))
    assert [len(window) for window in heard] == [3, 2]
    states = ours.model.encoder(batch.features).last_hidden_state
    parts = [heard[0][1], heard[0][2], heard[1][1]]
    # as far around each as five positions go
    for ids, one, (row, first, end) in zip(
        rows, parts, ((0, 0, 31), (0, 20, 41), (1, 0, 50)), strict=True
    ):
        assert one.states.dtype == torch.float16
        torch.testing.assert_close(one.states.float(), states[row, first:end], rtol=0, atol=4e-3)
        assert (*one.inputs.tolist(), END) == ids
        assert one.labels.tolist() == list(ids[1:])
        assert (one.places[1] >= 0).all()
        assert one.places[0].tolist() == [-1, -1]
    whole = objective(ours, batch)
    again = objective.write(ours, HeardBatch.joined([window[0] for window in heard]))
    assert again.tokens == whole.tokens
    for part in ("labels", "attention"):
        assert again.parts[part] == pytest.approx(whole.parts[part], rel=1e-3)
    again.total.backward()
    learnt = {name for name, one in ours.named_parameters() if one.grad is not None}
    assert "model.decoder.layers.0.fc1.weight" in learnt
    assert not any("encoder." in name for name in learnt)


def test_attention_is_not_led_where_nothing_is_written(folder: Path, batch: Batch) -> None:
    ours, objective = looking(folder)
    assert objective(ours, batch).parts["attention"] == 0.0


@pytest.mark.parametrize(("heads", "ctc"), [(None, 0.5), (((0, 0),), 0.0)])
def test_heads_and_letters_are_needed_to_lead_attention(
    folder: Path, heads: tuple[tuple[int, int], ...] | None, ctc: float
) -> None:
    ours = network(folder)
    ours.generation_config.alignment_heads = heads
    with pytest.raises(ConfigError, match=r"training\.attention_weight: found a ctc_weight of"):
        Objective(ours, Weights(ctc=ctc, attention=1.0), teacher=None)


def test_the_encoder_may_learn_alone(folder: Path, batch: Batch) -> None:
    ours = network(folder)
    objective = Objective(ours, Weights(ctc=0.5), teacher=None)
    whole = objective(ours, batch).parts
    found = objective(ours, batch, encoder_alone=True)
    assert found.parts == {"ctc": whole["ctc"]}
    found.total.backward()
    learnt = {
        name.split(".")[0]
        for name, parameter in ours.model.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }
    assert learnt == {"encoder"}


def test_windows_that_are_cut_are_heard_as_if_there_were_no_more(
    folder: Path, batch: Batch
) -> None:
    ours = network(folder)
    objective = Objective(ours, Weights(), teacher=None)
    found = objective(ours, replace(batch, num_frames=60)).parts
    loud = batch.features.clone()
    loud[:, :, 60:] = 3.0
    assert objective(ours, replace(batch, num_frames=60, features=loud)).parts == found
    assert objective(ours, batch).parts != found


def test_windows_in_which_nobody_speaks_have_nothing_to_read_off(folder: Path) -> None:
    ours = network(folder)
    silence = Example(
        features=np.zeros((80, 100), np.float32), tokens=TokenRow(ids=(950, 998), learnt_from=1)
    )
    objective = Objective(ours, Weights(ctc=0.5), teacher=None)
    found = objective(ours, Collate(END)([silence]))
    found.total.backward()
    assert found.parts["ctc"] == 0.0


def test_a_teacher_that_agrees_has_nothing_to_teach(folder: Path, batch: Batch) -> None:
    ours = network(folder)
    weights = Weights(teacher_tokens=0.8, teacher_encoder=0.0)
    objective = Objective(ours, weights, teacher=network(folder))
    found = objective(ours, batch)
    assert found.parts["teacher_tokens"] == pytest.approx(0.0, abs=1e-3)
    plain = Objective(ours, Weights(), teacher=None)(ours, batch)
    assert found.parts["labels"] == pytest.approx(0.2 * plain.parts["labels"], rel=1e-4)


def test_a_teacher_that_is_not_asked_changes_nothing(folder: Path, batch: Batch) -> None:
    ours = network(folder)
    weights = Weights(teacher_tokens=0.8, teacher_encoder=1.0)
    objective = Objective(ours, weights, teacher=network(folder))
    plain = Objective(ours, Weights(), teacher=None)(ours, batch)
    assert objective(ours, batch, taught=False).parts == plain.parts


def test_a_teacher_of_another_width_teaches_its_encoding(
    folder: Path, batch: Batch, tmp_path: Path
) -> None:
    ours = network(folder)
    wide = tiny_whisper(tmp_path / "wide", d_model=96, max_source_positions=50, seed=1)
    objective = Objective(ours, Weights(teacher_encoder=1.0), teacher=network(wide))
    found = objective(ours, batch)
    found.total.backward()
    assert found.parts["teacher_encoder"] > 0
    assert objective.matched is not None
    assert objective.matched.weight.grad is not None
    assert {name for name, _ in objective.named_parameters()} == {"matched.weight", "matched.bias"}


@pytest.mark.parametrize(
    ("config", "weights", "told"),
    [
        ({"vocab_size": 1100}, Weights(teacher_tokens=0.5), "vocab_size 1100"),
        ({"num_mel_bins": 128}, Weights(teacher_encoder=1.0), "num_mel_bins 128"),
        ({"max_source_positions": 100}, Weights(teacher_encoder=1.0), "max_source_positions 100"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, config: dict, weights: Weights, told: str
) -> None:
    other = tiny_whisper(tmp_path / "other", **{"max_source_positions": 50, **config})
    with pytest.raises(ConfigError, match=told):
        Objective(network(folder), weights, teacher=network(other))
