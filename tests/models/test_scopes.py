"""Scopes: the layers that move, in models of libraries and in own code, and what never moves."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

from imu_cli.errors import ImuError
from imu_cli.models import scopes
from imu_cli.models.batches import Batch
from imu_cli.models.digits import digits_net

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip
STAGES: dict[str, Any] = {"depths": [2, 2], "num_labels": 4}


def images(side: int = 64) -> Tensor:
    return torch.randn(2, 3, side, side)


def texts() -> Batch:
    return {"input_ids": torch.randint(3, 50, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}


def vision(name: str, **config: Any) -> nn.Module:
    """A model of transformers with random weights."""
    kind = getattr(transformers, f"{name}Config")
    model: nn.Module = getattr(transformers, f"{name}ForImageClassification")(kind(**config))
    return model.eval()


def language(name: str, **config: Any) -> nn.Module:
    """The same, for texts of fifty tokens and four classes."""
    kind = getattr(transformers, f"{name}Config")
    made = kind(vocab_size=50, num_labels=4, pad_token_id=0, bos_token_id=1, eos_token_id=2, **config)
    model: nn.Module = getattr(transformers, f"{name}ForSequenceClassification")(made)
    return model.eval()


def google() -> nn.Module:
    return torchvision.models.googlenet(num_classes=4, aux_logits=True, init_weights=False)


class Net(nn.Module):
    """Own code: names that say nothing, run in another order than they are made in, with skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Linear(8, 4)
        self.b = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(3)])
        self.a = nn.Linear(6, 8)
        self.unused = nn.Linear(8, 8)
        self.register_buffer("scale", torch.ones(8))
        self.token = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x) + self.token
        for block in (self.b[2], self.b[0], self.b[1]):
            h = h + block(h)
        made: Tensor = self.z(h * self.scale)
        return made


