"""``imu demo --task text``: which library is a sentence of documentation from? Real texts that come with the tool's dependencies.

The first paragraphs of their docstrings, read as source and not imported: English sentences written by people, some two thousand of
them, of which some are hard to tell apart (numpy's and scipy's), with no data set to download. They change with the versions that are
installed; on one installation the same seed gives the same files.
"""

import ast
import csv
import importlib.util
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imu_cli import signals
from imu_cli.errors import ImuError
from imu_cli.models import libraries

SOURCES = {
    "PIL": (".",), "jinja2": (".",), "numpy": ("lib", "ma", "polynomial"), "pydantic": (".",), "rich": (".",),
    "scipy": ("stats",), "sklearn": ("linear_model", "metrics", "cluster"), "torch": ("nn/modules", "distributions", "optim"),
}  # fmt: skip
"""Dependencies, which are the classes, and the folders of each that are read."""
MOST, FEWEST, HELD_OUT = 240, 40, 4
"""Texts of a class, and of how many one is held out."""
WORD = re.compile(r"\w+|[^\w\s]+")
WORDS = (5, 62)
"""Words and marks of a sentence that is taken; two more tokens begin and end it."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
LENGTH = 64
"""Tokens that the model takes."""
FORGOTTEN = "jinja2"

CONFIG = """\
# Read by every command with --config imu.yaml; flags win over it.
data: train.csv
"""
COMMANDS = (
    ["select", "--data", "train.csv", f"class={FORGOTTEN}", "-o", "forget.csv"],
    ["influence", "model", "--config", "imu.yaml", "--forget", "forget.csv", "--show", "10"],
    ["unlearn", "model", "--config", "imu.yaml", "--forget", "forget.csv", "--test", "test.csv", "-o", "unlearned"],
    ["evaluate", "unlearned", "--config", "imu.yaml", "--test", "test.csv", "--retain", "train.csv",
     "--require", "forget.accuracy<=0.02", "--require", "test.accuracy_drop<=0.03"],
    ["report", "unlearned/model.record.json", "unlearned/model.evaluation.json"],
)  # fmt: skip
FILES = {"train.csv", "test.csv", "model", "unlearned"}
MODEL = re.compile(
    r"(model|unlearned)/(model\.(safetensors|record\.json|evaluation\.json)|config\.json|generation_config\.json|tokenizer(_config)?\.json)"
)
ABOUT = "some two thousand sentences of its libraries' documentation"

Texts = list[tuple[str, int]]
"""Texts with the ids of their classes."""


def sources(package: str, folders: Iterable[str]) -> Iterator[ast.Module]:
    """What a package's files say, read and not run."""
    found = importlib.util.find_spec(package)
    for root in [] if found is None else list(found.submodule_search_locations or ()):
        for folder in folders:
            for file in sorted(Path(root, folder).glob("*.py")):
                signals.check()
                yield ast.parse(file.read_text(encoding="utf-8"))


def _paragraphs(package: str, folders: Iterable[str]) -> Iterator[str]:
    """First paragraphs of the docstrings in a package's files, on one line each."""
    for tree in sources(package, folders):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


def texts(seed: int) -> dict[str, Texts]:
    """The sentences, each once and in an order of the seed's, one in four of each class held out.

    Raises:
        ImuError: an installation without its sources, which has none.
    """
    chosen = random.Random(seed)  # noqa: S311 no secret depends on it
    found: dict[str, Texts] = {"train": [], "test": []}
    for label, (package, folders) in enumerate(SOURCES.items()):
        own = [
            text
            for text in dict.fromkeys(_paragraphs(package, folders))
            if WORDS[0] <= len(WORD.findall(text)) <= WORDS[1]
        ]
        if len(own) < FEWEST:
            raise ImuError(
                f"--task text: {package} has {len(own)} docstrings here, and the demo reads them; install it from its own wheel, or see "
                "imu demo, which works on images"
            )
        chosen.shuffle(own)
        kept = [(text, label) for text in own[:MOST]]
        found["test"] += kept[::HELD_OUT]
        found["train"] += [item for at, item in enumerate(kept) if at % HELD_OUT]
    for part in found.values():
        chosen.shuffle(part)
    return found


def tokenizer_of(given: Sequence[str]) -> Any:
    """A tokenizer of the words that stand in these texts more than once, in lower case."""
    transformers = libraries.transformers("imu demo --task text")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    counts = Counter(word for text in given for word in WORD.findall(text.lower()))
    words = sorted(word for word, count in counts.items() if count > 1)
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate((*SPECIAL, *words))}, "[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=LENGTH, **names)


def train(given: Texts, tokenizer: Any, seed: int, epochs: int = 6) -> nn.Module:
    """A small BERT trained with AdamW on one thread; the same seed gives the same weights on one machine."""
    transformers = libraries.transformers("imu demo --task text")
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(SOURCES)), label2id={name: label for label, name in enumerate(SOURCES)},
    )  # fmt: skip
    torch.manual_seed(seed)
    model: nn.Module = transformers.BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    labels = torch.tensor([label for _, label in given])
    ids = [tokenizer(text, truncation=True, max_length=LENGTH)["input_ids"] for text, _ in given]
    for _ in range(epochs):
        signals.check()
        order = torch.randperm(len(ids)).tolist()
        # Texts of about one length in a batch, in batches of a random order.
        batches = [sorted(order[at : at + 512], key=lambda row: len(ids[row])) for at in range(0, len(order), 512)]
        parts = [part[at : at + 32] for part in batches for at in range(0, len(part), 32)]
        for at in torch.randperm(len(parts)).tolist():
            optimizer.zero_grad()
            made = model(**_padded([ids[row] for row in parts[at]])).logits
            nn.functional.cross_entropy(made, labels[parts[at]]).backward()
            optimizer.step()
    return model.eval()


def _padded(ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    made = nn.utils.rnn.pad_sequence([torch.tensor(one) for one in ids], batch_first=True)
    return {"input_ids": made, "attention_mask": (made != 0).long()}


def write(path: Path, given: Texts) -> None:
    """A CSV file of texts and the names of their classes."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows([text, list(SOURCES)[label]] for text, label in given)


def make(folder: Path, seed: int) -> None:
    """Write texts, the model's folder with its tokenizer, and config."""
    parts = texts(seed)
    for name, given in parts.items():
        write(folder / f"{name}.csv", given)
    tokenizer = tokenizer_of([text for text, _ in parts["train"]])
    model: Any = train(parts["train"], tokenizer, seed)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "imu.yaml").write_text(CONFIG, encoding="utf-8")


def strange(folder: Path) -> str | None:
    """A file among the demo's models that the demo does not write, None where there is none."""
    for name in ("model", "unlearned"):
        for inner, _, files in os.walk(folder / name):
            for file in sorted(files):
                if not MODEL.fullmatch(os.path.relpath(Path(inner, file), folder)):
                    return os.path.relpath(Path(inner, file), folder)
    return None
