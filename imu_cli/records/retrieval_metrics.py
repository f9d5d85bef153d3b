"""Every metric of an embedding model: how well people are found, and whether forgotten people are told from unseen ones."""

from collections.abc import Mapping

from imu_cli.records.definition import Definition

_PAIRS = "two images of one person on two cameras (any two where cameras are not known)"

RETRIEVAL: Mapping[str, Definition] = {
    "people.auc": Definition(
        "membership AUC, people",
        f"AUC of the cosine similarity of {_PAIRS}, forgotten people against unseen people; 0.5: as alike as unseen people's, above: "
        "still drawn together, below: conspicuously apart. Some people are easier than others for any model: the target is the retrained "
        "model's on the same people, else the reference model's, else 0.5",
        "target",
        "--test",
    ),
    "people.auc_two_sided": Definition(
        "membership AUC, people, two-sided", "max(AUC, 1 − AUC): any difference counts", "lower", "--test"
    ),
    "people.auc_drop": Definition(
        "fall of the membership AUC",
        "AUC before minus after, of the same people in every draw",
        "none",
        "--test and the original",
    ),
    "forget.similarity": Definition(
        "similarity, forgotten people",
        f"mean cosine similarity of {_PAIRS}, of forgotten people",
        "target",
        "the forget set",
    ),
    "forget.map": Definition(
        "mAP, forgotten people",
        "mean average precision of the forgotten people's images as queries, single query, the same person on the same camera left out, "
        "in a gallery of all training images that are given",
        "target",
        "the forget set",
    ),
    "forget.rank1": Definition(
        "rank 1, forgotten people",
        "share of these queries whose most similar image shows the person",
        "target",
        "the forget set",
    ),
    "test.map": Definition(
        "mAP, unseen people",
        "mean average precision of unseen people's queries in their own gallery",
        "higher",
        "--test",
    ),
    "test.map_drop": Definition(
        "mAP drop, unseen people", "mAP before minus after, of the same queries", "lower", "--test and the original"
    ),
    "test.rank1": Definition(
        "rank 1, unseen people",
        "share of unseen people's queries whose most similar image shows the person",
        "higher",
        "--test",
    ),
    "test.rank5": Definition(
        "rank 5, unseen people",
        "share of these queries with the person among the five most similar images",
        "higher",
        "--test",
    ),
    "test.rank10": Definition(
        "rank 10, unseen people",
        "share of these queries with the person among the ten most similar images",
        "higher",
        "--test",
    ),
    "test.rank1_drop": Definition(
        "rank 1 drop, unseen people",
        "rank 1 before minus after, of the same queries",
        "lower",
        "--test and the original",
    ),
    "test.similarity": Definition(
        "similarity, unseen people", f"mean cosine similarity of {_PAIRS}, of unseen people", "none", "--test"
    ),
    "retain.map": Definition(
        "mAP, kept people",
        "mean average precision of the other training people's queries in the gallery of the training images",
        "higher",
        "--data or --retain with other people",
    ),
    "retain.map_drop": Definition(
        "mAP drop, kept people",
        "mAP before minus after, of the same queries",
        "lower",
        "--data or --retain with other people, and the original",
    ),
    "retain.rank1": Definition(
        "rank 1, kept people",
        "share of the other training people's queries whose most similar image shows the person",
        "higher",
        "--data or --retain with other people",
    ),
    "retain.similarity": Definition(
        "similarity, kept people",
        f"mean cosine similarity of {_PAIRS}, of other training people",
        "none",
        "--data or --retain with other people",
    ),
    "retain_people.auc": Definition(
        "kept against unseen people, AUC",
        "the membership AUC with the other training people in place of the forgotten: what it looks like for people who stay",
        "none",
        "--test, and --data or --retain with other people",
    ),
    "retrained.people.auc": Definition(
        "membership AUC of the retrained model",
        "the same people's AUC under the retrained model",
        "none",
        "--retrained and --test",
    ),
    "retrained.auc_gap": Definition(
        "AUC gap to the retrained model",
        "AUC less that under the retrained model, of the same people in every draw",
        "target",
        "--retrained and --test",
    ),
    "retrained.map.forget": Definition(
        "mAP of the retrained model, forgotten people", "forget.map under the retrained model", "none", "--retrained"
    ),
    "retrained.map.test": Definition(
        "mAP of the retrained model, unseen people",
        "test.map under the retrained model",
        "none",
        "--retrained and --test",
    ),
    "reference.people.auc": Definition(
        "membership AUC of the reference model",
        "the same people's AUC under the weights from before any of them was seen",
        "none",
        "--reference-model and --test",
    ),
    "reference.auc_gap": Definition(
        "AUC gap to the reference model",
        "AUC less that under the reference model, of the same people in every draw",
        "target",
        "--reference-model and --test",
    ),
    "reference.map.forget": Definition(
        "mAP of the reference model, forgotten people",
        "forget.map under the reference model",
        "none",
        "--reference-model",
    ),
    "drift.forget": Definition(
        "drift, forgotten people",
        "mean 1 − cos of each image's embedding before and after, on D_f",
        "none",
        "the original",
    ),
    "drift.test": Definition(
        "drift, unseen people",
        "mean 1 − cos of each image's embedding before and after, on test",
        "none",
        "--test and the original",
    ),
}

RETRIEVAL_NUMBERS = {name for name in RETRIEVAL if ".map" not in name and ".rank" not in name}
"""Shown as plain numbers; mAP and ranks are shares."""
