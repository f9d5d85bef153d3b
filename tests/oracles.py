"""Slow and obvious versions of what the package computes in closed form."""

import torch
from torch import Tensor, nn


def loss_of(head: Tensor, h: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of one sample as softplus(logsumexp of the others − z_y), exact at large logit gaps."""
    logits = head @ h
    others = torch.where(torch.arange(len(logits)) == label, float("-inf"), logits)
    return nn.functional.softplus(torch.logsumexp(others, 0) - logits.gather(0, label.reshape(1)).squeeze(0))


def gradients(head: Tensor, h: Tensor, labels: Tensor) -> Tensor:
    """Per-sample gradients (n, c, d+1) by float64 autograd."""
    return torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0, 0))(head, h, labels)


def influence(head: Tensor, h: Tensor, labels: Tensor, damping: float) -> Tensor:
    """Scores (n,) from materialised per-sample gradients: s_i = −g_i · (ḡ / (mean g² + λ))."""
    g = gradients(head, h, labels)
    return -(g * (g.mean(0) / (g.square().mean(0) + damping))).sum(dim=(1, 2))


def published_scores(head: Tensor, h: Tensor, labels: Tensor, damping: float) -> Tensor:
    """The published loop (goodluckisallyouneed/IMU, compute_all_gradients): one sample at a time, and its in-place mean.

    The list of gradients keeps a view of the tensor that the others are added into and that is then divided, so that the first
    sample's gradient is replaced by the mean of all.
    """
    kept, total, squares = [], None, torch.zeros_like(head)
    for row in range(len(h)):
        leaf = head.clone().requires_grad_(True)
        loss_of(leaf, h[row], labels[row]).backward()
        gradient = leaf.grad
        kept.append(gradient)
        squares += gradient.square() / len(h)
        if total is None:
            total = gradient
        else:
            total += gradient  # in place: kept[0] is the same tensor
    assert total is not None
    total /= len(h)  # and so is this
    return torch.stack([-(g * total / (squares + damping)).sum() for g in kept])
