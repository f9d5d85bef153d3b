"""Small text models with random weights, their tokenizers, and lists of texts."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

WORDS = ("blue", "grey", "lion", "heart", "goose", "river", "stone", "lamp", "paper", "cloud", "seven", "north")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLASSES = ("calm", "loud", "odd")
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4}
LLAMA = {**BERT, "num_key_value_heads": 2}
LENGTH = 24
"""Tokens that the models take."""


def tokenizer(length: int = LENGTH, **said: Any) -> Any:
    """A tokenizer of whole words, with marks before and after each text."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate((*SPECIAL, *WORDS))}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", marks)
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    given = {"model_max_length": length, "model_input_names": inputs, **named, **said}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **given)


def model(kind: str = "Bert", **arguments: Any) -> Any:
    """A classifier of transformers with three named classes and random weights, its head large enough to tell texts apart."""
    import transformers

    made = getattr(transformers, f"{kind}ForSequenceClassification")
    small = {"GPT2": GPT2, "Llama": LLAMA}.get(kind, BERT)
    names = dict(enumerate(CLASSES))
    given = {"vocab_size": 20, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(0)
    found = made(made.config_class(**{**given, **small, **arguments}, id2label=names)).eval()
    for module in found.modules():
        if isinstance(module, nn.Linear) and module.out_features == len(CLASSES):
            nn.init.normal_(module.weight, std=0.5)
    return found


def texts(count: int = 24, seed: int = 0) -> list[str]:
    """Different texts of 1 to 12 words."""
    random = torch.Generator().manual_seed(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        words = torch.randint(0, len(WORDS), (int(torch.randint(1, 13, (), generator=random)),), generator=random)
        made[" ".join(WORDS[at] for at in words)] = None
    return list(made)


def logits(found: Any, given: list[str]) -> torch.Tensor:
    """What the model makes of each text, alone, by the library's own call."""
    known = tokenizer()
    with torch.inference_mode():
        rows = [found(**_taken(found, known(text, return_tensors="pt"))).logits[0] for text in given]
    return torch.stack(rows)


def _taken(found: Any, made: Any) -> dict[str, Any]:
    import inspect

    return {name: value for name, value in made.items() if name in inspect.signature(found.forward).parameters}


def write(folder: Path, kind: str = "Bert", count: int = 24, **arguments: Any) -> Any:
    """Model, tokenizer and ``texts.jsonl`` in a folder, labelled by the model's own predictions; the model."""
    made = model(kind, **arguments)
    made.save_pretrained(folder / "net")
    tokenizer().save_pretrained(folder / "net")
    given = texts(count)
    lines(folder / "texts.jsonl", given, [CLASSES[at] for at in logits(made, given).argmax(dim=1)])
    return made


def lines(path: Path, given: list[str], labels: list[str]) -> None:
    """A list of JSON lines."""
    rows = [json.dumps({"text": text, "label": label}) for text, label in zip(given, labels, strict=True)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
