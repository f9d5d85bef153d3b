"""Samples that come out of order: where their features go."""

import torch
from torch import Tensor, nn

from imu_cli.features.extraction import Seen, gather, in_order
from imu_cli.models.batches import call, count, first, halves
from imu_cli.models.head import Head

HEAD = Head("fc", torch.zeros(2, 4, dtype=torch.float64), ("fc.weight", "fc.bias"), "F32", "F32", "", 0.0)
ROWS = torch.arange(21.0).reshape(7, 3)
PLACES = [[2, 0], [1, 3], range(4, 6), [6]]


def seen() -> list[Seen]:
    """A pass over seven samples of which the first four come out of order."""
    return [Seen(places, ROWS[list(places)], torch.zeros(len(places), 2), HEAD) for places in PLACES]


def test_features_go_to_their_places() -> None:
    """Whatever order the batches hold them in, row i is sample i, in either form."""
    assert torch.equal(gather(seen(), 7, HEAD)[:, :3], ROWS.double())
    assert torch.equal(gather(seen(), 7, HEAD, narrow=True), ROWS)


def test_features_are_handed_on_in_order() -> None:
    """What comes too early waits for what is before it; what is in order is handed on as it is."""
    pieces = list(in_order(seen()))
    assert [len(piece) for piece in pieces] == [1, 3, 2, 1]
    assert torch.equal(torch.cat(pieces), ROWS)


class Named(nn.Module):
    """Takes its arguments by name."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Their product."""
        return ids * mask


def test_a_batch_of_named_tensors_is_one_batch() -> None:
    """It is counted, cut and halved along its samples, and the model gets it by name."""
    batch = {"mask": torch.ones(5, 2), "ids": torch.arange(10.0).reshape(5, 2)}
    made = call(Named(), batch)
    assert count(batch) == 5
    assert count(first(batch, 2)) == 2
    assert [count(half) for half in halves(batch)] == [3, 2]
    assert torch.equal(torch.cat([call(Named(), half) for half in halves(batch)]), made)
