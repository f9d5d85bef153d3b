"""Cases that the numerical tests run over: head sizes, sample counts and how well the samples are fitted."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """A random linear head with features and labels; ``gap`` is about the largest logit gap, label against the rest."""

    n: int
    c: int
    d: int
    bias: bool
    gap: float

    def __str__(self) -> str:
        return f"n{self.n}-c{self.c}-d{self.d}-{'bias' if self.bias else 'nobias'}-gap{self.gap:g}"

    def make(self) -> tuple[Tensor, Tensor, Tensor]:
        """H (n, d+1) float64 with its column of ones, W (c, d+1), labels (n,)."""
        generator = torch.Generator().manual_seed(self.n * 1000 + self.c)
        h = torch.rand(self.n, self.d, generator=generator, dtype=torch.float64)
        w = torch.randn(self.c, self.d + self.bias, generator=generator, dtype=torch.float64)
        if self.bias:
            h = torch.cat([h, torch.ones(self.n, 1, dtype=torch.float64)], dim=1)
        logits = h @ w.T
        labels = logits.argmax(dim=1)
        labels[::3] = torch.randint(0, self.c, (len(labels[::3]),), generator=generator)
        return h, w * (self.gap / float(logits.max() - logits.min())), labels

    def unseen(self, m: int = 60) -> tuple[Tensor, Tensor, Tensor]:
        """Features, labels and logits of samples that the head was not asked to fit: the labels are random."""
        generator = torch.Generator().manual_seed(self.c)
        _, head, _ = self.make()
        h = torch.rand(m, head.shape[1], generator=generator, dtype=torch.float64)
        if self.bias:
            h[:, -1] = 1
        return h, torch.randint(0, self.c, (m,), generator=generator), h @ head.T


CASES = [
    Case(n, c, 7, bias, gap) for n in (1, 7, 40) for c in (2, 10, 100) for bias in (True, False) for gap in (3.0, 25.0)
]
