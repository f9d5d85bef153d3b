"""Every metric's name, title, definition and direction, once: records, gates, tables and docs take them from here."""

import math

from imu_cli.records.definition import Definition
from imu_cli.records.recall_metrics import HARMLESS, RECALL, TWO_SIDED, range_of_recall
from imu_cli.records.retrieval_metrics import RETRIEVAL, RETRIEVAL_NUMBERS

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
    "rmia.auc": Definition(
        "RMIA against retrained heads",
        "AUC of D_f against class-matched test samples on RMIA's likelihood ratio, each sample's probability over that of heads "
        "fitted on retain samples alone; 0.5: alike",
        "target",
        "--test, --retain and the original, head-only change",
    ),
    "head_gap.forget": Definition(
        "gap to a retrained head, D_f",
        "forget accuracy less that of a head fitted on retain features alone (which the same backbone computed), less the same "
        "difference between the original and a head fitted with D_f as well",
        "target",
        "--retain and the original, head-only change",
    ),
    "head_gap.test": Definition(
        "gap to a retrained head, test",
        "the same on (kept classes of) test",
        "target",
        "--test, --retain and the original, head-only change",
    ),
    "head_gap.retain": Definition(
        "gap to a retrained head, retain",
        "the same on retain samples",
        "target",
        "--retain and the original, head-only change",
    ),
    "retrained.accuracy_gap.forget": Definition(
        "gap to the retrained model, D_f",
        "forget accuracy less that of the retrained model, counted as forget.accuracy is",
        "target",
        "--retrained",
    ),
    "retrained.accuracy_gap.test": Definition(
        "gap to the retrained model, test",
        "test accuracy (kept classes) less that of the retrained model",
        "target",
        "--retrained and --test",
    ),
    "retrained.accuracy_gap.retain": Definition(
        "gap to the retrained model, retain",
        "retain accuracy less that of the retrained model",
        "target",
        "--retrained and --retain",
    ),
    "retrained.average_gap": Definition(
        "average gap", "mean of the absolute accuracy gaps on the splits given", "lower", "--retrained"
    ),
    "retrained.churn": Definition(
        "churn on D_f", "share of D_f that the model and the retrained one predict differently", "lower", "--retrained"
    ),
    "retrained.churn.test": Definition(
        "churn on test", "share of test samples that both predict differently", "lower", "--retrained and --test"
    ),
    "retrained.kl": Definition(
        "KL to the retrained model",
        "mean over D_f of KL(retrained ‖ model) of the softmax outputs, in nats",
        "lower",
        "--retrained",
    ),
    "retrained.js": Definition(
        "JS to the retrained model",
        "mean over D_f of the Jensen-Shannon divergence of the softmax outputs, in nats, at most log 2",
        "lower",
        "--retrained",
    ),
    "retrained.tv": Definition(
        "class histogram, TV",
        "total variation distance between the histograms of predicted classes on D_f",
        "lower",
        "--retrained",
    ),
    "retrained.closer": Definition(
        "nearer to retrained than to original",
        "share of D_f whose output is nearer, in JS, to the retrained model's than to the original's",
        "higher",
        "--retrained and the original",
    ),
    "shadow.auc": Definition(
        "shadow-head attack, AUC",
        "AUC of D_f against class-matched test samples on each sample's likelihood ratio (trained on and unlearned, or never "
        "seen) under shadow heads",
        "target",
        "--attack shadow-heads",
    ),
    "shadow.tpr_at_1pct_fpr": Definition(
        "shadow-head attack, TPR",
        "share of D_f beyond the ratio that 1 % of never-seen samples pass in the shadows; target: the share of test samples "
        "that pass it with the model itself",
        "target",
        "--attack shadow-heads",
    ),
    "shadow.auc_retrained_head": Definition(
        "shadow-head attack on a retrained head",
        "the same AUC for a head fitted on retain features alone: what the attack says where there is nothing to find",
        "none",
        "--attack shadow-heads",
    ),
    "compat.svc_correctness": Definition(
        "SVC attack: correctness, as published",
        "share of D_f that an SVM fitted on retain against test calls non-member, by whether it is right; as published",
        "none",
        "--compat, --test and --retain",
    ),
    "compat.svc_correctness_fixed": Definition(
        "SVC attack: correctness, corrected",
        "the same on class-matched disjoint pools and float64 scores; target: the share of unseen samples called non-member",
        "target",
        "--compat, --test and --retain",
    ),
    "compat.svc_confidence": Definition(
        "SVC attack: confidence, as published",
        "share of D_f that an SVM fitted on retain against test calls non-member, by the probability of the label; as published",
        "none",
        "--compat, --test and --retain",
    ),
    "compat.svc_confidence_fixed": Definition(
        "SVC attack: confidence, corrected",
        "the same on class-matched disjoint pools and float64 scores; target: the share of unseen samples called non-member",
        "target",
        "--compat, --test and --retain",
    ),
    "compat.svc_entropy": Definition(
        "SVC attack: entropy, as published",
        "share of D_f that an SVM fitted on retain against test calls non-member, by entropy; as published",
        "none",
        "--compat, --test and --retain",
    ),
    "compat.svc_entropy_fixed": Definition(
        "SVC attack: entropy, corrected",
        "the same on class-matched disjoint pools and float64 scores; target: the share of unseen samples called non-member",
        "target",
        "--compat, --test and --retain",
    ),
    "compat.svc_m_entropy": Definition(
        "SVC attack: m_entropy, as published",
        "share of D_f that an SVM fitted on retain against test calls non-member, by modified entropy as "
        "published, which does not depend on the labels",
        "none",
        "--compat, --test and --retain",
    ),
    "compat.svc_m_entropy_fixed": Definition(
        "SVC attack: m_entropy, corrected",
        "the same on class-matched disjoint pools and float64 scores; target: the share of unseen samples called non-member",
        "target",
        "--compat, --test and --retain",
    ),
    "compat.svc_prob": Definition(
        "SVC attack: prob, as published",
        "share of D_f that an SVM fitted on retain against test calls non-member, by all probabilities; as published",
        "none",
        "--compat, --test and --retain",
    ),
    "compat.svc_prob_fixed": Definition(
        "SVC attack: prob, corrected",
        "the same on class-matched disjoint pools and float64 scores; target: the share of unseen samples called non-member",
        "target",
        "--compat, --test and --retain",
    ),
    "compat.w1_class_index": Definition(
        "W1 on class indices",
        "Wasserstein distance between the predicted class numbers of the model and the retrained one on test; it takes class "
        "numbers for quantities",
        "none",
        "--compat, --test and --retrained",
    ),
    "compat.neurips2023_accuracy": Definition(
        "NeurIPS 2023 attack",
        "cross-validated accuracy of logistic regression on the loss, D_f against as many test samples; 0.5 is chance",
        "none",
        "--compat and --test",
    ),
    "recovery.k1": Definition(
        "recovery from 1 shot",
        "share of the other forget samples predicted rightly once the mean feature of 1 is put back as the class's row, with the "
        "bias at which it takes as many kept test samples as the original's row did",
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
    "cka.forget": Definition(
        "similarity of features, D_f",
        "debiased linear CKA of D_f's features with the original's; 1: alike up to rotation and scale; target: the retrained "
        "model's with the original",
        "target",
        "the original",
    ),
    "cka.test": Definition(
        "similarity of features, test",
        "the same on test samples (of kept classes)",
        "target",
        "--test and the original",
    ),
    "retrained.cka.forget": Definition(
        "similarity to the retrained model's features, D_f",
        "debiased linear CKA of D_f's features with the retrained model's",
        "higher",
        "--retrained",
    ),
    "retrained.cka.test": Definition(
        "similarity to the retrained model's features, test",
        "the same on test samples (of kept classes)",
        "higher",
        "--retrained and --test",
    ),
    "feature_mia.auc": Definition(
        "attack on features, AUC",
        "AUC of D_f against class-matched test samples by logistic regression on features, each sample scored by a fit that did "
        "not see it; 0.5: nothing found; target: the retrained model's, 0.5 without it",
        "target",
        "--test",
    ),
    "feature_mia.auc_nearest": Definition(
        "attack on features, nearest neighbour",
        "AUC, whichever way it is turned, of the distance to the nearest unseen sample of the class, D_f against class-matched test",
        "target",
        "--test",
    ),
    "retrained.idi": Definition(
        "information difference index",
        "(I − I of the retrained model) / (I of the original − I of the retrained model), I: nats that the features at the head's "
        "input tell a linear classifier about who belongs to D_f; 0: as after retraining, 1: nothing went",
        "target",
        "--retrained, the original and --test or --retain",
    ),
    "relearn.k5": Definition(
        "relearnt from 5 samples",
        "share of other forget samples that come back when what differs from the original is fine-tuned for 10 steps on 5 (class "
        "scenario: on 5 of each forgotten class and twice as many kept test samples, counted where the class takes as many kept test "
        "samples as the original's did)",
        "target",
        "--relearn and the original (class scenario: and --test)",
    ),
    "relearn.k10": Definition(
        "relearnt from 10 samples",
        "the same from 10",
        "target",
        "--relearn and the original (class scenario: and --test)",
    ),
    "relearn.k25": Definition(
        "relearnt from 25 samples",
        "the same from 25",
        "target",
        "--relearn and the original (class scenario: and --test)",
    ),
    "relearn.lead": Definition(
        "lead over never-seen samples",
        "share of forget samples that come back less that of class-matched test samples after the same fine-tuning on such; target: "
        "the retrained model's, 0 without it",
        "target",
        "--relearn, --test and the original",
    ),
}

