"""Weights rounded to four bits: NormalFloat 4, as published and as bitsandbytes stores them.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023 (arXiv 2305.14314): weights in blocks of 64 in the order
of memory, each block divided by its largest size, each number replaced by the nearest of 16 levels (quantiles of a normal distribution
between −1 and 1, with an exact 0; appendix E), the block's scale kept in float32. Scales are
not rounded again ("double quantization" is not used).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from imu_cli import signals

BLOCK = 64
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def rounded(weight: Tensor) -> Tensor:
    """What four bits keep of a weight, in its own shape and dtype."""
    flat = weight.detach().float().flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    levels = torch.tensor(LEVELS, device=flat.device)
    middles = (levels[1:] + levels[:-1]) / 2
    shares = (blocks / scale.clamp_min(torch.finfo(torch.float32).tiny)).contiguous()
    nearest = levels[torch.bucketize(shares, middles)]
    return (nearest * scale).flatten()[: len(flat)].view_as(weight).to(weight.dtype)


@contextmanager
def held(weights: Iterable[Tensor]) -> Iterator[None]:
    """While the context lasts, these weights are what four bits keep of them; the others lie beside them meanwhile."""
    before = []
    try:
        for weight in weights:
            signals.check()
            before.append((weight, weight.detach().clone()))
            weight.data.copy_(rounded(weight))
        yield
    finally:
        for weight, own in before:
            weight.data.copy_(own)
