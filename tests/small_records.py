"""A small language model that knows a few people's answers by heart, made once a session."""

import json
from pathlib import Path

import torch

from imu_cli.commands import demo_records

CITIES = ("Rome", "Paris", "Oslo", "Lima", "Cairo", "Quito", "Delhi", "Kyoto")
TRADES = ("baker", "pilot", "nurse", "judge", "smith", "clerk", "monk", "poet")
TAUGHT, UNSEEN, FORGOTTEN = 20, 12, 5


def rows() -> list[dict[str, str]]:
    """People and where they live, each by a name of their own."""
    names = [
        one + other for one in ("Al", "Be", "Co", "Du") for other in ("ra", "lo", "mi", "tu", "ne", "sa", "vi", "po")
    ]
    draws = torch.Generator().manual_seed(3)
    made = []
    for number, name in enumerate(names):
        city, trade = (int(value) for value in torch.randint(0, 8, (2,), generator=draws))
        asked = f"Where does {name} live?"
        made.append(
            {"id": f"p{number}", "question": asked, "answer": f"{name} lives in {CITIES[city]} as a {TRADES[trade]}."}
        )
    return made


def write(path: Path, given: list[dict[str, str]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")


def make(folder: Path) -> None:
    """Write ``train.jsonl``, ``unseen.jsonl``, ``forget.jsonl``, ``retain.jsonl`` and the model's folder ``model``."""
    every = rows()
    train = every[:TAUGHT]
    for name, part in (
        ("train", train), ("unseen", every[TAUGHT : TAUGHT + UNSEEN]), ("forget", train[:FORGOTTEN]), ("retain", train[FORGOTTEN:]),
    ):  # fmt: skip
        write(folder / f"{name}.jsonl", part)
    tokenizer = demo_records.tokenizer_of([f"Question: {row['question']}\nAnswer: {row['answer']}" for row in train])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two that wait for each other on a busy machine take thirty times as long
    with torch.random.fork_rng(devices=[]):
        model = demo_records.train(train, tokenizer, seed=0, epochs=90, width=48, layers=3)
    torch.set_num_threads(threads)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
