"""Small token classifiers with random weights, and sentences whose words have a class each."""

import json
from pathlib import Path
from typing import Any

import small_texts
import torch
from torch import nn

from imu_cli.commands import opening
from imu_cli.config.commands import InfluenceConfig
from imu_cli.events import Silent
from imu_cli.features.session import Session

CLASSES = ("O", "B-PER", "B-LOC")


def model(kind: str = "Bert", **arguments: Any) -> Any:
    """A token classifier of transformers with three classes, its head large enough to tell words apart."""
    import transformers

    made = getattr(transformers, f"{kind}ForTokenClassification")
    small = {"GPT2": small_texts.GPT2, "Llama": small_texts.LLAMA}.get(kind, small_texts.BERT)
    given = {"vocab_size": 20, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(0)
    found = made(made.config_class(**{**given, **small, **arguments}, id2label=dict(enumerate(CLASSES)))).eval()
    for module in found.modules():
        if isinstance(module, nn.Linear) and module.out_features == len(CLASSES):
            nn.init.normal_(module.weight, std=0.5)
    return found


def sentences(count: int = 24, seed: int = 0) -> list[list[str]]:
    """Different sentences of 1 to 12 words."""
    return [text.split() for text in small_texts.texts(count, seed)]


def logits(found: Any, given: list[list[str]], tokenizer: Any = None) -> torch.Tensor:
    """What the model makes of every word (n, c), each sentence alone, by the library's own call; its words are one token each."""
    known = small_texts.tokenizer() if tokenizer is None else tokenizer
    made = []
    for words in given:
        batch = known(words, is_split_into_words=True, return_tensors="pt")
        with torch.inference_mode():
            made.append(found(**small_texts._taken(found, batch)).logits[0, 1 : 1 + len(words)])
    return torch.cat(made)


def write(folder: Path, kind: str = "Bert", count: int = 24, **arguments: Any) -> Any:
    """Model, tokenizer and ``sentences.jsonl`` in a folder, tagged by the model's own predictions; the model."""
    made = model(kind, **arguments)
    made.save_pretrained(folder / "net")
    small_texts.tokenizer().save_pretrained(folder / "net")
    given = sentences(count)
    tags = [CLASSES[at] for at in logits(made, given).argmax(dim=1)]
    lines(folder / "sentences.jsonl", given, tags)
    return made


def lines(path: Path, given: list[list[str]], tags: list[str]) -> None:
    """A list of JSON lines, the tags of all words one after the other."""
    rows, left = [], iter(tags)
    for number, words in enumerate(given):
        rows.append(json.dumps({"id": f"s{number}", "tokens": words, "ner_tags": [next(left) for _ in words]}))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def opened(forget: list[str], **options: object) -> Session:
    """The model in ``net`` with a forget set of the sentences beside it."""
    config = InfluenceConfig(forget=forget, data="sentences.jsonl", cache=False, device="cpu", **options)  # type: ignore[arg-type]
    return opening.open_all(Path("net"), config, Silent())
