"""What ``test_in_parts`` starts in two processes: the same training on whole weights and on weights in parts, and what came of both."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from imu_cli.commands.processes import Ranks, ranks
from imu_cli.errors import RefusedError
from imu_cli.linear.vocabulary import Words
from imu_cli.models import language, sharding
from imu_cli.models.parts import Parts
from imu_cli.unlearning.demotion import loop, preconditioning
from imu_cli.unlearning.demotion.completions import Aim, Completed, CompletionTraining, Schedule
from imu_cli.unlearning.demotion.loop import Trained
from imu_cli.unlearning.demotion.update import RelativeAdam

WORDS, LENGTH, ANSWER = 41, 8, 3
RISE = 0.003
"""Of the cross-entropy of records that go, at which a run ends: between two looks, so that the end is interpolated."""
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 33,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def models() -> dict[str, tuple[nn.Module, list[str]]]:
    """A Llama whose head is its own and GPT-2, whose is tied and whose weights are (in, out); and the paths of what moves."""
    torch.manual_seed(0)
    llama = transformers.LlamaConfig(vocab_size=WORDS, tie_word_embeddings=False, use_cache=False, **SIZES)
    gpt = transformers.GPT2Config(
        vocab_size=WORDS,
        n_embd=16,
        n_layer=3,
        n_head=2,
        n_positions=LENGTH,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    made = {"llama": transformers.LlamaForCausalLM(llama), "gpt2": transformers.GPT2LMHeadModel(gpt)}
    start = {"llama": ("",), "gpt2": ("transformer.h.2", "transformer.ln_f", "transformer.wte")}
    return {
        name: (
            model.eval().requires_grad_(False),
            [
                path
                for path, module in model.named_modules()
                if path.startswith(start[name]) and list(module.parameters(recurse=False))
            ],
        )
        for name, model in made.items()
    }


def moving_of(model: nn.Module, paths: list[str]) -> dict[str, nn.Parameter]:
    """The weights of some layers, a tied one once."""
    known: dict[int, str] = {}
    for path in paths:
        for name, parameter in model.get_submodule(path).named_parameters(recurse=False):
            known.setdefault(id(parameter), f"{path}.{name}")
    own = dict(model.named_parameters(remove_duplicate=False))
    return {name: own[name] for name in known.values()}


def completed(model: nn.Module, ids: Tensor) -> Completed:
    """Records (n, t), whose last tokens are their completions."""

    def run(rows: Tensor) -> Tensor:
        return language.entering(model, "lm_head", {"input_ids": ids[rows]})[:, -ANSWER - 1 : -1].flatten(0, 1)

    with torch.no_grad():
        features = run(torch.arange(len(ids)))
    tokens = torch.arange(ANSWER)
    return Completed(
        run, features, ids[:, -ANSWER:].flatten(), torch.arange(len(ids)).repeat_interleave(ANSWER),
        torch.zeros(len(ids) * ANSWER, dtype=torch.bool), lambda rows: (rows[:, None] * ANSWER + tokens).flatten(),
    )  # fmt: skip


def training(
    model: nn.Module, parameters: Mapping[str, Tensor], matrix: Tensor, head: str, parts: Parts, shared: Ranks
) -> CompletionTraining:
    """Seven records that go, six that are anchored, and five unseen ones; batches that two processes cannot share evenly."""
    draws = torch.Generator().manual_seed(1)
    sets = [completed(model, torch.randint(0, WORDS, (n, LENGTH), generator=draws)) for n in (7, 6, 5)]
    schedule = Schedule(batches=6, forget=3, anchor=5, at_once=1, learning_rate=0.02, looks=3)
    work = CompletionTraining(
        parameters, Words(matrix), head, *sets, Aim(None, 1.0, 1.0, ""), 1.0, schedule, torch.ones(7),
        share=shared.share, join=shared.add_up, parts=parts,
    )  # fmt: skip
    work.aim = replace(work.aim, loss=float(work.was.loss.mean()) + RISE, by_loss=True)
    assert work.anchor is not None
    work.bends = preconditioning.bends(model, parameters, work.anchor.run, work.anchor.n, 1, parts=parts)
    return work


def ended(work: CompletionTraining) -> Trained[Any]:
    """What a whole training came to."""
    *_, last = work.train()
    assert isinstance(last, Trained)
    return last


def numbers(work: CompletionTraining) -> dict[str, int]:
    """Numbers that a process holds of weights, of what they were, of both moments, of gradients, and of the steps' maps."""
    update = RelativeAdam(work.parameters, bends=work.bends, parts=work.parts)
    batch = work.batches(torch.Generator().manual_seed(0)).take()
    given, _ = work.gradients(batch, work.targets(work.look()[1]))
    maps = {id(bend.matrix): bend.matrix for bend in work.bends.values()}
    held: dict[str, list[Tensor]] = {
        "weights": list(work.parameters.values()), "start": list(work.start.values()), "gradients": list(given.values()),
        "moments": [*update.first.values(), *update.second.values()], "maps": list(maps.values()),
    }  # fmt: skip
    return {name: sum(each.numel() for each in tensors) for name, tensors in held.items()}


