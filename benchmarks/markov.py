"""Sequences whose law is known: three Markov chains over ten states, the transformer that learns them, both models of a seed.

A chain has three states of its own. From these it goes to one of them with probability 0.8, to each of the seven others with 0.2 / 7;
from a state that is not its own it goes anywhere alike. So a sequence of one chain visits the states of all (in its own it is 60 % of
the time), and what a model says in a state depends on which chain it takes the sequence to be of.
"""

import functools
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import common
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

STATES, OWN, LEAKAGE, LENGTH, TEST = 10, 3, 0.2, 20, 0.2
CHAINS = {"retain": 10_000, "forget1": 5_000, "forget2": 5_000}
"""Sequences of each chain; the n-th has the states 3n, 3n + 1, 3n + 2, and state 9 is nobody's."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained from scratch; AdamW without weight decay."""

    width: int = 128
    layers: int = 4
    learning_rate: float = 5e-4
    batch: int = 128
    epochs: int = 5


def transitions(chain: str) -> Tensor:
    """P (10, 10) float64: the row of a state is the law of the next one."""
    first = OWN * list(CHAINS).index(chain)
    own = slice(first, first + OWN)
    made = torch.full((STATES, STATES), 1 / STATES, dtype=torch.float64)
    made[own] = LEAKAGE / (STATES - OWN)
    made[own, own] = (1 - LEAKAGE) / OWN
    return made


def beginning(chain: str) -> Tensor:
    """The law (10,) of the first state: that of the next one in the chain's own states."""
    return transitions(chain)[OWN * list(CHAINS).index(chain)]


def sequences(chain: str, n: int, seed: int) -> Tensor:
    """``n`` sequences (n, 20) of states, int64."""
    draws = torch.Generator().manual_seed(1_000 * seed + list(CHAINS).index(chain))
    law, made = transitions(chain), torch.empty(n, LENGTH, dtype=torch.int64)
    made[:, 0] = torch.multinomial(beginning(chain), n, replacement=True, generator=draws)
    for step in range(1, LENGTH):
        made[:, step] = torch.multinomial(law[made[:, step - 1]], 1, generator=draws)[:, 0]
    return made


@dataclass(frozen=True)
class Splits:
    """A chain's sequences: ``train``; ``choose`` and ``judge`` are the halves of the 20 % that no model sees."""

    train: Tensor
    choose: Tensor
    judge: Tensor


@functools.cache
def splits(chain: str, seed: int) -> Splits:
    """The sequences of a seed."""
    whole = sequences(chain, CHAINS[chain], seed)
    held = round(TEST * len(whole))
    return Splits(whole[:-held], whole[-held : -held // 2], whole[-held // 2 :])


class Block(nn.Module):
    """Attention with one head and without an output matrix, and two layers; each is added and then normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.attended, self.normed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states (n, T, width) of the layer, of those below."""
        said = nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), is_causal=True)
        x = self.attended(x + said)
        made: Tensor = self.normed(x + self.mlp(x))
        return made