LAST: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch], str, str]] = {
    "torchvision, ResNet": (lambda: torchvision.models.resnet18(num_classes=4), images, "fc", "layer4, fc"),
    "torchvision, auxiliary heads": (google, images, "fc", "inception5b, fc"),
    "torchvision, ConvNeXt": (
        lambda: torchvision.models.ConvNeXt(
            [torchvision.models.convnext.CNBlockConfig(8, 16, 2), torchvision.models.convnext.CNBlockConfig(16, None, 2)],
            num_classes=4,
        ), images, "classifier.2", "features.3, classifier"),
    "torchvision, ViT": (
        lambda: torchvision.models.VisionTransformer(64, 16, 6, 2, 16, 32, num_classes=4), images, "heads.head",
        "encoder.layers.encoder_layer_4, encoder.layers.encoder_layer_5, encoder.ln, heads"),
    "timm, ResNet": (lambda: timm.create_model("test_resnet", num_classes=4), images, "fc", "layer4, fc"),
    "timm, ViT": (
        lambda: timm.create_model("test_vit", num_classes=4, img_size=64), images, "head", "blocks.4, blocks.5, norm, head"),
    "timm, ConvNeXt": (lambda: timm.create_model("test_convnext", num_classes=4), images, "head.fc", "stages.3, head"),
    "timm, without batch norm, a stem of four": (
        lambda: timm.create_model("test_nfnet", num_classes=4), images, "head.fc", "stages.3, final_conv, head"),
    "transformers, ViT": (
        lambda: vision("ViT", image_size=64, patch_size=16, num_labels=4, **SMALL), images, "classifier",
        "vit.layers.4, vit.layers.5, vit.layernorm, classifier"),
    "transformers, ConvNeXt": (
        lambda: vision("ConvNext", hidden_sizes=[8, 16], num_stages=2, **STAGES), images, "classifier",
        "convnext.encoder.stages.1, convnext.layernorm, classifier"),
    "transformers, Swin": (
        lambda: vision("Swin", image_size=64, patch_size=4, embed_dim=8, num_heads=[2, 2], window_size=4, **STAGES), images,
        "classifier", "swin.encoder.layers.1, swin.layernorm, classifier"),
    "transformers, BERT": (
        lambda: language("Bert", **SMALL), texts, "classifier",
        "bert.encoder.layer.4, bert.encoder.layer.5, bert.pooler, classifier"),
    "transformers, GPT-2": (
        lambda: language("GPT2", n_embd=16, n_layer=6, n_head=2), texts, "score",
        "transformer.h.4, transformer.h.5, transformer.ln_f, score"),
    "transformers, Llama": (
        lambda: language("Llama", num_key_value_heads=2, **SMALL), texts, "score",
        "model.layers.4, model.layers.5, model.norm, score"),
    "the demo's": (digits_net, lambda: torch.randn(2, 1, 8, 8), "8", "6, 8"),
    "own code": (Net, lambda: torch.randn(2, 6), "z", "z, b.1"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAST)
def test_the_last_block(name: str) -> None:
    """The last stage, or the last third of a stack of six, with all that follows; what is said of it names whole modules."""
    build, probe, head, expected = LAST[name]
    torch.manual_seed(0)
    found = scopes.find(build().eval(), probe(), "last-block", head)
    assert found.shown == expected
    assert head in found.modules
    assert found.count == sum(parameter.numel() for parameter in found.parameters.values())
    assert found.described() == f"{expected}: {found.count:,} weights of {len(found.modules)} layers"


def names(model: nn.Module, probe: Batch, given: str, head: str) -> set[str]:
    return set(scopes.find(model, probe, given, head).parameters)


def test_all_is_every_weight_of_own_code_that_the_logits_depend_on() -> None:
    """Buffers, a token of the model's own and a layer that never runs stay; layers come as they run."""
    model = Net().eval()
    found = scopes.find(model, torch.randn(2, 6), "all", "z")
    assert found.modules == ("a", "b.2.0", "b.2.2", "b.0.0", "b.0.2", "b.1.0", "b.1.2", "z")
    assert set(found.parameters) == {f"{path}.{part}" for path in found.modules for part in ("weight", "bias")}
    assert found.shown == "all layers"


STAY: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch], str, set[str]]] = {
    "positions and class token of a ViT": (
        lambda: vision("ViT", image_size=64, patch_size=16, num_labels=4, **SMALL), images, "classifier",
        {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"}),
    "the same in timm's": (
        lambda: timm.create_model("test_vit", num_classes=4, img_size=64), images, "head", {"cls_token", "pos_embed"}),
    "an embedding of positions": (
        lambda: language("Bert", **SMALL), texts, "classifier", {"bert.embeddings.position_embeddings.weight"}),
    "GPT-2's": (lambda: language("GPT2", n_embd=16, n_layer=6, n_head=2), texts, "score", {"transformer.wpe.weight"}),
    "relative positions": (
        lambda: torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=4), images, "head",
        {f"features.{stage}.0.attn.relative_position_bias_table" for stage in (1, 3)}),
}  # fmt: skip


@pytest.mark.parametrize("name", STAY)
def test_what_never_moves(name: str) -> None:
    """Of the weights that the logits depend on, positions and class tokens alone stay under ``all``; no buffer moves."""
    build, probe, head, expected = STAY[name]
    model = build().eval()
    moved = names(model, probe(), "all", head)
    assert {name for name, _ in model.named_parameters()} - moved == expected
    assert not moved & {name for name, _ in model.named_buffers()}


def test_heads_that_never_run_do_not_move() -> None:
    """GoogLeNet's auxiliary heads are in the file, and not in a pass: they do not move, and naming them says why."""
    model = google().eval()
    moved = names(model, images(), "all", "fc")
    assert not any(name.startswith("aux") for name in moved)
    with pytest.raises(ImuError, match=r"aux1\.\* matches aux1\.conv, which never runs; there are conv1\.conv, "):
        scopes.find(model, images(), "aux1.*", "fc")


def test_projections_that_are_not_called_move_with_their_attention() -> None:
    """nn.MultiheadAttention multiplies by its projections' weights without calling them; they run where it does."""
    model = torchvision.models.VisionTransformer(64, 16, 6, 2, 16, 32, num_classes=4).eval()
    block = "encoder.layers.encoder_layer_3"
    found = scopes.find(model, images(), f"{block}.self_attention", "heads.head")
    assert set(found.parameters) == {
        f"{block}.self_attention.{part}"
        for part in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    }
    order = scopes.find(model, images(), f"{block}.*", "heads.head").modules
    assert order[0] == f"{block}.ln_1"
    assert set(order[1:3]) == {f"{block}.self_attention", f"{block}.self_attention.out_proj"}
    assert order[3] == f"{block}.ln_2"


def test_normalisations_of_a_librarys_own_move() -> None:
    """RMSNorm of language models and GPT-2's linear layer are known by the ends of their names."""
    llama = language("Llama", num_key_value_heads=2, **SMALL)
    assert "model.layers.0.input_layernorm.weight" in names(llama, texts(), "all", "score")
    gpt2 = language("GPT2", n_embd=16, n_layer=6, n_head=2)
    assert "transformer.h.0.attn.c_attn.weight" in names(gpt2, texts(), "all", "score")


def stack(count: int = 12) -> nn.Module:
    """Blocks 0 to 11 of two layers, and a head."""
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(count)]
    return nn.ModuleDict({"blocks": nn.Sequential(*blocks), "fc": nn.Linear(4, 3)})


