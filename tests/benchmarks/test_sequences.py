"""The Markov chains of benchmarks/sequences.py: their law, the model, and the published update's faults."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from conftest import ROOT
from safetensors.torch import load_file
from torch import Tensor, nn

from imu_cli.linear import margins
from imu_cli.unlearning.demotion import teacher

SEED = 3


@pytest.fixture
def sequences(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The benchmark, as a module; it works in ``tmp_path``."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("IMU_BENCH_DIR", str(tmp_path))
    return importlib.import_module("sequences")


@pytest.fixture
def markov(sequences: Any) -> Any:
    """The chains, as a module."""
    return sys.modules["markov"]


def world(sequences: Any, model: nn.Module) -> Any:
    """What the published update needs of a world: a model that was trained, its seed and shape."""
    return SimpleNamespace(seed=SEED, recipe=sequences.Recipe(width=8, layers=1), before=SimpleNamespace(model=model))


@pytest.mark.parametrize(("chain", "own"), [("retain", [0, 1, 2]), ("forget1", [3, 4, 5]), ("forget2", [6, 7, 8])])
def test_a_chain_stays_in_its_own_states_and_leaks(markov: Any, chain: str, own: list[int]) -> None:
    """From its own states 0.8 to them and 0.2 to the seven others; from others anywhere alike; what is drawn has that law."""
    law = markov.transitions(chain)
    others = [state for state in range(10) if state not in own]
    torch.testing.assert_close(law[own][:, own], torch.full((3, 3), 0.8 / 3, dtype=torch.float64))
    torch.testing.assert_close(law[own][:, others], torch.full((3, 7), 0.2 / 7, dtype=torch.float64))
    torch.testing.assert_close(law[others], torch.full((7, 10), 0.1, dtype=torch.float64))
    rows = markov.sequences(chain, 4_000, SEED)
    assert rows.shape == (4_000, 20)
    counts = torch.zeros(10, 10, dtype=torch.float64)
    counts.index_put_((rows[:, :-1].flatten(), rows[:, 1:].flatten()), torch.ones(4_000 * 19).double(), accumulate=True)
    from_each = counts.sum(dim=1, keepdim=True)
    spread = (law * (1 - law) / from_each).sqrt()
    assert float(((counts / from_each - law).abs() / spread).max()) < 5
    first = torch.bincount(rows[:, 0], minlength=10) / 4_000
    assert float((first - law[own[0]]).abs().max()) < 5 * (0.25 / 4_000) ** 0.5


def test_a_fifth_of_the_sequences_is_held_out_and_halved(markov: Any) -> None:
    """Training, choosing and judging parts are those of the page, in order; a seed gives the same again, another others."""
    for chain, n in {"retain": 10_000, "forget1": 5_000, "forget2": 5_000}.items():
        parts = markov.splits(chain, SEED)
        assert [len(parts.train), len(parts.choose), len(parts.judge)] == [n * 8 // 10, n // 10, n // 10]
        whole = markov.sequences(chain, n, SEED)
        assert torch.equal(torch.cat([parts.train, parts.choose, parts.judge]), whole)
        assert not torch.equal(whole, markov.sequences(chain, n, SEED + 1))


def test_only_the_model_before_learns_what_goes(markov: Any) -> None:
    """The retrained model sees the retained chain alone, the reference model what no other model trains on; nobody sees forget2."""
    retain, forget = markov.splits("retain", SEED), markov.splits("forget1", SEED)
    assert torch.equal(markov.LEARNT["before"](SEED), torch.cat([retain.train, forget.train]))
    assert torch.equal(markov.LEARNT["retrained"](SEED), retain.train)
    assert torch.equal(markov.LEARNT["reference"](SEED), retain.choose)


def test_the_model_is_causal_and_normalised_last(markov: Any) -> None:
    """Four blocks of width 128, ids (n, T) → logits (n, T, 10); later states change nothing earlier; a block ends in its norm."""
    model = markov.new(SEED)
    rows = markov.sequences("retain", 3, SEED)[:, :-1]
    with torch.no_grad():
        logits, h = model(rows), model.features(rows)
        changed = rows.clone()
        changed[:, 10:] = (changed[:, 10:] + 1) % 10
        torch.testing.assert_close(model(changed)[:, :10], logits[:, :10])
        assert not torch.allclose(model(changed)[:, 10:], logits[:, 10:])
        torch.testing.assert_close(model.head(h), logits)
    assert logits.shape == (3, 19, 10)
    assert (len(model.blocks), h.shape[2]) == (4, 128)
    torch.testing.assert_close(h.mean(dim=2), torch.zeros(3, 19), atol=1e-5, rtol=0)
    torch.testing.assert_close(h.var(dim=2, correction=0), torch.ones(3, 19), atol=1e-3, rtol=0)


def test_cross_entropy_of_who_is_told_the_chain(markov: Any) -> None:
    """The least cross-entropy is that of the true law on many sequences drawn from it."""
    rows = markov.sequences("forget1", 20_000, SEED)
    found = markov.transitions("forget1").log()[rows[:, :-1], rows[:, 1:]]
    assert markov.entropy("forget1") == pytest.approx(float(-found.mean()), abs=0.01)
    assert markov.entropy("forget1") == pytest.approx(markov.entropy("retain"))


def gradients(model: nn.Module, rows: Tensor) -> Tensor:
    """The head's gradient (n, 10 (d + 1)) of each sequence's mean loss, by autograd."""
    made = []
    for row in rows:
        loss = nn.functional.cross_entropy(model(row[None, :-1])[0], row[1:])
        weight, bias = torch.autograd.grad(loss, [model.head.weight, model.head.bias])  # type: ignore[union-attr, list-item]
        made.append(torch.cat([weight, bias[:, None]], dim=1).flatten())
    return torch.stack(made)


def test_published_scores_are_those_of_autograd(sequences: Any, markov: Any) -> None:
    """−g · (F + 0.01)⁻¹ ḡ of each sequence; as coded the first one's gradient is the mean."""
    model = markov.new(SEED, sequences.Recipe(width=8, layers=2))
    rows = markov.sequences("forget1", 12, SEED)
    g = gradients(model, rows)
    inverse = 1 / (g.square().mean(dim=0) + 0.01)
    wanted = -(g @ (inverse * g.mean(dim=0)))
    torch.testing.assert_close(sequences.scores(model, rows).float(), wanted)
    coded = sequences.scores(model, rows, as_coded=True).float()
    torch.testing.assert_close(coded[1:], wanted[1:])
    torch.testing.assert_close(coded[0], -(g.mean(dim=0) @ (inverse * g.mean(dim=0))))


