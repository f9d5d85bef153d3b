"""``imu evaluate --relearn`` of a language model: what of forgotten records comes back once a few of them are learnt again.

The budget is that of classifiers (``evaluation.relearning``): what differs from the original is fine-tuned for ten steps of AdamW on k
records, and the others are looked at; the same with unseen records, so that what learning the form of an answer brings is known.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from imu_cli import signals
from imu_cli.evaluation.relearning import LEARNING_RATE, STEPS
from imu_cli.features import engine, tokens
from imu_cli.features.session import Session
from imu_cli.models import language
from imu_cli.models.arithmetic import float32_as
from imu_cli.records.recall_metrics import SHOTS
from imu_cli.samples.dataset import SampleSet
from imu_cli.statistics.recall import Recalled

HELD = 50
"""Other records that are looked at, at most."""
TOGETHER = 4
"""Records that pass with gradients at a time."""

Say = Callable[[Session, SampleSet, str], Recalled]


def too_few(n: int) -> dict[str, str]:
    """Which k a forget set of n records is too small for, with what to say of each."""
    return {f"relearned.k{k}": f"needs more than {k} forgotten records" for k in SHOTS if n <= k}


def run(
    session: Session,
    changed: Sequence[str],
    forget: SampleSet,
    unseen: SampleSet | None,
    seed: int,
    say: Say,
    whose: str,
) -> dict[int, tuple[Tensor, Tensor | None]]:
    """Extraction strength (m,) of other forgotten records after learning k of them, and of unseen ones after learning k of those, by k."""
    weights = _moved(session, changed)
    if not weights:
        return {}
    made = {}
    for k in SHOTS:
        if len(forget) > k:
            sides = [_tried(session, weights, samples, k, seed, say, whose) for samples in (forget, unseen)]
            assert sides[0] is not None
            made[k] = (sides[0], sides[1])
    return made


def _moved(session: Session, changed: Sequence[str]) -> Mapping[str, nn.Parameter]:
    network = session.network
    assert network is not None
    own, parameters = network.loaded.naming.own, dict(network.model.named_parameters())
    return {own(name): parameters[own(name)] for name in changed if own(name) in parameters}


def _tried(
    session: Session,
    weights: Mapping[str, nn.Parameter],
    samples: SampleSet | None,
    k: int,
    seed: int,
    say: Say,
    whose: str,
) -> Tensor | None:
    if samples is None or len(samples) <= k:
        return None
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with session.log.timed("relearning"):
            _learn(session, list(weights.values()), samples.subset(order[:k]))
        return say(session, samples.subset(sorted(order[k : k + HELD])), f"after learning {k} again{whose}").extraction
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])


def _learn(session: Session, weights: Sequence[nn.Parameter], samples: SampleSet) -> None:
    """Ten steps of AdamW on all of the records, from the weights as they are."""
    network, head = session.network, session.head
    assert network is not None
    model, step = network.model, network.preprocess
    answers = tokens.answers_of(samples, step)
    layer = model.get_submodule(head.module)
    for weight in weights:
        weight.requires_grad_(True)
    try:
        optimiser = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0)
        with torch.enable_grad(), language.without_cache(model), float32_as("ieee"):
            for _ in range(STEPS):
                optimiser.zero_grad()
                for rows in torch.arange(len(samples)).split(TOGETHER):
                    signals.check()
                    batch = engine.batch(samples, rows.tolist(), step, session.device)
                    entered = answers.chosen(language.entering(model, head.module, batch), rows)
                    made = (
                        layer(entered) * head.scale
                        if head.cap is None
                        else head.cap * torch.tanh(layer(entered) * head.scale / head.cap)
                    )
                    wanted = answers.targets[answers.of(rows)].to(made.device)
                    (nn.functional.cross_entropy(made, wanted, reduction="sum") / len(answers.targets)).backward()
                optimiser.step()
    finally:
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None
