"""Options that several commands have: the model, the samples, the forget set, the target."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from imu_cli.config.fields import DATA, MATCHED, MODEL, OUTPUT, SCORES, STOP, Option, Scenario, Task
from imu_cli.features.precision import Precision


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
    strip_prefix: Annotated[
        str | None,
        Option(
            "What the file's names have before the architecture's.",
            metavar="PREFIX",
            default="whatever is before all of them",
            group=MODEL,
        ),
    ] = None
    leave_out: Annotated[
        list[str],
        Option(
            "Tensors of the file that are no part of the classifier, by name, first words (ema_model) or pattern ('*.ema'); "
            "may be repeated. They stay in what is written.",
            metavar="NAME",
            group=MODEL,
        ),
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
    task: Annotated[
        Task,
        Option(
            "What the model's output is: scores of classes; an embedding, by whose angle people are found; the next token of a text "
            "(language); auto: as the model's files say, an embedding where --embedding is given.",
            group=MODEL,
        ),
    ] = "auto"
    embedding: Annotated[
        str | None,
        Option(
            "Path of the module whose output is the embedding, of a model without classes or whose classes are of no use.",
            metavar="MODULE",
            default="the model's output",
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
    truncate: Annotated[
        bool,
        Option("Cut texts that are longer than the model takes; without it such a text is an error.", group=MODEL),
    ] = False
    template: Annotated[
        str | None,
        Option(
            "How the prompt and the completion of a record become one text; conversations (messages) have the tokenizer's own "
            "(language models).",
            metavar="TEMPLATE",
            default="'Question: {prompt}\\nAnswer: {completion}'",
            group=MODEL,
        ),
    ] = None
    end_token: Annotated[
        bool,
        Option(
            "Whether the tokenizer's end token closes a completion; not where texts are parts of longer ones (language models).",
            group=MODEL,
        ),
    ] = True
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
            "Samples in one forward pass, texts counted as long ones (at most 512 tokens); halved by itself when an accelerator's memory "
            "runs out.",
            default="found from the model and the device",
            group=MODEL,
        ),
    ] = None
    precision: Annotated[
        Precision,
        Option(
            "What the backbone computes in; float32 is never TF32. In less than float32 the error of the scores is measured and "
            "said.",
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
            "What must go: forget.csv (.tsv, .jsonl, - for stdin) of images or texts, a folder of images with --label, or "
            "selectors on --data: class=cat, index=0:500, id=4711, group=NAME, camera=1, coarse=vehicles_1. May be repeated for selectors.",
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
            "fashion-mnist:DIR, svhn:DIR (train split; #test for the other), or a .csv, .tsv or .jsonl of texts or of images.",
            metavar="DATA",
            path="data",
            group=DATA,
        ),
    ] = None
    columns: Annotated[
        str | dict[str, Any] | None,
        Option(
            "What lists and data call their columns, where that is not text, text_pair, label, id, group: "
            "text=utterance,label=category; by position in a file without a header: text=3,label=1.",
            metavar="MEANING=COLUMN,...",
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
    max_class_drop: Annotated[
        float | None,
        Gt(0),
        Le(1),
        Option(
            "Largest fall of accuracy of any single kept class on held-out data, as a fraction.",
            default="not guarded",
            group=STOP,
        ),
    ] = None
    max_auc: Annotated[
        float,
        Ge(0.5),
        Le(1),
        Option(
            "Membership AUC against held-out data that the forget set is to come down to: matched goes on to it within the "
            "budgets, and it is the target where accuracy has nothing to say. 1: the share on the forget set alone decides. "
            "Not used with --until or --rho. Of an embedding model: of the similarity of one person's images against unseen people's, by "
            "default the reference model's, or 0.5, and 0.03.",
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