EVERY: dict[str, Definition] = {**DEFINITIONS, **RETRIEVAL, **RECALL}
"""Of classifiers, of embedding models and of language models."""

NUMBERS = {
    "forget.entropy", "features.drift", "mia.ks", "retrained.kl", "retrained.js", "retrained.idi", "compat.w1_class_index",
    *RETRIEVAL_NUMBERS, *RECALL, *(name for name in DEFINITIONS if ".auc" in name or "cka." in name),
}  # fmt: skip
"""Metrics shown as plain numbers; the others are shares, shown in percent and gated as fractions."""

BOTH_SIDES = {
    "mia.auc": "mia.auc_two_sided",
    "forget.accuracy": "mia.auc_two_sided",
    "forget.confidence": "mia.auc_two_sided",
    "retrained.accuracy_gap.forget": "retrained.average_gap",
    "retrained.accuracy_gap.test": "retrained.average_gap",
    "retrained.accuracy_gap.retain": "retrained.average_gap",
    "people.auc": "people.auc_two_sided",
    **TWO_SIDED,
}
"""Metrics that should be near a target, and the one that counts a deviation on either side."""

SIDE_IS_HARMLESS = {
    "forget.over_unlearned", "feature_mia.auc", "feature_mia.auc_nearest", "mia.auc_two_sided", "people.auc_two_sided",
    "mia.tpr_at_1pct_fpr", "shadow.tpr_at_1pct_fpr",
    *(name for name in DEFINITIONS if name.startswith("compat.")), *HARMLESS,
}  # fmt: skip
"""Metrics with a target that nobody minds being missed on one side, or that are not to be gated on."""


def range_of(name: str) -> tuple[float, float]:
    """The least and the largest value that a metric can have."""
    if name in RECALL:
        return range_of_recall(name)
    if name in ("mia.auc_two_sided", "feature_mia.auc_nearest", "people.auc_two_sided"):
        return 0.5, 1.0
    if name == "retrained.idi":
        return -math.inf, math.inf
    if "cka." in name or name == "relearn.lead":
        return -1.0, 1.0
    if name == "retrained.js":
        return 0.0, math.log(2)
    if name.endswith((".similarity", ".auc_drop", ".auc_gap")):
        return -1.0, 1.0
    if name.startswith("drift."):
        return 0.0, 2.0
    if name in NUMBERS and not (".auc" in name or name == "mia.ks"):
        return 0.0, math.inf
    return (-1.0 if name.endswith("_drop") or "_gap." in name else 0.0), 1.0
