"""Features from a file in place of samples: whether they are this model's, and what a forget set made of them is."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

from imu_cli.errors import ImuError, RefusedError
from imu_cli.models.head import Head
from imu_cli.models.replay import replay_error, tolerance_in
from imu_cli.samples.forget import ForgetSet
from imu_cli.samples.packing import as_array
from imu_cli.samples.vectors import Vectors, logits_of


def head_hash(head: Head) -> str:
    """SHA-256 of W (c, d+1), float64, row-major."""
    return hashlib.sha256(head.matrix.cpu().contiguous().numpy().tobytes()).hexdigest()


def require(store: Vectors, head: Head, outside_sha256: str, note: Callable[[str], None]) -> Head:
    """The head, replayed, or a refusal of features that are another model's; ``note`` hears what the file does not tell.

    Raises:
        ImuError: another width, head or backbone.
        RefusedError: the head's own product with the first rows is not what the engine's model returned for them.
    """
    width = head.matrix.shape[1] - head.bias
    if store.width != width:
        raise ImuError(
            f"{store.shown}: has {store.width} features a row, the head {head.module} takes {width}; they are another model's"
        )
    if store.said["head"] != head.module:
        raise ImuError(
            f"{store.shown}: are what enters {store.said['head']!r}, the head is {head.module!r}; extract them for this one"
        )
    backbone = store.said.get("backbone_sha256")
    if backbone is None:
        note(f"{store.shown}: does not say which backbone made it, so that is not checked")
    elif backbone != outside_sha256:
        raise ImuError(
            f"{store.shown}: was made by another model: the tensors outside the head {head.module} are not the same (SHA-256 "
            f"{str(backbone)[:12]}…, here {outside_sha256[:12]}…); extract the features of this one (imu features)"
        )
    return _replay(store, head, note)


def _replay(store: Vectors, head: Head, note: Callable[[str], None]) -> Head:
    expected = logits_of(store)
    if (
        expected is None
        or expected.ndim != 2
        or expected.shape[1] != head.classes
        or len(expected) > store.entry.shape[0]
    ):
        note(f"{store.shown}: has no logits of its first rows, so that the head is not replayed")
        return head
    if store.said.get("head_sha256") != head_hash(head):  # an unlearned head gives other logits, and should
        return head
    precision = str(store.said.get("precision"))
    allowed = tolerance_in(precision)
    error = replay_error(store.mapped()[: len(expected)], head.matrix, head.bias, expected)
    if not error <= allowed:
        raise RefusedError(
            f"{store.shown}: the replay check failed, h Wᵀ + b differs from the logits in it by {error:.2g} of the largest "
            f"(allowed: {allowed:g}); these features are not what enters {head.module}"
        )
    return replace(head, replay_error=max(head.replay_error, error))


def settled(forget: ForgetSet, store: Vectors) -> ForgetSet:
    """A forget set of features with what the file knows of it: weights, true labels, and whether classes are whole.

    A file of forget samples alone holds every row of its labels, which says nothing: only one of a whole data set, or
    the list that it was made from, tells.
    """
    rows = as_array(forget.samples.positions)
    every = len(rows) == store.entry.shape[0]
    if store.said.get("complete") is not True:
        whole = store.said.get("whole_classes") if every else None
        forget = replace(forget, whole_classes=whole if isinstance(whole, bool) else None)
    if forget.weights is None and store.weights is not None:
        forget = replace(forget, weights=tuple(store.weights[rows].tolist()))
    if forget.true_labels is None and store.true_labels is not None:
        forget = replace(forget, true_labels=tuple(store.true_labels[rows].tolist()))
    return forget
