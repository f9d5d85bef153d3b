"""Gradient ascent, NPO and SimNPO of a language model, on the completion tokens of the forget set alone.

With ℓ_t the cross-entropy of a completion's token t, |y| tokens (the end token included) and a batch of records:

    gradient ascent   L = − Σ ℓ_t / Σ |y|                                over all tokens of the batch
    NPO               L = (2/β) · mean log(1 + exp(β r)),  r = Σ_t ℓ⁰_t − Σ_t ℓ_t,  ℓ⁰ the original's
    SimNPO            L = (2/β) · mean log(1 + exp(−β ℓ̄)),  ℓ̄ = Σ_t ℓ_t / |y|

Sources: Maini et al. 2024 (arXiv 2401.06121) for ascent on TOFU; Zhang et al. 2024 (arXiv 2404.05868), β 0.1; Fan et al. 2024
(arXiv 2410.07163), β 2.5 and γ = 0 as on TOFU. Each has variants with a term on retained data; here none has, since none needs any.
AdamW with weight decay 0.01, as all three; their rates are for models of billions of weights (1e-5), here ``rate`` is chosen.

Needs neither retain data nor a reference beyond the original. Weights are changed in place; the functions yield the steps done. What is
below the moving layers has run once (``Completed``).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from imu_cli.linear import vocabulary
from imu_cli.linear.vocabulary import Vocabulary
from imu_cli.unlearning.demotion.completions import Completed

from .npo import preference
from .training import Settings, Steps, descend, minibatches

DECAY = 0.01
Moving = Mapping[str, nn.Parameter]
Loss = Callable[[Tensor], Tensor]
"""The loss of some records (k,) as the weights are now."""


def losses(forget: Completed, head: Vocabulary, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_t ℓ_t and |y| of some records (k,), both (k,), differentiable in the moving weights."""
    entered, targets = forget.run(rows), forget.targets[forget.places(rows)]
    logits = vocabulary.logits_of(entered, head, dtype=head.matrix.dtype)
    each = nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="none")
    counts = torch.bincount(forget.records, minlength=forget.n)[rows].to(logits.device)
    record = torch.repeat_interleave(torch.arange(len(rows), device=logits.device), counts)
    return each.new_zeros(len(rows)).index_add(0, record, each), counts


def gradient_ascent(moving: Moving, forget: Completed, head: Vocabulary, settings: Settings) -> Steps:
    """Ascend; ``strength`` is not used."""

    def loss(rows: Tensor) -> Tensor:
        total, counts = losses(forget, head, rows)
        return -total.sum() / counts.sum()

    return _descended(moving, forget, settings, loss)


def npo(moving: Moving, forget: Completed, head: Vocabulary, settings: Settings) -> Steps:
    """NPO beside the original's answers, which are those that the weights give at the start; ``strength`` is β."""
    with torch.no_grad():
        parts = torch.arange(forget.n).split(settings.batch)
        before = torch.cat([losses(forget, head, rows)[0] for rows in parts])

    def loss(rows: Tensor) -> Tensor:
        return preference(-losses(forget, head, rows)[0], -before[rows], settings.strength)

    return _descended(moving, forget, settings, loss)


def simnpo(moving: Moving, forget: Completed, head: Vocabulary, settings: Settings) -> Steps:
    """SimNPO, which looks at the mean over tokens and at no other model; ``strength`` is β."""

    def loss(rows: Tensor) -> Tensor:
        total, counts = losses(forget, head, rows)
        now = -total / counts
        return preference(now, torch.zeros_like(now), settings.strength)

    return _descended(moving, forget, settings, loss)


def _descended(moving: Moving, forget: Completed, settings: Settings, loss: Loss) -> Steps:
    draws = minibatches(forget.n, settings.batch, settings.generator())
    update = torch.optim.AdamW(moving.values(), lr=settings.rate, weight_decay=DECAY)
    return descend(moving.values(), lambda: loss(next(draws)), settings, optimiser=update)
