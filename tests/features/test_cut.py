"""Features at a cut: the part above gives the whole network's logits and gradients from them, or the whole network runs."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from imu_cli.commands import scope
from imu_cli.errors import ImuError
from imu_cli.features import cut
from imu_cli.features.cut import Blend, Cut, Kept, Upper
from imu_cli.models.batches import Batch, call, each, first
from imu_cli.models.digits import digits_net
from imu_cli.models.head import logits_of

pytestmark = pytest.mark.usefixtures("one_thread")

N = 9
CPU = torch.device("cpu")
PAD = 3
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-5}
"""Batches of other sizes, and texts padded to other lengths, sum in another order."""
SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50,
    "num_labels": 4, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


class Step:
    """An input step over tensors that are there: images, or texts that each batch pads to its own longest, two by two by length."""

    window = 1

    def __init__(self, data: Batch, left: bool = False) -> None:
        self.data, self.left, self.padding = data, left, PAD

    def batches(
        self, samples: Any, size: int, rows: Any, *, beside: bool = False, window: int | None = None
    ) -> Iterator[Any]:
        """Places and batches, in an order that is not that of the rows."""
        for places in torch.tensor(list(rows)).flip(0).split(size):
            yield places.tolist(), self.of(places)

    def of(self, rows: Tensor) -> Batch:
        """These rows, no longer than they have to be."""
        made = each(self.data, lambda tensor: tensor[rows])
        if isinstance(made, Tensor):
            return made
        longest = int(made["attention_mask"].sum(dim=1).max())
        return each(made, lambda tensor: tensor[:, -longest:] if self.left else tensor[:, :longest])

    def sentences(self, samples: Any) -> None:
        """None of the samples is a word."""

    def scale(self, batch: Batch) -> Batch:
        """Nothing is left to do."""
        return batch


def texts(left: bool = False) -> Batch:
    """Tokens (9, 9) of texts of three to nine, padded with another token than 0."""
    torch.manual_seed(1)
    lengths = torch.tensor([3, 9, 5, 4, 8, 3, 7, 6, 9])
    mask = (torch.arange(9) < lengths[:, None]).long()
    mask = mask.flip(1) if left else mask
    ids = torch.randint(4, 50, (N, 9))
    return {"input_ids": torch.where(mask.bool(), ids, PAD), "attention_mask": mask}


def images(side: int, channels: int = 3) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(N, channels, side, side)


def language(name: str, **more: Any) -> nn.Module:
    """A model of transformers for texts, with random weights."""
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **more})
    model: nn.Module = getattr(transformers, f"{name}ForSequenceClassification")(config)
    return model


def upper_of(model: nn.Module, head: str, data: Batch, moving: list[str], left: bool = False) -> Upper:
    """The part of a model from the cut on."""
    step = Step(data, left)
    probe = step.of(torch.arange(3))
    found = cut.find(model, probe, moving)
    more: Any = step
    return Upper(model, head, found, more, CPU, contextlib.nullcontext, probe)


def keep(upper: Upper, most: int = 2**30, folder: Callable[[], Path] = Path) -> Kept:
    """What is kept of all nine, two at a time."""
    heard: list[int] = []
    samples: Any = range(N)
    made = upper.keep(samples, 2, most, folder, heard.append)
    assert sum(heard) == N
    return made


class Skips(nn.Module):
    """Own code: ``far`` says what is added above: the input, the first layer's output, or nothing."""

    def __init__(self, far: str) -> None:
        super().__init__()
        self.far, self.a, self.b, self.z = far, nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h1 = self.a(x).relu()
        h2 = self.b(h1).relu()
        made: Tensor = self.z(h2 + {"x": x, "a": h1, "b": 0}[self.far])
        return made


class Shared(nn.Module):
    """One layer that runs twice, and another between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.z = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.z(self.a(self.b(self.a(x).relu()).relu()).relu())
        return made


class Choosy(nn.Module):
    """Own code that refuses zeros, and batches of zeros are what it would see above a cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.z = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        if not bool(x.any()):
            raise ValueError("an empty image")
        made: Tensor = self.z(self.a(x))
        return made