def compared(model: nn.Module, paths: list[str], shared: Ranks) -> dict[str, Any]:
    """A training in parts beside that of one process on whole weights."""
    moving = moving_of(model, paths)
    matrix = model.get_submodule("lm_head").weight.detach().clone()
    head = next((name for name, one in moving.items() if one is model.get_submodule("lm_head").weight), "")
    parts = sharding.shard(model, moving, paths, "lm_head", shared.mesh(torch.device("cpu")))
    other = training(parts.model, parts.parameters, matrix, head, parts, shared)
    counts = numbers(other)
    came = ended(other)
    for parameter in moving.values():
        parameter.requires_grad_(True)
    one = training(model, moving, matrix, head, Parts(), Ranks(0, 1))
    whole_counts = numbers(one)
    expected = ended(one)
    away = 0.0
    for name, start in one.start.items():
        gap = parts.whole(name, other.parameters[name]) - expected.weights[name]
        away = max(away, float(gap.norm()) / max(float((expected.weights[name] - start).norm()), 1e-9))
    frozen = [p for name, p in parts.model.named_parameters() if ".h.0." in name or ".layers.0." in name]
    return {
        "away": away, "moved": loop.change(moving, one.start, Parts()), "numbers": counts, "whole": whole_counts,
        "looks": [[list(vars(look).values()) for _, look in made.looks] for made in (came, expected)],
        "ends": [[made.reason, made.fraction] for made in (came, expected)],
        "blocks": [sum(p.to_local().numel() for p in frozen), sum(p.numel() for p in frozen)],
        "spent": [other.spent, one.spent],
    }  # fmt: skip


def refused(model: nn.Module, paths: list[str], change: Callable[[Any], None], shared: Ranks) -> str:
    """What is said of a model that cannot be dealt out."""
    change(model)
    try:
        sharding.shard(model, moving_of(model, paths), paths, "lm_head", shared.mesh(torch.device("cpu")))
    except RefusedError as error:
        return str(error)
    return ""


def twice(model: Any) -> None:
    """One layer in two blocks."""
    model.model.layers[1].mlp.up_proj = model.model.layers[2].mlp.up_proj


def odd(model: Any) -> None:
    """A weight (in, out) of an odd number of outputs."""
    layer = model.transformer.h[2].mlp.c_fc
    layer.weight, layer.bias = nn.Parameter(torch.ones(16, 65)), nn.Parameter(torch.ones(65))


def main(out: Path) -> None:
    """Write what came of it, as JSON, from the first process."""
    torch.set_num_threads(1)
    with ranks() as shared:
        torch.set_num_threads(1)
        found: dict[str, Any] = {name: compared(*given, shared) for name, given in models().items()}
        found["every"] = shared.of_all({name: found[name]["numbers"] for name in ("llama", "gpt2")})
        found["shared"] = refused(*models()["llama"], twice, shared)
        found["odd"] = refused(*models()["gpt2"], odd, shared)
        if shared.first:
            out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
