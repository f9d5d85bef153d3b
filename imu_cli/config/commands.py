"""Every option of every command, once: its type, range, default and help text.

The command line's flags, the ``IMU_*`` environment variables and the keys of ``imu.yaml`` are all made from these
classes (see ``options``). Nothing here imports torch or pydantic, so that ``imu --help`` starts at once.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

PathKind = Literal["file", "data", "forget", "arch", "preprocess"]


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
Method = Literal["auto", "imu", "matched"]
Rows = Literal["auto", "forgotten", "all"]
Weights = Literal["influence", "uniform"]
Reweight = Literal["once", "epoch", "step"]
Format = Literal["table", "json", "csv"]
RequireOn = Literal["interval", "value"]
Attack = Literal["shadow-heads"]
By = Literal["id", "group"]
Precision = Literal["float32", "bfloat16", "float16"]

MODEL, DATA, SCORES, STOP, ASCENT, MATCHED, ATTACKS, OUTPUT = (
    "Model",
    "Data",
    "Scores",
    "When to stop",
    "Ascent",
    "Matched unlearning",
    "Attacks",
    "Output",
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """How the checkpoint becomes a model that sees images as it did in training."""

    arch: Annotated[
        str | None,
        Option(
            "Architecture: torchvision:NAME, file.py:factory or package.module:factory. Code runs only if named here.",
            metavar="ARCH",
            path="arch",
            group=MODEL,
        ),
    ] = None
    arch_arg: Annotated[
        list[str], Option("Argument of the factory; may be repeated.", metavar="KEY=VALUE", group=MODEL)
    ] = field(default_factory=list)
    head: Annotated[
        str | None,
        Option(
            "Path of the last linear layer, or 1x1 convolution on pooled features.",
            metavar="MODULE",
            default="found, then replayed",
            group=MODEL,
        ),
    ] = None
    preprocess: Annotated[
        str | dict[str, Any] | None,
        Option(
            "Evaluation preprocessing: imagenet, cifar10, cifar100, mnist, none, or a YAML file with size, crop, "
            "interpolation, mean, std, mode.",
            metavar="PRESET|FILE",
            path="preprocess",
            group=MODEL,
        ),
    ] = None
    classes: Annotated[
        str | None,
        Option(
            "File with one class name a line, in the order of the model's outputs.",
            metavar="FILE",
            path="file",
            group=MODEL,
        ),
    ] = None
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Option("Where the backbone runs.", group=MODEL)] = "auto"
    batch_size: Annotated[
        int | None,
        Gt(0),
        Option(
            "Images in one forward pass; halved by itself when an accelerator's memory runs out.",
            default="found from the model and the device",
            group=MODEL,
        ),
    ] = None
    precision: Annotated[
        Precision,
        Option(
            "What the backbone computes in. With bfloat16 and float16 the error of the scores is measured and said.",
            group=MODEL,
        ),
    ] = "float32"
    seed: Annotated[int, Ge(0), Option("Seed of every random choice.", group=OUTPUT)] = 0


@dataclass(frozen=True, kw_only=True)
class SamplesConfig(ModelConfig):
    """Which samples, and the data they come from."""

    forget: Annotated[
        list[str],
        Option(
            "What must go: forget.csv (.tsv, .jsonl, - for stdin), a folder of images with --label, or selectors on "
            "--data: class=cat, index=0:500, id=4711, coarse=vehicles_1. May be repeated for selectors.",
            metavar="FORGET",
            path="forget",
            group=DATA,
        ),
    ] = field(default_factory=list)
    label: Annotated[str | None, Option("Class of the images of a forget folder.", metavar="CLASS", group=DATA)] = None
    data: Annotated[
        str | None,
        Option(
            "The data set that the forget list points into: a class folder, cifar10:DIR, cifar100:DIR, mnist:DIR, "
            "fashion-mnist:DIR, svhn:DIR (train split; #test for the other) or a manifest.",
            metavar="DATA",
            path="data",
            group=DATA,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ForgetConfig(SamplesConfig):
    """What is to be forgotten, what it is held against, and how it is scored."""

    features: Annotated[
        str | None,
        Option(
            "A file of imu features, or of another engine, in place of images: the data set that the forget list points "
            "into, and without --forget all of it. Neither --arch nor --preprocess is needed then.",
            metavar="FILE",
            path="data",
            group=DATA,
        ),
    ] = None
    max_memory: Annotated[
        str | None,
        Option(
            "Memory that the features of a set may take, such as 8GB; a larger set is streamed from a temporary file.",
            metavar="SIZE",
            default="half of what is free",
            group=DATA,
        ),
    ] = None
    test: Annotated[
        str | None,
        Option(
            "Held-out data. unlearn takes targets, Σ and its guard from a random half of it and leaves the other half to "
            "evaluate.",
            metavar="DATA",
            path="data",
            group=DATA,
        ),
    ] = None
    damping: Annotated[
        str,
        Option(
            "Damping of the Fisher diagonal: a number, or relative:NUMBER times its mean.",
            metavar="NUMBER",
            group=SCORES,
        ),
    ] = "0.01"
    keep: Annotated[
        float, Gt(0), Le(1), Option("Fraction of the samples with a negative score that is ascended.", group=SCORES)
    ] = 1.0
    clip_quantile: Annotated[
        float, Gt(0), Le(1), Option("Weights above this quantile of the weights are set to it.", group=SCORES)
    ] = 0.93
    cache: Annotated[bool, Option("Read and write the score cache.", group=SCORES)] = True
    cache_features: Annotated[
        bool,
        Option(
            "Also keep the forget samples' features on disk (personal data), so that a repeat skips the model.",
            group=SCORES,
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(SamplesConfig):
    """Options of ``imu features``: the features of ``--data``, or of what must go alone."""

    output: Annotated[
        str | None,
        Option("The file of features.", metavar="FILE", short="-o", default="features.safetensors", group=OUTPUT),
    ] = None
    force: Annotated[
        bool, Option("Replace an existing output, and begin anew what an interrupted run left.", group=OUTPUT)
    ] = False


@dataclass(frozen=True, kw_only=True)
class TargetConfig(ForgetConfig):
    """What the forget set is to look like, and what the solver may spend on it."""

    scenario: Annotated[
        Scenario,
        Option(
            "Why the samples go; auto: class if the forget set holds every row of its labels in --data, else sample.",
            group=STOP,
        ),
    ] = "auto"
    reference: Annotated[
        str | None,
        Option(
            "Held-out data for targets, Σ and the guard, in place of half of --test.",
            metavar="DATA",
            path="data",
            group=DATA,
        ),
    ] = None
    until: Annotated[
        str | None,
        Option("Target in place of the scenario's own.", metavar="'forget.accuracy<=X'", group=STOP),
    ] = None
    max_drop: Annotated[
        float, Ge(0), Le(1), Option("Largest fall of accuracy on held-out data, as a fraction.", group=STOP)
    ] = 0.01
    max_auc: Annotated[
        float,
        Ge(0.5),
        Le(1),
        Option(
            "Membership AUC against held-out data that matched goes on to, within the budgets; 1: the share on the forget "
            "set alone decides. Not used with --until or --rho.",
            group=MATCHED,
        ),
    ] = 0.51
    rho: Annotated[
        float | None,
        Gt(0),
        Option(
            "How much margins may miss their targets for the sake of other samples.",
            default="the largest that meets the target, found along a path",
            group=MATCHED,
        ),
    ] = None
    sigma_damping: Annotated[
        float, Gt(0), Option("Damping λ of the second moment Σ of features, times its mean diagonal.", group=MATCHED)
    ] = 0.01
    class_factor: Annotated[
        bool,
        Option("K-FAC's class factor in the metric, where there are held-out data; else the identity.", group=MATCHED),
    ] = True


@dataclass(frozen=True, kw_only=True)
class InfluenceConfig(TargetConfig):
    """Options of ``imu influence``."""

    show: Annotated[int, Ge(0), Option("Rows of the table.", group=OUTPUT)] = 20
    kernel: Annotated[
        bool,
        Option(
            "Also solve matched unlearning, and show each sample's strength, self-influence and what moves it most; "
            "needs a target (--test, --reference or --until).",
            group=SCORES,
        ),
    ] = False
    images: Annotated[
        str | None,
        Option(
            "Also write an HTML page with thumbnails of the --show most influential samples (personal data; readable by "
            "you alone).",
            metavar="FILE",
            path="file",
            group=OUTPUT,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class UnlearnConfig(TargetConfig):
    """Options of ``imu unlearn``."""

    output: Annotated[
        str | None,
        Option(
            "The unlearned checkpoint; a folder where MODEL is one.",
            metavar="PATH",
            short="-o",
            default="STEM.unlearned.safetensors, or FOLDER.unlearned",
            group=OUTPUT,
        ),
    ] = None
    force: Annotated[bool, Option("Replace an existing output (never the input).", group=OUTPUT)] = False
    method: Annotated[
        Method,
        Option(
            "imu: ascend the influence-weighted loss; matched: solve for the strength each sample needs; auto: imu in the "
            "class scenario, without target and held-out data, and where an option of the ascent is given, else matched.",
            group=STOP,
        ),
    ] = "auto"
    max_head_change: Annotated[
        float | None,
        Gt(0),
        Option(
            "Largest change of the head, as a fraction of its norm.",
            default="0.02 without a target, else none",
            group=STOP,
        ),
    ] = None
    max_steps: Annotated[int, Gt(0), Option("Largest number of steps.", group=STOP)] = 1000
    weights: Annotated[Weights, Option("Influence weights (IMU) or uniform (plain gradient ascent).", group=ASCENT)] = (
        "influence"
    )
    reweight: Annotated[Reweight, Option("When weights are recomputed as the head moves.", group=ASCENT)] = "once"
    rows: Annotated[
        Rows,
        Option(
            "Rows of the head that move; auto: the forgotten classes' rows in the class scenario, else all.",
            group=ASCENT,
        ),
    ] = "auto"
    step: Annotated[
        float, Gt(0), Lt(1), Option("Length of a step, as a fraction of the head's norm.", group=ASCENT)
    ] = 0.005
    preset: Annotated[
        Literal["paper"] | None,
        Option(
            "paper: the published loop on cached features, fixed epochs and no stop rule (see docs/method.md).",
            group=ASCENT,
        ),
    ] = None
    learning_rate: Annotated[
        float | None, Gt(0), Option("SGD with this learning rate in place of normalised steps.", group=ASCENT)
    ] = None
    momentum: Annotated[float, Ge(0), Lt(1), Option("Momentum (SGD only).", group=ASCENT)] = 0.0
    weight_decay: Annotated[float, Ge(0), Option("Weight decay (SGD only).", group=ASCENT)] = 0.0
    l1: Annotated[float, Ge(0), Option("Strength of the L1 term on the head (SGD only).", group=ASCENT)] = 0.0
    minibatch: Annotated[int | None, Gt(0), Option("Samples in one SGD step.", default="all of them", group=ASCENT)] = (
        None
    )
    epochs: Annotated[
        int | None, Gt(0), Option("Stop after this many passes over the kept samples (SGD only).", group=ASCENT)
    ] = None


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ForgetConfig):
    """Options of ``imu evaluate``."""

    original: Annotated[
        str | None,
        Option(
            "The model before unlearning.",
            metavar="MODEL",
            path="file",
            default="from the record beside MODEL",
            group=MODEL,
        ),
    ] = None
    scenario: Annotated[Scenario, Option("Why the samples went.", default="from the record", group=DATA)] = "auto"
    retain: Annotated[
        str | None,
        Option("Training data that stay; forget samples in it are left out.", metavar="DATA", path="data", group=DATA),
    ] = None
    retrained: Annotated[
        str | None,
        Option(
            "A model retrained without the forget set, of the same architecture, to compare with.",
            metavar="MODEL",
            path="file",
            group=MODEL,
        ),
    ] = None
    attack: Annotated[
        Attack | None,
        Option(
            "shadow-heads: heads fitted on the features with and without each forget sample and unlearned by the record's "
            "options; needs --test, --retain and the record.",
            group=ATTACKS,
        ),
    ] = None
    shadows: Annotated[int, Gt(0), Option("Shadow heads of --attack shadow-heads, at least 8.", group=ATTACKS)] = 64
    compat: Annotated[
        bool,
        Option(
            "Also the scores that papers print (SVC attacks, W1 on class indices, NeurIPS 2023), as published and corrected.",
            group=ATTACKS,
        ),
    ] = False
    by: Annotated[
        By | None,
        Option(
            "Also results for each id (person or request) or group of the forget list; its names then stand in the output "
            "and in the evaluation file.",
            group=OUTPUT,
        ),
    ] = None
    require: Annotated[
        list[str],
        Option(
            "Gate, such as 'test.accuracy_drop<=0.01'; may be repeated. Those under gates: in the YAML file stay.",
            metavar="'METRIC<=X'",
            group=OUTPUT,
        ),
    ] = field(default_factory=list)
    gates: Annotated[
        list[str],
        Option("Gates that always hold: --require adds to them and cannot loosen them.", file_only=True, group=OUTPUT),
    ] = field(default_factory=list)
    require_on: Annotated[
        RequireOn,
        Option("Compare the unfavourable end of the 95 % interval, or the point estimate.", group=OUTPUT),
    ] = "interval"
    junit: Annotated[
        str | None,
        Option(
            "Also write the verdicts as JUnit XML: a failed gate as failure, an inconclusive one as error.",
            metavar="FILE",
            path="file",
            group=OUTPUT,
        ),
    ] = None
    output: Annotated[
        str | None,
        Option("The evaluation file.", metavar="FILE", short="-o", default="STEM.evaluation.json", group=OUTPUT),
    ] = None


PAPER = {
    "learning_rate": 0.01,
    "minibatch": 256,
    "epochs": 10,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "l1": 0.2,
    "keep": 0.1,
    "clip_quantile": 0.93,
    "damping": "0.01",
    "rows": "all",
    "weights": "influence",
    "reweight": "once",
}
"""What ``--preset paper`` sets: the defaults of the published code (arXiv 2508.01620, goodluckisallyouneed/IMU)."""

HEAD_CHANGE_WITHOUT_TARGET = 0.02
CLASS_TARGET = 0.005