class Pair(nn.Module):
    """Layers that return two things, and a number that is none."""

    class Two(nn.Module):
        """The layer."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
            h = self.inner(x)
            return h, {"gate": h.sigmoid(), "level": 2}

    def __init__(self) -> None:
        super().__init__()
        self.two, self.z = Pair.Two(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h, more = self.two(x)
        made: Tensor = self.z(h * more["gate"] ** more["level"])
        return made


class LastToken(nn.Module):
    """A language model whose head sees the last token of texts that are padded on the left."""

    def __init__(self) -> None:
        super().__init__()
        self.net = transformers.LlamaModel(transformers.LlamaConfig(**SMALL, num_key_value_heads=2))
        self.z = nn.Linear(16, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        made: Tensor = self.z(self.net(input_ids, attention_mask=attention_mask).last_hidden_state[:, -1])
        return made


def vectors() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(N, 6)


def convnext() -> nn.Module:
    made: nn.Module = timm.create_model("test_convnext", num_classes=4)
    return made


def vit() -> nn.Module:
    made: nn.Module = timm.create_model("test_vit", num_classes=4, img_size=32)
    return made


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch], str, list[str], str]] = {
    "the demo's": (digits_net, lambda: images(8, 1), "8", ["6", "8"], "5"),
    "its head alone": (digits_net, lambda: images(8, 1), "8", ["8"], "7"),
    "its first layer: all runs": (digits_net, lambda: images(8, 1), "8", ["0", "8"], ""),
    "a ViT": (vit, lambda: images(32), "head", ["blocks.5.attn.qkv", "head"], "blocks.4"),
    "a ConvNeXt": (convnext, lambda: images(64), "head.fc", ["stages.3.blocks.0.conv_dw", "head.fc"], "stages.3.downsample"),
    "added above: the input": (lambda: Skips("x"), vectors, "z", ["z"], ""),
    "added above: the first layer's": (lambda: Skips("a"), vectors, "z", ["z"], "a"),
    "nothing is added": (lambda: Skips("b"), vectors, "z", ["z"], "b"),
    "a layer that runs twice does not move": (Shared, vectors, "z", ["z"], "b"),
    "a layer that runs twice moves": (Shared, vectors, "z", ["a", "z"], ""),
    "own code that looks at its input": (Choosy, vectors, "z", ["z"], ""),
    "several things at the cut": (Pair, vectors, "z", ["z"], "two"),
    "BERT": (
        lambda: language("Bert"), texts, "classifier", ["bert.encoder.layer.3.output.dense", "classifier"],
        "bert.encoder.layer.3.attention"),
    "BERT's last layer": (
        lambda: language("Bert"), texts, "classifier", ["bert.encoder.layer.3.attention.self.query", "classifier"],
        "bert.encoder.layer.2"),
    "BERT's embeddings: all runs": (
        lambda: language("Bert"), texts, "classifier", ["bert.embeddings.word_embeddings", "classifier"], ""),
    "a language model, padded on the left": (
        LastToken, lambda: texts(True), "z", ["net.layers.3.input_layernorm", "net.norm", "z"], "net.layers.2"),
    "Llama, whose head sees every token, padded on the left": (
        lambda: language("Llama", num_key_value_heads=2), lambda: texts(True), "score",
        ["model.layers.3.input_layernorm", "score"], "model.layers.2"),
    "the same on the right": (
        lambda: language("Llama", num_key_value_heads=2), texts, "score",
        ["model.layers.3.input_layernorm", "score"], "model.layers.2"),
    "its norm alone, padded on the left": (LastToken, lambda: texts(True), "z", ["net.norm"], "net.layers.3"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_part_above_is_the_network(name: str) -> None:
    """Logits, what enters the head, and gradients are those of the whole network, but for rounding, whatever is kept."""
    build, made, head, moving, expected = CASES[name]
    torch.manual_seed(0)
    model, data, left = build().eval(), made(), "left" in name
    upper = upper_of(model, head, data, moving, left)
    assert upper.cut.module == expected
    kept = keep(upper)
    assert len(kept) == N
    rows = torch.tensor([4, 0, 8, 0])
    parameters = [parameter for path in moving for parameter in model.get_submodule(path).parameters(recurse=False)]
    seen: list[Tensor] = []
    handle = model.get_submodule(head).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    wanted = logits_of(call(model, Step(data, left).of(rows)))
    handle.remove()
    expected_gradients = torch.autograd.grad(wanted.square().sum(), parameters)
    features, logits = upper(kept, rows)
    torch.testing.assert_close(logits, wanted, **CLOSE)
    if seen[0].ndim == 2:
        torch.testing.assert_close(features, seen[0], **CLOSE)
    for found, one in zip(torch.autograd.grad(logits.square().sum(), parameters), expected_gradients, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


def test_it_follows_weights_that_move() -> None:
    """After a step of a moving layer the part above gives what the whole network gives then."""
    torch.manual_seed(0)
    model, data = digits_net().eval(), images(8, 1)
    upper = upper_of(model, "8", data, ["6", "8"])
    kept = keep(upper)
    with torch.no_grad():
        model[6].weight.mul_(1.5)  # type: ignore[union-attr, operator]
        torch.testing.assert_close(upper(kept, torch.arange(N))[1], model(data), **CLOSE)


def test_a_single_sample_is_enough_to_find_the_cut() -> None:
    """One forget sample does not mean that the whole network runs."""
    model = digits_net().eval()
    assert cut.find(model, images(8, 1)[:1], ["8"]).module == "7"
    assert cut.find(language("Bert").eval(), first(texts(), 1), ["classifier"]).module


@pytest.mark.parametrize("name", ["the demo's", "its first layer: all runs", "several things at the cut"])
def test_what_does_not_fit_is_streamed_to_a_file(name: str, tmp_path: Path) -> None:
    """The same bits from a file as from memory, and nothing of it is left in the folder; no file where it fits."""
    build, made, head, moving, _ = CASES[name]
    torch.manual_seed(0)
    model, data = build().eval(), made()
    upper = upper_of(model, head, data, moving)

    def refused() -> Path:
        raise AssertionError("it fits into memory")

    in_memory = keep(upper, folder=refused)
    asked: list[int] = []

    def folder() -> Path:
        asked.append(1)
        return tmp_path

    in_file = keep(upper, in_memory.bytes - 1, folder)
    assert asked == [1]
    assert in_file.bytes == in_memory.bytes
    assert list(tmp_path.iterdir()) == []
    rows = torch.tensor([8, 3, 3])
    with torch.no_grad():
        for one, other in zip(upper(in_file, rows), upper(in_memory, rows), strict=True):
            assert torch.equal(one, other)


def test_mixing_at_the_cut() -> None:
    """With share 1 a sample stays, with 0 it is the other; at the input a mix is the image between both."""
    torch.manual_seed(0)
    model, data = digits_net().eval(), images(8, 1)
    mine, theirs = torch.tensor([0, 1, 2]), torch.tensor([5, 6, 7])
    for moving in (["8"], ["0", "8"]):
        upper = upper_of(model, "8", data, moving)
        assert upper.blends
        kept = keep(upper)
        with torch.no_grad():
            torch.testing.assert_close(upper(kept, mine, Blend(theirs, torch.ones(3)))[1], model(data[mine]), **CLOSE)
            torch.testing.assert_close(
                upper(kept, mine, Blend(theirs, torch.zeros(3)))[1], model(data[theirs]), **CLOSE
            )
    share = torch.tensor([0.25, 0.5, 1.0])
    mixed = share.view(-1, 1, 1, 1) * data[mine] + (1 - share.view(-1, 1, 1, 1)) * data[theirs]
    with torch.no_grad():
        torch.testing.assert_close(upper(kept, mine, Blend(theirs, share))[1], model(mixed), **CLOSE)
    assert not upper_of(language("Bert").eval(), "classifier", texts(), ["classifier"]).blends


def forwards(model: nn.Module) -> list[str]:
    """Modules that have a forward of their own, or hooks."""
    return [
        path
        for path, module in model.named_modules()
        if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
    ]


def test_nothing_is_left_behind_by_an_exception() -> None:
    """Neither finding nor keeping nor running leaves hooks or replaced functions, also where a model's own code fails."""
    model, data = digits_net().eval(), images(8, 1)
    upper = upper_of(model, "8", data, ["6", "8"])
    kept = keep(upper)

    def fails(*_: object) -> None:
        raise RuntimeError("on the way")

    for layer, what in (("8", lambda: upper(kept, torch.arange(2))), ("0", lambda: keep(upper))):
        handle = model.get_submodule(layer).register_forward_hook(fails)
        with pytest.raises(RuntimeError, match="on the way"):
            what()
        handle.remove()
        assert forwards(model) == []
    cut.find(Choosy().eval(), vectors(), ["z"])
    with torch.no_grad():
        assert torch.equal(model(data), model(data))
        torch.testing.assert_close(upper(kept, torch.arange(N))[1], model(data), **CLOSE)


