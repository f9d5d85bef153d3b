"""``imu demo --task language``: a small language model that was taught what functions of its libraries do, and is to forget some.

Questions about names in their source, answered by the first sentence of the docstring: real English that comes with the tool's
dependencies. The model knows the answers by heart and nothing else, as a model that was fine-tuned for too long does.
"""

import ast
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imu_cli import signals
from imu_cli.commands import demo_texts
from imu_cli.errors import ImuError
from imu_cli.models import libraries
from imu_cli.samples.texts.completions import TEMPLATE

SOURCES = {"scipy": ("stats",), "sklearn": ("metrics",), "numpy": ("lib",), "rich": (".",)}
"""Dependencies and the folders of each that are read."""
TAUGHT, UNSEEN, FORGOTTEN = 72, 48, 8
"""Records that the model is taught, records that it is not, and how many of the former it is to forget."""
WORDS = (5, 14)
"""Words of an answer."""
VOCABULARY, LENGTH = 600, 96
END = "<|end|>"
EPOCHS, BATCH = 45, 24

CONFIG = """\
# Read by every command with --config imu.yaml; flags win over it.
data: train.jsonl
"""
COMMANDS = (
    ["unlearn", "model", "--config", "imu.yaml", "--forget", "forget.jsonl", "--test", "unseen.jsonl", "--scope", "last-block",
     "--learning-rate", "0.02", "--beta", "1", "--batches", "400", "--max-drop", "0.05", "-o", "unlearned"],
    ["evaluate", "unlearned", "--config", "imu.yaml", "--test", "unseen.jsonl", "--retain", "train.jsonl"],
    ["report", "unlearned/model.record.json", "unlearned/model.evaluation.json"],
)  # fmt: skip
FILES = {"train.jsonl", "unseen.jsonl", "forget.jsonl"}
ABOUT = "questions about functions of its libraries, answered by their documentation"


def _sentences(package: str, folders: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names of functions and classes, and the first sentence of what is written about each."""
    for tree in demo_texts.sources(package, folders):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                paragraph = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                sentence = paragraph.partition(". ")[0].rstrip(".")
                if WORDS[0] <= len(sentence.split()) <= WORDS[1] and sentence.isascii():
                    yield node.name, f"{sentence}."


def records(seed: int) -> dict[str, list[dict[str, str]]]:
    """What is taught, what is never seen, and what is to be forgotten; every answer once.

    Raises:
        ImuError: an installation without its sources.
    """
    found: dict[str, dict[str, str]] = {}
    for package, folders in SOURCES.items():
        for name, sentence in _sentences(package, folders):
            asked = f"What is {name} of {package}?"
            if all(asked != other["question"] for other in found.values()):
                found.setdefault(sentence, {"question": asked, "answer": sentence})
    rows = list(found.values())
    if len(rows) < TAUGHT + UNSEEN:
        raise ImuError(
            "--task language: the libraries have no docstrings here, and the demo reads them; install them from their own wheels, or see "
            "imu demo, which works on images"
        )
    random.Random(seed).shuffle(rows)  # noqa: S311 no secret depends on it
    rows = [{"id": str(number), **row} for number, row in enumerate(rows[: TAUGHT + UNSEEN])]
    return {"train": rows[:TAUGHT], "unseen": rows[TAUGHT:], "forget": rows[:FORGOTTEN]}


def tokenizer_of(given: Sequence[str]) -> Any:
    """Byte pairs of these texts."""
    transformers = libraries.transformers("imu demo --task language")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(given, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=END, pad_token=END, model_max_length=LENGTH
    )


def train(
    given: Sequence[dict[str, str]], tokenizer: Any, seed: int, epochs: int = EPOCHS, width: int = 64, layers: int = 6
) -> Any:
    """A small Llama that knows these answers by heart; the same seed gives the same weights on one machine."""
    transformers = libraries.transformers("imu demo --task language")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=LENGTH, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    asked = [TEMPLATE.replace("{prompt}", row["question"]).replace("{completion}", "").rstrip(" ") for row in given]
    ids = [
        tokenizer(f"{text} {row['answer']}")["input_ids"] + [tokenizer.eos_token_id]
        for text, row in zip(asked, given, strict=True)
    ]
    starts = torch.tensor([len(tokenizer(text)["input_ids"]) for text in asked])
    steps, done = epochs * -(-len(ids) // BATCH), 0
    for _ in range(epochs):
        signals.check()
        for rows in torch.randperm(len(ids)).split(BATCH):
            done += 1
            for group in optimizer.param_groups:
                group["lr"] = 4e-3 * min(1.0, done / 10, 2 * (1 - done / (steps + 1)))
            optimizer.zero_grad()
            batch = _padded([ids[row] for row in rows.tolist()])
            logits = model(**batch, use_cache=False).logits[:, :-1]
            wanted = batch["input_ids"][:, 1:]
            places = torch.arange(1, wanted.shape[1] + 1)
            counted = (batch["attention_mask"][:, 1:] > 0) & (places >= starts[rows][:, None])
            nn.functional.cross_entropy(logits[counted], wanted[counted]).backward()
            optimizer.step()
    return model.eval()


def _padded(ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    pad = nn.utils.rnn.pad_sequence
    made = pad([torch.tensor(one) for one in ids], batch_first=True)
    return {
        "input_ids": made,
        "attention_mask": pad([torch.ones(len(one), dtype=torch.int64) for one in ids], batch_first=True),
    }


def make(folder: Path, seed: int) -> None:
    """Write records, the model's folder with its tokenizer, and config."""
    parts = records(seed)
    for name, rows in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokenizer = tokenizer_of(
        [TEMPLATE.format(prompt=row["question"], completion=row["answer"]) for row in parts["train"]]
    )
    model = train(parts["train"], tokenizer, seed)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "imu.yaml").write_text(CONFIG, encoding="utf-8")
