"""Every metric of a language model: what can still be read out of forgotten records, and what is left of the others."""

import math
from collections.abc import Mapping

from imu_cli.records.definition import Definition

LOSS = "mean cross-entropy ℓ of the answer's tokens in nats, its end token included"
PROBABILITY = "mean exp(−ℓ), ℓ the mean cross-entropy of an answer's tokens, its end token included"
EXACT = "mean share of an answer's tokens that are the most likely one where they stand, without the end token"
EXTRACTION = (
    "mean 1 − k/|y|, k the shortest prefix of the answer after which every token is the most likely one (0 where the last is not), "
    "without the end token"
)
ROUGE = "mean ROUGE-L recall of what the model writes when it is asked (greedy, up to 200 tokens, stemmed), against the true answer"
MEASURES: Mapping[str, tuple[str, str]] = {
    "loss": ("loss", LOSS),
    "probability": ("probability", PROBABILITY),
    "exact_memorization": ("exact memorisation", EXACT),
    "extraction_strength": ("extraction strength", EXTRACTION),
}
"""What is measured of every set of records: title and text."""
SHARES = tuple(name for name in MEASURES if name != "loss")
MEMBERSHIP: Mapping[str, tuple[str, str]] = {
    "loss": ("−ℓ", "--test"),
    "zlib": ("−ℓ over the answer's bytes under zlib", "--test"),
    "min_k": ("mean log p of the 40 % least likely tokens (min-k %)", "--test"),
    "min_k_plus": ("the same of (log p − its mean over the words) / its deviation (min-k++)", "--test"),
    "reference": ("ℓ under the reference model less ℓ", "--test and --reference-model"),
}
"""Scores of an attacker, and what each needs."""
SHOTS = (5, 10, 25)
PART_TITLES = {"probability": "probability", "rouge_l": "ROUGE-L", "truth_ratio": "truth ratio"}
PARTS = tuple(PART_TITLES)
UTILITY_SETS = {"retain": "retained records", "real_authors": "real authors", "world_facts": "world facts"}
_FORGOTTEN, _OTHER = "the forgotten records", "paraphrased questions (a column of the list, or --suite)"
_GENERATE = "--generate"


def _of(prefix: str, whose: str, needs: str, better: str) -> dict[str, Definition]:
    made = {
        f"{prefix}.{name}": Definition(f"{title}, {whose}", text, better, needs)  # type: ignore[arg-type]
        for name, (title, text) in MEASURES.items()
    }
    if prefix in ("test", "retain"):  # the likelier kept answers are the better
        made[f"{prefix}.loss"] = Definition(f"loss, {whose}", LOSS, "lower", needs)
    return made


def _drops(prefix: str, whose: str, needs: str) -> dict[str, Definition]:
    return {
        f"{prefix}.{name}_drop": Definition(
            f"fall of {MEASURES[name][0]}, {whose}",
            f"{MEASURES[name][0]} before minus after, of the same records",
            "lower",
            f"{needs} and the original",
        )
        for name in SHARES
    }


def _gaps(prefix: str, whose: str, paired: str, needs: str) -> dict[str, Definition]:
    return {
        f"{prefix}.{name}_gap": Definition(
            f"{MEASURES[name][0]} against {whose}",
            f"{MEASURES[name][0]} of the forgotten records less {paired}",
            "target",
            needs,
        )
        for name in SHARES
    }


def _membership() -> dict[str, Definition]:
    made = {}
    for name, (score, needs) in MEMBERSHIP.items():
        made[f"mia.{name}.auc"] = Definition(
            f"membership AUC by {name}",
            f"AUC of {score}, forgotten records against unseen ones; 0.5: not told apart, above: still known, below: conspicuously unknown",
            "target",
            needs,
        )
        made[f"mia.{name}.auc_two_sided"] = Definition(
            f"membership AUC by {name}, two-sided", "max(AUC, 1 − AUC): any difference counts", "lower", needs
        )
    return made


def _utility() -> dict[str, Definition]:
    texts = {
        "probability": "mean exp(−ℓ) of the true answers",
        "rouge_l": ROUGE,
        "truth_ratio": "mean max(0, 1 − R), R = exp(−mean ℓ of the wrong answers) / exp(−ℓ of the true one in other words)",
    }
    made = {}
    for name, whose in UTILITY_SETS.items():
        for part in PARTS:
            text = texts[part]
            if part == "probability" and name != "retain":
                text = "mean p / (p + Σ p of the wrong answers), p = exp(−ℓ)"
            needs = "--suite" + (f" and {_GENERATE}" if part == "rouge_l" else "")
            made[f"utility.{name}.{part}"] = Definition(f"{PART_TITLES[part]}, {whose}", text, "higher", needs)
    return made