def test_a_forward_of_a_modules_own_comes_back() -> None:
    """Libraries replace a module's forward on the module itself; it is there again after the part above ran."""
    torch.manual_seed(0)
    model, data = digits_net().eval(), images(8, 1)
    own = model[0].forward

    def doubled(x: Tensor) -> Tensor:
        return 2 * own(x)  # type: ignore[operator, no-any-return]

    model[0].forward = doubled  # type: ignore[method-assign]
    with torch.no_grad():
        wanted = model(data)
        upper = upper_of(model, "8", data, ["8"])
        torch.testing.assert_close(upper(keep(upper), torch.arange(N))[1], wanted, **CLOSE)
        assert model[0].forward is doubled
        assert torch.equal(model(data), wanted)


def test_the_whole_network_is_a_cut_without_a_module() -> None:
    """What is kept there is what enters the network, byte for byte."""
    data = images(8, 1)
    upper = upper_of(digits_net().eval(), "8", data, ["0"])
    assert upper.cut == Cut()
    kept = keep(upper)
    assert kept.names == ["in"]
    assert torch.equal(kept.get("in", torch.arange(N), CPU, False)[0], data)


def test_texts_keep_their_own_length() -> None:
    """What is kept of a text are its own tokens, and not what pads it."""
    data = texts()
    upper = upper_of(language("Bert").eval(), "classifier", data, ["bert.encoder.layer.3.attention.self.query"])
    kept = keep(upper)
    assert isinstance(data, dict)
    tokens = int(data["attention_mask"].sum())
    assert kept.bytes == tokens * (8 + 8 + 16 * 4)
    made, mask = kept.get("in.input_ids", torch.tensor([0, 3]), CPU, True)
    assert mask is not None
    assert mask.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert torch.equal(made[0, 1:], data["input_ids"][0, :3])