class Stack(nn.Module):
    """The same as a network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = stack()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.net["fc"](self.net["blocks"](x))  # type: ignore[index]
        return made


PATTERNS: dict[str, tuple[str, list[int], bool]] = {
    "a module": ("net.blocks.3", [3], False),
    "what lies in it": ("net.blocks.3.*", [3], False),
    "a range of numbers": ("net.blocks.[9-11]", [9, 10, 11], False),
    "a range, and what lies inside": ("net.blocks.[9-11].*", [9, 10, 11], False),
    "a range of two, and the head": ("net.blocks.[0-1],net.fc", [0, 1], True),
    "blanks after commas": ("net.blocks.11, net.fc", [11], True),
    "letters, as the shell has them": ("net.blocks.[12]", [1, 2], False),
    "stars": ("*.1?.*", [10, 11], False),
    "one that no number of two digits begins": ("net.blocks.1", [1], False),
    "everything": ("net", list(range(12)), True),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name: str) -> None:
    """A pattern names modules, and means all inside them; [9-11] is a range of numbers."""
    given, blocks, with_head = PATTERNS[name]
    found = scopes.find(Stack().eval(), torch.randn(2, 4), given, "net.fc")
    expected = [f"net.blocks.{block}.{layer}" for block in blocks for layer in (0, 1)]
    assert list(found.modules) == expected + ["net.fc"] * with_head


def test_a_layer_alone() -> None:
    """``*.0`` means every layer of that name."""
    found = scopes.find(Stack().eval(), torch.randn(2, 4), "net.blocks.*.0", "net.fc")
    assert list(found.modules) == [f"net.blocks.{block}.0" for block in range(12)]


WRONG: dict[str, tuple[str, str]] = {
    "no such module": (
        "layer9.*",
        "--scope layer9.*: layer9.* matches no module; there are net.blocks (24 layers), net.fc; "
        "write last-block, all or patterns of such paths",
    ),
    "one of several": ("net.fc,body", "--scope net.fc,body: body matches no module; there are "),
    "nothing given": ("", "--scope :  matches no module; there are "),
    "an empty one of several": ("net.fc,", "--scope net.fc,:  matches no module; "),
    "no bracket at its end": ("net.blocks.[9-11", "matches no module"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_scope_that_matches_nothing_lists_what_there_is(name: str) -> None:
    """The pattern, why, and the model's parts."""
    given, expected = WRONG[name]
    with pytest.raises(ImuError) as caught:
        scopes.find(Stack().eval(), torch.randn(2, 4), given, "net.fc")
    assert expected in str(caught.value)


def test_a_module_without_weights_is_named() -> None:
    """A pattern that matches an activation says so."""
    with pytest.raises(ImuError, match=r"7 matches 7, which has no weights that move \(linear, convolution, norm, emb"):
        scopes.find(digits_net().eval(), torch.randn(2, 1, 8, 8), "7", "8")


def test_a_weight_that_layers_share_stands_once() -> None:
    """Tied layers move together, by the name of the first."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 3)).eval()
    model[2].weight = model[0].weight
    found = scopes.find(model, torch.randn(2, 4), "all", "3")
    assert list(found.parameters) == ["0.weight", "0.bias", "2.bias", "3.weight", "3.bias"]
    assert found.count == 16 + 4 + 4 + 15


def test_finding_leaves_the_model_as_it_was() -> None:
    """Neither hooks nor gradients nor changed flags are left."""
    model = Net().eval()
    model.a.weight.requires_grad_(False)
    scopes.find(model, torch.randn(2, 6), "last-block", "z")
    assert not model.a.weight.requires_grad
    assert model.a.bias.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_events_tell_the_order_and_outputs() -> None:
    """Entering and leaving, in order; outputs only where they are asked for."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    found = scopes.events(model, torch.ones(1, 4), outputs=True)
    assert [(event.path, event.entered) for event in found] == [
        ("", True), ("0", True), ("0", False), ("1", True), ("1", False), ("", False)
    ]  # fmt: skip
    assert isinstance(found[2].output, Tensor)
    assert all(event.output is None for event in scopes.events(model, torch.ones(1, 4)))
