"""SCRUB: a student that obeys the original on retain data and disobeys it on what has to go.

    max step:  L = − mean_{D_f} KL_T(p_0 ‖ p_θ)
    min step:  L = α · mean_R KL_T(p_0 ‖ p_θ) + γ · mean_R ℓ(x, y)        KL_T of answers at temperature T, times T²

Source: Kurmanji et al. 2023 (arXiv 2302.09880). Needs retain data. Defaults: α 0.5, γ 1, T 4; a max step before every min step in the first
half of the steps, min steps alone in the second (the paper alternates epochs, and ends with min epochs). ``strength`` scales the max steps.
"""

import torch
from torch import Tensor, nn

from .training import Data, Settings, Steps, descend, minibatches, teacher_of

ALPHA, GAMMA, TEMPERATURE = 0.5, 1.0, 4.0


def disagreement(student: Tensor, teacher: Tensor) -> Tensor:
    """KL of answers at the temperature, times its square, a sample."""
    t = TEMPERATURE
    return t * t * nn.functional.kl_div((student / t).log_softmax(1), (teacher / t).softmax(1), reduction="batchmean")


def unlearn(model: nn.Module, data: Data, settings: Settings) -> Steps:
    """Alternate, then repair."""
    generator = settings.generator()
    teacher = teacher_of(model, data.forget)
    names, before = zip(*((name, p.detach().clone()) for name, p in model.named_parameters()), strict=True)
    forget = minibatches(len(data.forget), settings.batch, generator)
    retain = minibatches(len(data.retain), settings.batch, generator)
    count = [0]

    def loss() -> Tensor:
        count[0] += 1
        if count[0] % 2 == 1 and count[0] <= settings.steps // 2:
            at = next(forget)
            return -settings.strength * disagreement(model(data.forget.batch(at)[0]), teacher[at])
        x, y = data.retain.batch(next(retain))
        with torch.no_grad():
            wanted = torch.func.functional_call(model, dict(zip(names, before, strict=True)), (x,))
        found = model(x)
        return ALPHA * disagreement(found, wanted) + GAMMA * nn.functional.cross_entropy(found, y)

    return descend(model.parameters(), loss, settings)
