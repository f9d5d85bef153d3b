"""What a language model writes when it is asked, by transformers' own generation: the likeliest token each time, or drawn."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from imu_cli import signals
from imu_cli.features.session import Session
from imu_cli.models.arithmetic import float32_as
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.texts.completions import Completions
from imu_cli.samples.texts.records import as_record

MOST_TOKENS = 200
"""New tokens of an answer, as TOFU has it."""
AT_ONCE, SMALL = 16, 5e8
"""Records that are answered together; eight times as many by a model of fewer weights than this, which waits for memory rather than space."""


def can_write(opened: Session) -> bool:
    """Whether the model is one of transformers, which write."""
    return opened.network is not None and callable(getattr(opened.network.model, "generate", None))


def answers(
    opened: Session,
    samples: SampleSet,
    rows: Sequence[int],
    advance: Callable[[int], object] = lambda _: None,
    *,
    longest: int = MOST_TOKENS,
    seed: int | None = None,
) -> list[str]:
    """What the model answers some records (k,), without special tokens and outer spaces.

    The model's own generation settings are not used: penalties and the like would be another model.

    Args:
        opened: the model.
        samples, rows: records, and which of them.
        advance: hears how many are answered.
        longest: new tokens at most.
        seed: tokens are drawn as likely as the model has them, by this seed; None: the most likely token each time.
    """
    from transformers import GenerationConfig

    network = opened.network
    assert network is not None
    step = network.preprocess
    assert isinstance(step, Completions)
    room = step.tokenizer.max_length
    made: list[str] = []
    at_once = AT_ONCE * (8 if sum(one.numel() for one in network.model.parameters()) < SMALL else 1)
    for start in range(0, len(rows), at_once):
        signals.check()
        asked = [step.asked(as_record(samples.read(row))) for row in rows[start : start + at_once]]
        width = max(map(len, asked))
        most = longest if room is None else max(1, min(longest, room - width))
        drawn = {} if seed is None else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        how = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=most, do_sample=seed is not None, num_beams=1, eos_token_id=step.end, pad_token_id=step.padding, use_cache=True,
            **drawn,
        )  # fmt: skip
        ids = np.full((len(asked), width), step.padding, np.int64)
        mask = np.zeros_like(ids)
        for row, one in enumerate(asked):  # what comes next has to stand beside what was asked: padding goes before it
            ids[row, width - len(one) :], mask[row, width - len(one) :] = one, 1
        given = {
            "input_ids": torch.from_numpy(ids).to(opened.device),
            "attention_mask": torch.from_numpy(mask).to(opened.device),
        }
        with torch.inference_mode(), float32_as("ieee"), _drawing(opened.device, seed, start), _plain(network.model):
            found = network.model.generate(**given, generation_config=how)[:, width:]  # type: ignore[operator]
        made += [step.tokenizer.made.decode(one, skip_special_tokens=True).strip() for one in found.cpu().tolist()]
        advance(len(asked))
    return made


@contextlib.contextmanager
def _plain(model: Any) -> Iterator[None]:
    """While the context lasts, the model has no generation settings of its own: transformers takes from them what is not given."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own


@contextlib.contextmanager
def _drawing(device: torch.device, seed: int | None, start: int) -> Iterator[None]:
    """While the context lasts, torch draws by a seed of this batch's own; what it draws elsewhere goes on as it was."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(1_000_003 * seed + start)
        yield
