"""DELETE: distil the original with the label masked out, on what has to go.

    q = softmax(z_0 with z_{0,y} = −∞),   L = mean_{D_f} KL(q ‖ p_θ)

Source: Zhou et al. 2025 (arXiv 2503.23751). Needs neither retain data nor a reference. The paper moves the whole network.
"""

from torch import Tensor, nn

from .training import Data, Settings, Steps, descend, minibatches, teacher_of


def masked(logits: Tensor, labels: Tensor) -> Tensor:
    """Probabilities (n, c) of the teacher without the label."""
    return logits.scatter(1, labels[:, None], float("-inf")).softmax(dim=1)


def unlearn(model: nn.Module, data: Data, settings: Settings) -> Steps:
    """The teacher from one pass, then minibatches of the forget set."""
    teacher = masked(teacher_of(model, data.forget), data.forget.y)
    draws = minibatches(len(data.forget), settings.batch, settings.generator())

    def loss() -> Tensor:
        at = next(draws)
        return nn.functional.kl_div(
            model(data.forget.batch(at)[0]).log_softmax(dim=1), teacher[at], reduction="batchmean"
        )

    return descend(model.parameters(), loss, settings)