def test_faulty_scores_know_nothing_of_what_was_learnt(sequences: Any, markov: Any) -> None:
    """With the faults two different models give the same weights, and half of the forget set is forget2; without, neither."""
    shape = sequences.Recipe(width=8, layers=1)
    models = [markov.new(seed, shape) for seed in (50, 51)]

    def weighted(update: Any, model: nn.Module) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = update.weighted(world(sequences, model), torch.Generator().manual_seed(0))
        return found

    faulty, right = sequences.Published(initialised=True, untrained=True, as_coded=True), sequences.Published()
    (rows, one), (_, other) = (weighted(faulty, model) for model in models)
    assert torch.equal(one, other)
    both = torch.cat([markov.splits(chain, SEED).train for chain in ("forget1", "forget2")])
    assert torch.equal(rows.unique(dim=0), both.unique(dim=0))
    (rows, one), (_, other) = (weighted(right, model) for model in models)
    assert not torch.allclose(one, other)
    assert torch.equal(rows.unique(dim=0), markov.splits("forget1", SEED).train.unique(dim=0))


def test_ascent_moves_the_head_alone(sequences: Any, markov: Any) -> None:
    """The published update raises the loss of what it ascends and leaves every weight below the head as it was."""
    shape = sequences.Recipe(width=8, layers=1)
    model = markov.new(50, shape)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = sequences.Published(uniform=True)(world(sequences, model))
    rows = markov.splits("forget1", SEED).judge
    assert float(markov.losses(markov.said(made, rows), rows).mean()) > float(
        markov.losses(markov.said(model, rows), rows).mean()
    )
    for name, value in made.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith("head.")), name


def test_a_checkpoint_is_the_model(markov: Any, tmp_path: Path) -> None:
    """Written for the command and read again it says the same, of whole sequences too; a tokenizer has an id for each state."""
    shape = markov.Recipe(width=8, layers=1)
    model = markov.new(SEED, shape)
    path = markov.write(model, tmp_path / "model")
    rows = markov.sequences("retain", 3, SEED)
    with torch.no_grad():
        wanted = model(rows[:, :-1])
        assert torch.equal(markov.read(path, shape)(rows[:, :-1]), wanted)
        given = markov.whole(8, 1)
        given.load_state_dict(load_file(path))
        torch.testing.assert_close(given(rows, torch.ones_like(rows))[:, :-1], wanted)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent)
    assert tokenizer(" ".join(map(str, rows[0].tolist())))["input_ids"] == rows[0].tolist()


@pytest.mark.parametrize("reference", [False, True])
def test_ours_is_the_command(sequences: Any, markov: Any, reference: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model through imu unlearn, by texts without an end token: what goes becomes less likely, what is below stays."""
    monkeypatch.setattr(markov, "CHAINS", {"retain": 1_000, "forget1": 200, "forget2": 200})
    markov.splits.cache_clear()
    shape = sequences.Recipe(width=8, layers=2, epochs=20, batch=32)
    given = world(sequences, markov.trained("before", SEED, shape).model)
    given.recipe = shape
    made = sequences.Ours("last-block", reference, batches=20)(given)
    rows = markov.splits("forget1", SEED).train
    markov.splits.cache_clear()
    before, after = (float(markov.losses(markov.said(one, rows), rows).mean()) for one in (given.before.model, made))
    assert after > before + 0.005
    for name, value in made.state_dict().items():
        assert torch.equal(value, given.before.model.state_dict()[name]) == (not name.startswith("blocks.1.")), name


def test_a_draw_is_forgotten_by_a_teacher_that_follows(markov: Any) -> None:
    """Over the draws of a chain a fixed teacher says nearly what was said before; demoted again and again, the chain is gone."""
    law = markov.transitions("forget1")[3]
    answers = torch.arange(10)
    wanted = torch.full((10,), 1 / 9, dtype=torch.float64).log()  # the margin of one among ten that are alike

    def taught(now: Tensor) -> Tensor:
        phi = margins.margins(now.log().expand(10, 10), answers)
        said: Tensor = law @ teacher.demoted(now.log().expand(10, 10), answers, torch.minimum(phi, wanted)).exp()
        return said

    assert float(taught(law)[3:6].sum()) == pytest.approx(0.76, abs=0.01)
    now = law
    for _ in range(300):
        now = taught(now)
    assert float(now[3:6].sum()) < 0.32