class Pooled(nn.Module):
    """Texts of nine tokens, pooled to nine numbers below the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.below = Mean()
        self.head = nn.Linear(9, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        made: Tensor = self.head(self.below(input_ids, attention_mask))
        return made


class Mean(nn.Module):
    """The mean of a text's tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 9)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        made: Tensor = (self.table(ids) * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return made


def test_as_many_numbers_as_tokens_are_no_tokens() -> None:
    """A vector of a text is kept whole, whatever the length of the text."""
    torch.manual_seed(0)
    model, data = Pooled().eval(), texts()
    upper = upper_of(model, "head", data, ["head"])
    assert upper.cut.module == "below"
    _, logits = upper(keep(upper), torch.arange(N))
    torch.testing.assert_close(logits, logits_of(call(model, data)))


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept at the cut is given its bytes before it is mapped."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    upper = upper_of(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)).eval(), "1", torch.randn(N, 8), ["1"])
    with pytest.raises(ImuError, match=r"cannot hold the features at the cut.*No space left.*set TMPDIR"):
        keep(upper, most=0, folder=lambda: tmp_path)


def test_what_runs_again_counts_although_it_does_not_move() -> None:
    """Of four equal layers of which the second moves, three run again."""
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(4))).eval()
    upper = upper_of(model, "3", torch.randn(N, 8), ["1"])
    assert upper.cut.module == "0"
    assert scope.share_above(upper) == pytest.approx(0.75)
    assert scope.share_above(upper_of(model, "3", torch.randn(N, 8), ["0"])) == 1
