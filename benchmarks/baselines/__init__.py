"""The methods that ``imu unlearn`` is compared with: one module each, ``unlearn(model, data, settings)`` yielding the steps done.

Written from the papers' formulas; each module's docstring has formula, source, needs and defaults. The model is in ``eval()`` mode
throughout: batches of a forget set alone would otherwise change the statistics of batch norm, to every method's harm.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from . import (
    boundary_shrink,
    delete,
    fine_tuning,
    gradient_ascent,
    lotus,
    neggrad_plus,
    npo,
    random_labels,
    salun,
    scrub,
    simnpo,
    ssd,
)
from .training import Data, Settings, Steps


@dataclass(frozen=True)
class Method:
    """A method and what is searched.

    Attributes:
        title: as it is printed.
        unlearn: the function.
        needs: data beyond the forget set.
        rates: learning rates that are tried.
        strengths: coefficients that are tried.
        looks: steps at which a trial is looked at; the last is how long it is.
    """

    title: str
    unlearn: Callable[[nn.Module, Data, Settings], Steps]
    needs: tuple[str, ...] = ()
    rates: tuple[float, ...] = (0.000125, 0.0005)
    strengths: tuple[float, ...] = (1.0,)
    looks: tuple[int, ...] = (10, 20, 40)


METHODS = {
    "delete": Method("DELETE", delete.unlearn),
    "gradient_ascent": Method("gradient ascent", gradient_ascent.unlearn, rates=(0.0005, 0.002)),
    "salun": Method("SalUn", salun.unlearn, ("retain",)),
    "scrub": Method("SCRUB", scrub.unlearn, ("retain",), (0.0005, 0.002), looks=(40,)),
    "neggrad_plus": Method("NegGrad+", neggrad_plus.unlearn, ("retain",), (0.005, 0.02), (0.95,)),
    "random_labels": Method("random labels", random_labels.unlearn),
    "ssd": Method("SSD", ssd.unlearn, ("retain",), (0.0,), (5.0, 10.0, 25.0), (80,)),
    "npo": Method("NPO", npo.unlearn, rates=(0.0005, 0.002)),
    "boundary_shrink": Method("boundary shrink", boundary_shrink.unlearn, strengths=(0.3,)),
    "lotus": Method("LoTUS", lotus.unlearn, ("retain", "unseen"), (0.0002, 0.001), (2.0,)),
    "simnpo": Method("SimNPO", simnpo.unlearn, rates=(0.0005, 0.002)),
    "fine_tuning": Method("fine-tuning", fine_tuning.unlearn, ("retain",), rates=(0.0125, 0.05)),
}
