"""LoTUS: distil the original, its answers on what has to go made uncertain by noise whose temperature follows what is still known.

    τ = exp(α (acc_θ(D_f) − a)),   a = acc_0(unseen), or 0 where whole classes go
    q = gumbel_softmax(z_0, τ) on D_f, hard gumbel_softmax(z_0, 1) on R,   L = mean_{D_f ∪ R} − Σ_k q_k log p_{θ,k}

Training ends when acc_θ(D_f) ≤ a − 0.01. Source: Spartalis et al. 2025 (arXiv 2503.18314) and its code. Needs retain data and the accuracy
on unseen samples. Defaults: α 2 (``strength``), AdamW; τ is set anew every ``EVERY`` steps, from at most 1,000 samples, where the paper does
so every epoch.
"""

import math

import torch
from torch import Tensor, nn

from .training import Data, Samples, Settings, Steps, descend, minibatches, teacher_of

EVERY = 20
LOOKED_AT = 1000


def accuracy(model: nn.Module, samples: Samples) -> float:
    """Share of the first samples that are right."""
    some = Samples(samples.x, samples.rows[:LOOKED_AT], samples.y[:LOOKED_AT])
    with torch.no_grad():
        return sum(int((model(x).argmax(dim=1) == y).sum()) for x, y in some.all()) / len(some)


def temperature(known: float, aim: float, alpha: float) -> float:
    """What the teacher's answers on D_f are divided by."""
    return math.exp(alpha * (known - aim))


def uncertain(logits: Tensor, tau: float, hard: bool, generator: torch.Generator) -> Tensor:
    """Gumbel-softmax (n, c) of the teacher's logits, one-hot if ``hard``."""
    noise = -torch.empty_like(logits).exponential_(generator=generator).log()
    soft = ((logits + noise) / tau).softmax(dim=1)
    return nn.functional.one_hot(soft.argmax(dim=1), soft.shape[1]).to(soft) if hard else soft


def unlearn(model: nn.Module, data: Data, settings: Settings) -> Steps:
    """The teacher's answers on D_f from one pass, those on R from a copy as they are needed."""
    generator = settings.generator()
    teacher, before = teacher_of(model, data.forget), [p.detach().clone() for p in model.parameters()]
    aim = 0.0 if data.gone else accuracy(model, data.unseen)
    names = [name for name, _ in model.named_parameters()]
    forget = minibatches(len(data.forget), settings.batch, generator)
    retain = minibatches(len(data.retain), settings.batch, generator)
    tau = [1.0]

    def loss() -> Tensor:
        at = next(forget)
        xf, (xr, _) = data.forget.batch(at)[0], data.retain.batch(next(retain))
        with torch.no_grad():
            known = torch.func.functional_call(model, dict(zip(names, before, strict=True)), (xr,))
        q = torch.cat([uncertain(teacher[at], tau[0], False, generator), uncertain(known, 1.0, True, generator)])
        return nn.functional.cross_entropy(model(torch.cat([xf, xr])), q)

    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.rate)
    steps = descend(model.parameters(), loss, settings, optimiser=optimiser)
    for done in range(settings.steps):
        if done % EVERY == 0:
            known = accuracy(model, data.forget)
            if known - aim <= -0.01:
                return
            tau[0] = temperature(known, aim, settings.strength)
        yield next(steps)