class ChainModel(nn.Module):
    """The transformer: ids (n, T) → logits (n, T, 10); T of at most 19, since a sequence's last state is only ever an answer."""

    def __init__(self, recipe: Recipe | None = None) -> None:
        super().__init__()
        recipe = recipe or Recipe()
        self.states = nn.Embedding(STATES, recipe.width)
        self.places = nn.Embedding(LENGTH - 1, recipe.width)
        nn.init.normal_(self.places.weight, std=0.02)
        self.blocks = nn.Sequential(*(Block(recipe.width) for _ in range(recipe.layers)))
        self.head = nn.Linear(recipe.width, STATES)

    def features(self, ids: Tensor) -> Tensor:
        """What enters the head (n, T, width)."""
        x = self.states(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        made: Tensor = self.blocks(x)
        return made

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the next state at every place."""
        made: Tensor = self.head(self.features(ids))
        return made


class Whole(ChainModel):
    """The transformer as a command is handed it, with whole sequences: of their last state it says something that is nobody's answer."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.places = nn.Embedding(LENGTH, recipe.width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """As of the ids alone: sequences are of one length."""
        return super().forward(input_ids)


def whole(width: int, layers: int) -> Whole:
    """For ``--arch markov.py:whole``."""
    return Whole(Recipe(width=width, layers=layers))


def write(model: ChainModel, folder: Path) -> Path:
    """Write a model as a checkpoint of ``whole``, a tokenizer of ten states beside it; the file of weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from imu_cli.models import libraries

    folder.mkdir(parents=True)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    weights["places.weight"] = torch.cat([weights["places.weight"], torch.zeros(1, weights["places.weight"].shape[1])])
    save_file(weights, folder / "model.safetensors")
    vocabulary = {str(state): state for state in range(STATES)}
    made = Tokenizer(models.WordLevel({**vocabulary, "-": STATES}, unk_token="-"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    of = libraries.transformers("the benchmark").PreTrainedTokenizerFast
    of(tokenizer_object=made, pad_token="-", model_max_length=LENGTH).save_pretrained(folder)
    return folder / "model.safetensors"


def read(path: Path, recipe: Recipe) -> ChainModel:
    """The model of a checkpoint of ``whole``."""
    weights = load_file(path)
    weights["places.weight"] = weights["places.weight"][: LENGTH - 1]
    model = ChainModel(recipe)
    model.load_state_dict(weights)
    return model.eval()


def listed(rows: Tensor, path: Path) -> str:
    """Write sequences (n, 20) as a list of texts; its path."""
    lines = (json.dumps({"text": " ".join(map(str, row))}) + "\n" for row in rows.tolist())
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def new(seed: int, recipe: Recipe | None = None) -> ChainModel:
    """The model as it is initialised under a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ChainModel(recipe)


def said(model: nn.Module, rows: Tensor, at_once: int = 500) -> Tensor:
    """Log p (n, 19, 10) of the next states."""
    with torch.no_grad():
        return torch.cat([model(some[:, :-1]).log_softmax(dim=-1) for some in rows.split(at_once)])


def losses(log_p: Tensor, rows: Tensor) -> Tensor:
    """Cross-entropy (n, 19) of each next state."""
    return -log_p.gather(2, rows[:, 1:, None])[..., 0]


def in_turn(rows: Tensor, batch: int, draws: torch.Generator) -> Iterator[Tensor]:
    """The rows once, in random order, by batches."""
    for some in torch.randperm(len(rows), generator=draws).split(batch):
        yield rows[some]


def train(model: ChainModel, rows: Tensor, recipe: Recipe, seed: int) -> ChainModel:
    """Train a model in place on sequences (n, 20)."""
    update = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.0)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(recipe.epochs):
        for some in in_turn(rows, recipe.batch, draws):
            update.zero_grad()
            nn.functional.cross_entropy(model(some[:, :-1]).flatten(0, 1), some[:, 1:].flatten()).backward()
            update.step()
    return model


@dataclass(frozen=True)
class Trained:
    """A model of a seed, and the seconds that it took to train."""

    model: ChainModel
    seconds: float


LEARNT = {
    "before": lambda seed: torch.cat([splits("retain", seed).train, splits("forget1", seed).train]),
    "retrained": lambda seed: splits("retain", seed).train,
    "reference": lambda seed: splits("retain", seed).choose,
}
"""Sequences that each model is trained on; the reference model only ever saw held-out sequences of the chain that stays."""


def trained(name: str, seed: int, recipe: Recipe) -> Trained:
    """A model of ``LEARNT``, trained once a machine and kept in ``common.scratch``."""
    told = json.dumps([name, asdict(recipe), CHAINS, STATES, OWN, LEAKAGE, LENGTH, TEST, seed, torch.__version__])
    path = common.made("sequences", lambda at: (at / "made").mkdir())
    path /= f"{name}-{seed}-{hashlib.sha256(told.encode()).hexdigest()[:12]}.safetensors"
    model = new(seed, recipe)
    if not path.exists():
        began = time.perf_counter()
        train(model, LEARNT[name](seed), recipe, seed)
        _kept(model, path, time.perf_counter() - began)
    found = load_file(path)
    seconds = float(found.pop("seconds"))
    model.load_state_dict(found)
    return Trained(model.eval(), seconds)


def _kept(model: nn.Module, path: Path, seconds: float) -> None:
    part = path.with_suffix(".part")
    save_file({**model.state_dict(), "seconds": torch.tensor(seconds)}, part)
    part.replace(path)


def entropy(chain: str) -> float:
    """Cross-entropy that a model has at best that is told the chain, in nats a state: −Σ π_i P_ij log P_ij over the 19 places."""
    law, now, total = transitions(chain), beginning(chain), 0.0
    each = -(law * law.log()).sum(dim=1)
    for _ in range(LENGTH - 1):
        total += float(now @ each)
        now = now @ law
    assert math.isclose(float(now.sum()), 1.0)
    return total / (LENGTH - 1)
