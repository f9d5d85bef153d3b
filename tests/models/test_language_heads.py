"""Heads of language models: found by running the model, with what acts on their logits, and what enters them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imu_cli.errors import ImuError, RefusedError
from imu_cli.models import architecture, language
from imu_cli.models.architecture import Loaded
from imu_cli.models.batches import call
from imu_cli.models.checkpoint import Checkpoint, open_checkpoint

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 40, "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
LLAMA = {
    **SMALL, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("Llama", {**LLAMA, "tie_word_embeddings": True}),
    "llama": ("Llama", {**LLAMA, "tie_word_embeddings": False}),
    "qwen": ("Qwen2", {**LLAMA, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {**LLAMA, "tie_word_embeddings": False}),
    "gemma 2, capped": ("Gemma2", {**LLAMA, "head_dim": 8, "final_logit_softcapping": 3.0}),
    "cohere, scaled": ("Cohere", {**LLAMA, "logit_scale": 0.0625}),
    "granite, scaled": ("Granite", {**LLAMA, "logits_scaling": 8.0}),
    "gpt-neox": ("GPTNeoX", {**SMALL, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}),
    "phi, with a bias": ("Phi", LLAMA),
    "opt": ("OPT", {**SMALL, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
                    "word_embed_proj_dim": 16, "max_position_embeddings": 32}),
    "gpt2": ("GPT2", {**SMALL, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}),
}  # fmt: skip
PROBE = {
    "input_ids": torch.tensor([[3, 5, 7, 9, 11], [2, 4, 6, 0, 0]]),
    "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]]),
}


def saved(kind: str, folder: Path) -> tuple[Checkpoint, Loaded]:
    """A model of random weights as transformers saves it, opened."""
    name, given = KINDS[kind]
    torch.manual_seed(0)
    made = getattr(transformers, f"{name}Config")(**given)
    model = transformers.AutoModelForCausalLM.from_config(made)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    checkpoint = open_checkpoint(folder)
    return checkpoint, architecture.load(checkpoint, None)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_head_s_with_what_acts_on_them(kind: str, tmp_path: Path) -> None:
    """Of every kind the head is found, and W, bias, scale and cap give the model's own logits from what enters it."""
    checkpoint, loaded = saved(kind, tmp_path)
    assert loaded.takes == "record"
    head = language.find_head(loaded.model, PROBE, checkpoint, loaded)
    assert head.writes
    assert bool(head.tied) == loaded.model.config.tie_word_embeddings
    assert set(head.tensors) <= set(checkpoint.entries)
    with torch.inference_mode():
        entered = language.entering(loaded.model, head.module, PROBE)
        expected = call(loaded.model, PROBE).logits
    width = head.matrix.shape[1] - head.bias
    made = entered @ head.matrix[:, :width].T * head.scale + (head.matrix[:, -1] if head.bias else 0)
    made = made if head.cap is None else head.cap * torch.tanh(made / head.cap)
    # float32: a product of 16 numbers of size 1, summed in two orders.
    assert torch.allclose(
        made[PROBE["attention_mask"].bool()], expected[PROBE["attention_mask"].bool()], rtol=1e-4, atol=1e-4
    )


def test_a_layer_that_is_not_the_head_is_refused(tmp_path: Path) -> None:
    """``--head`` has to name a linear layer whose outputs are the words."""
    checkpoint, loaded = saved("llama", tmp_path)
    with pytest.raises(ImuError, match="--head nothing: not a linear layer"):
        language.find_head(loaded.model, PROBE, checkpoint, loaded, "nothing")
    with pytest.raises(RefusedError, match="has 24 outputs, the model 40 words"):
        language.find_head(loaded.model, PROBE, checkpoint, loaded, "model.layers.0.mlp.up_proj")


class Bent(nn.Module):
    """A model whose logits are bent by something that nobody says."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(40, 8), nn.Linear(8, 40, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids)).sinh()


def test_logits_that_something_unknown_acts_on_are_refused(tmp_path: Path) -> None:
    """Only a scale and the config's cap are known; anything else would make every margin wrong."""
    checkpoint, loaded = saved("llama", tmp_path)
    torch.manual_seed(0)
    with pytest.raises(RefusedError, match="something acts on them that imu does not know"):
        language.find_head(Bent().eval(), PROBE["input_ids"], checkpoint, loaded)


def test_what_is_no_language_model_is_refused() -> None:
    """Logits of a language model have a row for every token."""
    with pytest.raises(RefusedError, match=r"returned \(2, 3\), not one \(records, tokens, words\) tensor"):
        language.words_of(torch.zeros(2, 3))


def test_the_body_keeps_no_keys_and_values(tmp_path: Path) -> None:
    """Nothing is generated on the way, and the model's config is afterwards as it was."""
    _, loaded = saved("llama", tmp_path)
    with language.without_cache(loaded.model):
        assert call(loaded.model, PROBE).past_key_values is None
    assert loaded.model.config.use_cache is True
