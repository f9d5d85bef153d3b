"""Every option of every command, once: its type, range, default and help text.

The command line's flags, the ``IMU_*`` environment variables and the keys of ``imu.yaml`` are all made from these
classes (see ``options``). Nothing here imports torch or pydantic, so that ``imu --help`` starts at once.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from imu_cli.config.fields import (
    ASCENT,
    ATTACKS,
    DATA,
    DEEPER,
    MODEL,
    OUTPUT,
    SCORES,
    STOP,
    Attack,
    By,
    Method,
    Option,
    RequireOn,
    Reweight,
    Rows,
    Scenario,
    Weights,
)
from imu_cli.config.shared import ForgetConfig, SamplesConfig, TargetConfig

REFERENCE_MODEL = Option(
    "Weights from before the people were seen, of the same architecture: how alike their images are for a model that never saw them "
    "(embedding models).",
    metavar="MODEL",
    path="file",
    group=MODEL,
)


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
    tokens: Annotated[
        bool,
        Option(
            "Print the records of the table with each token of their completions shaded by its influence (personal data); CSV then has a "
            "line a token, without its text (language models).",
            group=OUTPUT,
        ),
    ] = False
    images: Annotated[
        str | None,
        Option(
            "Also write an HTML page with the --show most influential samples, images or texts (personal data; readable by "
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
    reference_model: Annotated[str | None, REFERENCE_MODEL] = None
    method: Annotated[
        Method,
        Option(
            "imu: ascend the influence-weighted loss; matched: solve for the strength each sample needs; demoted: train towards "
            "the demoted teacher, wherever --scope says; auto: demoted where the scope is deeper than the head, imu in the class "
            "scenario, without target and held-out data, and where an option of the ascent is given, else matched.",
            group=STOP,
        ),
    ] = "auto"
    scope: Annotated[
        str,
        Option(
            "What moves: head; last-block (the last stage, or the last third of a stack of equal blocks, and what follows); all; or "
            "patterns of module paths, such as 'layer3.*,fc' or 'blocks.[8-11].*'.",
            metavar="SCOPE",
            default="head; last-block of an embedding or language model",
            group=DEEPER,
        ),
    ] = "head"
    untie: Annotated[
        bool,
        Option(
            "With --scope head of a language model whose head is tied to its embedding: write it as a tensor of its own beside the "
            "embedding, and say so in config.json.",
            group=DEEPER,
        ),
    ] = False
    anchor: Annotated[
        str | None,
        Option(
            "Unseen samples of the same kind, on which the network is held to what it says today; their labels are not used.",
            metavar="DATA",
            path="data",
            default="a part of the held-out data that may choose",
            group=DEEPER,
        ),
    ] = None
    beta: Annotated[
        float,
        Ge(0),
        Option("Weight of the anchor beside the forget samples.", default="1; 2 of a language model", group=DEEPER),
    ] = 1.0
    batches: Annotated[
        int | None,
        Gt(0),
        Option(
            "Training steps.",
            default="200 + 0.08 per forget sample, 0.16 with the feature term; 100 of an embedding model; 60 and eleven passes of a "
            "language model",
            group=DEEPER,
        ),
    ] = None
    feature_term: Annotated[
        bool,
        Option(
            "Where a whole class goes and there is an anchor: also spread its features around those of the kept classes.",
            group=DEEPER,
        ),
    ] = True
    resume: Annotated[
        bool,
        Option("Go on from the last look of the same run, if it was interrupted.", group=DEEPER),
    ] = False
    shard: Annotated[
        bool,
        Option(
            "Under torchrun, of a language model: each process holds only its rows of every block's weights, gradients and moments.",
            group=DEEPER,
        ),
    ] = False
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
    weights: Annotated[
        Weights,
        Option(
            "Influence weights (IMU) or uniform (plain gradient ascent); deeper than the head uniform is "
            "the default, see docs/method.md.",
            group=ASCENT,
        ),
    ] = "influence"
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
        Literal["paper", "paper-llm"] | None,
        Option(
            "paper: the published loop on cached features, fixed epochs and no stop rule; paper-llm: the same of a language model, on "
            "the attention of three blocks or on --scope (see docs/method.md).",
            group=ASCENT,
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        Gt(0),
        Option(
            "SGD with this learning rate in place of normalised steps; deeper than the head, the share of a layer's size that a step "
            "may move it by at the start.",
            default="none; 0.004 deeper than the head, 0.007 of an embedding model, 0.002 of a language model",
            group=ASCENT,
        ),
    ] = None
    momentum: Annotated[float, Ge(0), Lt(1), Option("Momentum (SGD only).", group=ASCENT)] = 0.0
    weight_decay: Annotated[float, Ge(0), Option("Weight decay (SGD only).", group=ASCENT)] = 0.0
    l1: Annotated[float, Ge(0), Option("Strength of the L1 term on the head (SGD only).", group=ASCENT)] = 0.0
    minibatch: Annotated[
        int | None,
        Gt(0),
        Option(
            "Forget samples in one SGD step, or in a training step deeper than the head.",
            default="all of them; 128 deeper than the head, 32 of an embedding model, 8 of a language model",
            group=ASCENT,
        ),
    ] = None
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
    reference_model: Annotated[str | None, REFERENCE_MODEL] = None
    attack: Annotated[
        Attack | None,
        Option(
            "shadow-heads: heads fitted on the features with and without each forget sample and unlearned by the record's "
            "options; needs --test, --retain and the record.",
            group=ATTACKS,
        ),
    ] = None
    shadows: Annotated[int, Gt(0), Option("Shadow heads of --attack shadow-heads, at least 8.", group=ATTACKS)] = 64
    relearn: Annotated[
        bool,
        Option(
            "Also fine-tune what differs from the original on 5, 10 and 25 forget samples and see how much of the others comes "
            "back; runs the network with gradients, up to 60,000 forward passes a model.",
            group=ATTACKS,
        ),
    ] = False
    suite: Annotated[
        str | None,
        Option(
            "Questions with wrong answers and other wordings: tofu:DIR, a folder with the files of TOFU, or a .jsonl with question, answer, "
            "perturbed_answer (a list), paraphrased_question, paraphrased_answer of the forgotten records (language models).",
            metavar="SUITE",
            path="data",
            group=ATTACKS,
        ),
    ] = None
    suite_size: Annotated[
        int | None,
        Gt(0),
        Option("Questions of each set of the suite, drawn by the seed.", default="all of them", group=ATTACKS),
    ] = None
    generate: Annotated[
        int,
        Ge(0),
        Option(
            "Also let the model answer so many records of each set, drawn by the seed, for ROUGE-L (language models of transformers; a "
            "forward pass for every word).",
            metavar="N",
            group=ATTACKS,
        ),
    ] = 0
    four_bit: Annotated[
        bool,
        Option(
            "Also what the model recalls with its weights rounded to four bits (NF4), which is known to bring answers back (language "
            "models).",
            group=ATTACKS,
        ),
    ] = False
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
    samples: Annotated[
        int,
        Ge(0),
        Option(
            "Also write so many forgotten images with the images that they find (embedding models: an HTML page), or forgotten records with "
            "what is answered (language models: .answers.json, which imu report --samples shows), before and after, beside the evaluation; "
            "personal data, readable by you alone.",
            metavar="N",
            group=OUTPUT,
        ),
    ] = 0
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
PAPER_LLM = {
    "scope": "model.layers.[19-21].self_attn.*",
    "learning_rate": 1e-5,
    "minibatch": 16,
    "epochs": 5,
    "weight_decay": 0.01,
    "l1": 0.02,
    "keep": 1.0,
    "clip_quantile": 0.93,
    "damping": "0.01",
    "weights": "influence",
}
"""What ``--preset paper-llm`` sets: scope, L1 and clip are the paper's; rate, epochs and decay are ours, after what is usual for TOFU."""
PRESETS: dict[str, dict[str, object]] = {"paper": dict(PAPER), "paper-llm": dict(PAPER_LLM)}
