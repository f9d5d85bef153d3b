"""IMU as it was published: its own loop, uncorrected, and the same loop corrected.

    s_i = − g_i · (ḡ ⊘ (F + 0.01)),   keep the tenth with the most negative s,   w_i = sqrt|s_i|, clipped at its 0.93 quantile
    L = − Σ_B w_i ℓ_i / Σ_B w_i + 0.2 ‖W‖₁      SGD, rate 0.01, momentum 0.9, weight decay 5e-4, batch 256, 10 epochs, the head alone

Source: Fan et al. 2025 (arXiv 2508.01620) and its code (goodluckisallyouneed/IMU); ../shared/spec/method.md says where that goes wrong.
*Uncorrected*: scores and steps from crops and flips; batch norm in training mode, so that its statistics drift towards the forget set in
the whole network; the first sample's score is that of the mean gradient. *Corrected*: evaluation preprocessing, everything below the head
left as it is, correct scores; the values of the loop are the published ones. Needs neither retain data nor a reference. There is no stop
rule: ten epochs.

What crops see beyond the image decides how far batch norm drifts. The published transforms pad before they normalise: black. Zeros put
around normalised images are the mean colour, and cost twice as much of what is retained: so the figures of
../shared/spec/measurements.md come out (``compare.py --parts published``). Fisher and gradients come from the same crops here and from two
draws there, which moves no figure by more than two seeds differ.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .training import Steps

EPOCHS, BATCH, TOP = 10, 256, 0.1
RATE, MOMENTUM, DECAY, L1, DAMPING, CLIP = 0.01, 0.9, 5e-4, 0.2, 0.01, 0.93
BLACK = torch.zeros(3)


@dataclass(frozen=True)
class Network:
    """A network of images (n, 3, h, w) from 0 to 1: what is below its head, and the head."""

    body: nn.Module
    head: nn.Linear

    def __call__(self, images: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.head(self.body(images))
        return found


def cropped(images: Tensor, generator: torch.Generator, padding: int = 4, border: Tensor = BLACK) -> Tensor:
    """Random crops of the images padded with a colour (3,), and flips."""
    n, _, height, width = images.shape
    wide = border[:, None, None].repeat(n, 1, height + 2 * padding, width + 2 * padding)
    wide[..., padding : padding + height, padding : padding + width] = images
    at = torch.randint(2 * padding + 1, (2, n), generator=generator).tolist()
    parts = torch.stack([wide[i, :, at[0][i] : at[0][i] + height, at[1][i] : at[1][i] + width] for i in range(n)])
    flipped = torch.rand(n, generator=generator) < 0.5
    return torch.where(flipped[:, None, None, None], parts.flip(3), parts)


def scores(h: Tensor, residuals: Tensor, *, corrected: bool) -> Tensor:
    """Scores (n,) of features (n, d+1) and residuals (n, c).

    Uncorrected, the first gradient has become the mean of all by the time that it is used.
    """
    n = len(h)
    fisher, mean = residuals.square().T @ h.square() / n, residuals.T @ h / n
    step = mean / (fisher + DAMPING)
    found = -((residuals @ step) * h).sum(dim=1)
    if not corrected:
        found[0] = -(mean * step).sum()
    return found


def chosen(found: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that are kept, and their weights: the most negative tenth (at least one)."""
    order = found.argsort()[: max(1, int(TOP * len(found)))]
    order = order[found[order] < 0]
    weights = found[order].abs().sqrt()
    return order, weights.clamp(max=float(weights.quantile(CLIP)))


def unlearn(
    network: Network,
    images: Tensor,
    labels: Tensor,
    *,
    corrected: bool,
    seed: int = 0,
    epochs: int = EPOCHS,
    border: Tensor = BLACK,
) -> Steps:
    """Score, choose, ascend; yields the epochs done.

    Args:
        network: changed in place: its head, and uncorrected the statistics of its batch norms.
        images: (n, 3, h, w) from 0 to 1.
        labels: (n,).
        corrected: without the published mistakes.
        seed: of crops and minibatches.
        epochs: passes over what was chosen.
        border: (3,) from 0 to 1, the colour that crops see beyond an image.
    """
    generator = torch.Generator().manual_seed(seed)
    network.body.eval()
    seen = images if corrected else cropped(images, generator, border=border)
    with torch.no_grad():
        h = torch.cat([network.body(part) for part in seen.split(BATCH)])
        p = network.head(h).softmax(dim=1)
        residuals = p - nn.functional.one_hot(labels, p.shape[1])
        if corrected:  # -sum of the others, not p - 1: exact where float32's softmax is 1 (../shared/spec/method.md)
            residuals.scatter_(1, labels[:, None], 0)
            residuals.scatter_(1, labels[:, None], -residuals.sum(dim=1, keepdim=True))
    wide = torch.cat([h, torch.ones(len(h), 1)], dim=1).double()
    rows, weights = chosen(scores(wide, residuals.double(), corrected=corrected))
    weights = weights.float()
    optimiser = torch.optim.SGD(network.head.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY)
    for epoch in range(1, epochs + 1):
        network.body.train(not corrected)
        for at in torch.randperm(len(rows), generator=generator).split(BATCH):
            mine = rows[at]
            with torch.no_grad():
                shown = None if corrected else cropped(images[mine], generator, border=border)
                below = h[mine] if shown is None else network.body(shown)
            losses = nn.functional.cross_entropy(network.head(below), labels[mine], reduction="none")
            norm = torch.cat([part.reshape(-1) for part in network.head.parameters()]).abs().sum()
            optimiser.zero_grad()
            (-(weights[at] @ losses) / weights[at].sum() + L1 * norm).backward()
            optimiser.step()
            if shown is not None:
                with torch.no_grad():  # the published loop's second forward, for its log: batch norm drifts by it too
                    network.body(shown)
        network.body.eval()
        yield epoch
