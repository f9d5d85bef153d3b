"""Every metric's name, title, definition and direction, once: records, gates, tables and docs take them from here."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Definition:
    """What a metric is. ``needs`` is the data without which it is not measured."""

    title: str
    text: str
    better: Literal["lower", "higher", "target", "none"]
    needs: str


DEFINITIONS: dict[str, Definition] = {
    "forget.accuracy": Definition(
        "forget accuracy",
        "share of D_f predicted as its label (class scenario: as any forgotten class; mislabelled: as the wrong label)",
        "target",
        "the forget set",
    ),
    "forget.true_accuracy": Definition(
        "accuracy on true labels", "share of D_f predicted as its true_label", "higher", "a true_label column"
    ),
    "forget.confidence": Definition(
        "forget confidence",
        "mean softmax probability of the label (class scenario: of all forgotten classes)",
        "target",
        "the forget set",
    ),
    "forget.entropy": Definition(
        "forget entropy", "mean entropy of the softmax on D_f, in nats", "target", "the forget set"
    ),
    "forget.redirect_share": Definition(
        "redirect share",
        "largest share of D_f that is predicted as one and the same class other than its label",
        "none",
        "the forget set",
    ),
    "forget.over_unlearned": Definition(
        "over-unlearned share",
        "share of D_f whose confidence z_y − logsumexp of the others lies below the 1st percentile of class-matched test samples (1 % expected)",
        "target",
        "--test",
    ),
    "test.accuracy": Definition(
        "test accuracy", "accuracy on held-out samples (class scenario: of the kept classes)", "higher", "--test"
    ),
    "test.accuracy_drop": Definition(
        "test accuracy drop",
        "test accuracy before minus after, on the same samples",
        "lower",
        "--test and the original",
    ),
    "test.worst_class_drop": Definition(
        "worst class drop",
        "largest fall of accuracy on the test samples of one (kept) class",
        "lower",
        "--test and the original",
    ),
    "test.lost_to_forgotten": Definition(
        "kept samples lost",
        "share of test samples of kept classes newly predicted as a forgotten class",
        "lower",
        "--test and the original",
    ),
    "test_forgotten.accuracy": Definition(
        "test accuracy, forgotten classes",
        "share of the test samples of the forgotten classes predicted as any of them",
        "target",
        "--test",
    ),
    "test_matched.accuracy": Definition(
        "class-matched test accuracy",
        "test accuracy weighted by the classes' shares in D_f: what unseen samples like D_f reach",
        "none",
        "--test",
    ),
    "mask_bound.test": Definition(
        "mask bound, test",
        "test accuracy on kept classes of the original with the forgotten outputs masked",
        "none",
        "--test and the original",
    ),
    "mask_bound.retain": Definition(
        "mask bound, retain",
        "retain accuracy of the original with the forgotten outputs masked",
        "none",
        "--retain and the original",
    ),
    "mia.auc": Definition(
        "membership AUC",
        "AUC of D_f against class-matched test samples on z_y − logsumexp of the others; 0.5: alike, above: remembered, below: over-unlearned",
        "target",
        "--test",
    ),
    "mia.auc_two_sided": Definition(
        "membership AUC, two-sided", "max(AUC, 1 − AUC): any difference counts", "lower", "--test"
    ),
    "mia.ks": Definition(
        "membership KS",
        "Kolmogorov-Smirnov distance between the confidences of D_f and of class-matched test samples",
        "lower",
        "--test",
    ),
    "mia.tpr_at_1pct_fpr": Definition(
        "TPR at 1 % FPR",
        "largest of both tails: share of D_f beyond the threshold that 1 % of class-matched test samples pass",
        "target",
        "--test and n ≥ 300",
    ),
    "update_leak.auc": Definition(
        "update leak",
        "AUC of D_f against class-matched test samples on the fall of confidence from before to after",
        "lower",
        "--test and the original",
    ),
    "retain.accuracy": Definition(
        "retain accuracy", "accuracy on the training samples that stay", "higher", "--retain"
    ),
    "retain.accuracy_drop": Definition(
        "retain accuracy drop",
        "retain accuracy before minus after, on the same samples",
        "lower",
        "--retain and the original",
    ),
    "retain_mia.auc": Definition(
        "retain against test AUC",
        "the same AUC with retain samples in place of D_f: what membership looks like for samples that stay",
        "none",
        "--retain and --test",
    ),
    "recovery.k1": Definition(
        "recovery from 1 shot",
        "share of the other forget samples predicted rightly once the mean feature of 1 is put back as the class's row",
        "none",
        "the forget set, class scenario",
    ),
    "recovery.k5": Definition(
        "recovery from 5 shots", "the same from 5 samples", "none", "the forget set, class scenario"
    ),
    "recovery.k10": Definition(
        "recovery from 10 shots", "the same from 10 samples", "none", "the forget set, class scenario"
    ),
    "probe.accuracy": Definition(
        "linear probe",
        "accuracy of a fresh linear classifier on the features: on test samples of the forgotten classes, trained on D_f and half of "
        "the kept test samples (class scenario); on D_f, trained on half of test (otherwise)",
        "none",
        "--test",
    ),
    "features.drift": Definition(
        "feature drift",
        "relative change of D_f's features, ‖h' − h‖ / ‖h‖; 0: they are as they were",
        "none",
        "the original",
    ),
}

NUMBERS = {"forget.entropy", "features.drift", "mia.ks"} | {name for name in DEFINITIONS if ".auc" in name}
"""Metrics shown as plain numbers; the others are shares, shown in percent and gated as fractions."""
