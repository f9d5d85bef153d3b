"""What the command line needs to know of an option beside its type and default."""

from dataclasses import dataclass
from typing import Literal

from imu_cli.files.paths import PathKind


@dataclass(frozen=True)
class Option:
    """What the command line needs beyond type and default.

    ``path`` names how a relative value in a YAML file is resolved against that file's folder. ``flag`` replaces the
    flag made from the field's name, ``default`` is shown where the default depends on other options.
    """

    help: str
    metavar: str | None = None
    path: PathKind | None = None
    short: str | None = None
    default: str | None = None
    group: str = "Options"
    file_only: bool = False


Scenario = Literal["auto", "class", "sample", "mislabelled"]
Method = Literal["auto", "imu", "matched", "demoted"]
Rows = Literal["auto", "forgotten", "all"]
Weights = Literal["influence", "uniform"]
Reweight = Literal["once", "epoch", "step"]
RequireOn = Literal["interval", "value"]
Attack = Literal["shadow-heads"]
By = Literal["id", "group"]
Task = Literal["auto", "classification", "embedding", "language"]

MODEL, DATA, SCORES, STOP, ASCENT, MATCHED, DEEPER, ATTACKS, OUTPUT = (
    "Model",
    "Data",
    "Scores",
    "When to stop",
    "Ascent",
    "Matched unlearning",
    "Deeper than the head",
    "Attacks",
    "Output",
)