RECALL: Mapping[str, Definition] = {
    **_of("forget", "forgotten records", _FORGOTTEN, "target"),
    "forget.rouge_l": Definition("ROUGE-L, forgotten records", ROUGE, "target", _GENERATE),
    "forget.truth_ratio": Definition(
        "truth ratio, forgotten records",
        "mean min(R, 1/R), R = exp(−mean ℓ of the wrong answers) / exp(−ℓ of the true one in other words); 1: the model does not know "
        "which is true",
        "target",
        "--suite with the forgotten records",
    ),
    **_of("paraphrased", "forgotten records by other questions", _OTHER, "target"),
    "paraphrased.rouge_l": Definition(
        "ROUGE-L, forgotten records by other questions", ROUGE, "target", f"{_OTHER} and {_GENERATE}"
    ),
    **_gaps("retrained", "the retrained model", "that of the same records under the retrained model", "--retrained"),
    **_gaps("unseen", "unseen records", "that of unseen records, under this model", "--test"),
    **_membership(),
    "forget_quality": Definition(
        "forget quality",
        "p-value of the two-sample Kolmogorov-Smirnov test that the truth ratios R of the forgotten records come from one distribution under "
        "this model and the retrained one",
        "higher",
        "--suite with the forgotten records and --retrained",
    ),
    "forget_quality.distance": Definition(
        "distance of truth ratios",
        "the Kolmogorov-Smirnov distance of these two: the largest difference of their distribution functions",
        "lower",
        "--suite with the forgotten records and --retrained",
    ),
    **{
        f"four_bit.{name}": Definition(
            f"{MEASURES[name][0]} in four bits, forgotten records",
            f"{MEASURES[name][1]}; with the weights of every linear layer but the head rounded to four bits (NF4, blocks of 64)",
            "target",
            "--four-bit",
        )
        for name in SHARES
    },
    **{
        f"relearned.k{k}": Definition(
            f"relearnt from {k} records",
            f"extraction strength of other forgotten records after what differs from the original was fine-tuned for 10 steps on {k} of them",
            "target",
            "--relearn and the original",
        )
        for k in SHOTS
    },
    **_of("test", "unseen records", "--test", "none"),
    "test.rouge_l": Definition("ROUGE-L, unseen records", ROUGE, "none", f"--test and {_GENERATE}"),
    **_drops("test", "unseen records", "--test"),
    "test.loss_rise": Definition(
        "rise of loss, unseen records", "ℓ after minus before, of the same records", "lower", "--test and the original"
    ),
    **_of("retain", "kept records", "--retain", "higher"),
    "retain.rouge_l": Definition("ROUGE-L, kept records", ROUGE, "higher", f"--retain and {_GENERATE}"),
    **_drops("retain", "kept records", "--retain"),
    "model_utility": Definition(
        "model utility",
        "harmonic mean of nine numbers: probability, ROUGE-L and truth ratio on retained records, real authors and world facts",
        "higher",
        f"--suite tofu:DIR and {_GENERATE}",
    ),
    "model_utility.without_rouge": Definition(
        "model utility without ROUGE-L", "the harmonic mean of the other six", "higher", "--suite tofu:DIR"
    ),
    **_utility(),
}


def range_of_recall(name: str) -> tuple[float, float]:
    """The least and the largest value that a metric of a language model can have."""
    if name.endswith("_rise"):
        return -math.inf, math.inf
    if name.endswith(".loss"):
        return 0.0, math.inf
    if name.endswith("auc_two_sided"):
        return 0.5, 1.0
    return (-1.0, 1.0) if name.endswith(("_drop", "_gap")) else (0.0, 1.0)


TWO_SIDED = {f"mia.{name}.auc": f"mia.{name}.auc_two_sided" for name in MEMBERSHIP}
"""Metrics that should be near a target, and the one that counts a deviation on either side."""
HARMLESS = {
    *TWO_SIDED.values(), *(f"{part}.{name}" for part in ("forget", "paraphrased", "four_bit") for name in SHARES),
    "forget.rouge_l", "paraphrased.rouge_l", *(f"relearned.k{k}" for k in SHOTS),
}  # fmt: skip
"""Metrics with a target of which nobody minds less: what cannot be read out at all is not read out."""
