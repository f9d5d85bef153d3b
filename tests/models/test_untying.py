"""A tied head written as a tensor of its own: transformers loads, ties nothing, computes with it, and generates."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from imu_cli.errors import ImuError, RefusedError
from imu_cli.models import checkpoint, destination, layout, untying

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 40, "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
KINDS = {
    "llama": ("LlamaForCausalLM", "model.embed_tokens.weight"),
    "gpt2": ("GPT2LMHeadModel", "transformer.wte.weight"),
}


def tied(kind: str) -> "transformers.PreTrainedModel":
    """A model of random weights, its head tied to its embedding."""
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(**SMALL, n_embd=16, n_layer=1, n_head=2, n_positions=32)
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.LlamaConfig(
        **SMALL, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def untied(source: Path, target: Path, embedding: str, head: torch.Tensor) -> None:
    target.mkdir()
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(source / name, target / name)
    untying.write(checkpoint.open_checkpoint(source), embedding, "lm_head.weight", head, target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_loads_it_untied(tmp_path: Path, kind: str, sharded: bool, dtype: torch.dtype) -> None:
    """The folder loads again: the head is the one that was written, the embedding the old one, and it generates."""
    model = tied(kind).to(dtype)
    model.save_pretrained(tmp_path / "model", max_shard_size="4KB" if sharded else "5GB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == 1 or sharded
    head = model.lm_head.weight.detach() + torch.randn(40, 16).to(dtype)
    untied(tmp_path / "model", tmp_path / "out", KINDS[kind][1], head)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype).eval()
    assert again.config.tie_word_embeddings is False
    assert torch.equal(again.lm_head.weight, head)
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)
    with torch.inference_mode():
        ids = torch.tensor([[3, 5, 7]])
        expected = model(ids, output_hidden_states=True).hidden_states[-1] @ head.T
        torch.testing.assert_close(again(ids).logits, expected, rtol=1e-2, atol=1e-2)
        assert again.generate(ids, max_new_tokens=4, do_sample=False).shape[1] > 3
    before, after = (checkpoint.open_checkpoint(tmp_path / name) for name in ("model", "out"))
    assert checkpoint.differing(before, after) == ["lm_head.weight"]
    assert before.metadata == after.metadata


def test_the_index_and_the_config_say_what_there_is(tmp_path: Path) -> None:
    """Sizes in the index grow by the head; of the config one value changes, in a part on text as well."""
    model = tied("llama")
    model.save_pretrained(tmp_path / "model", max_shard_size="4KB")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["text_config"] = {"tie_word_embeddings": True, "other": 1}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    untied(tmp_path / "model", tmp_path / "out", KINDS["llama"][1], model.lm_head.weight.detach())
    index, grown = (
        json.loads((tmp_path / name / "model.safetensors.index.json").read_text()) for name in ("model", "out")
    )
    assert grown["metadata"]["total_size"] == index["metadata"]["total_size"] + 40 * 16 * 4
    assert set(grown["weight_map"]) - set(index["weight_map"]) == {"lm_head.weight"}
    said = json.loads((tmp_path / "out/config.json").read_text())
    assert said.pop("tie_word_embeddings") is False
    assert said.pop("text_config") == {"tie_word_embeddings": False, "other": 1}
    assert said == {k: v for k, v in config.items() if k not in ("tie_word_embeddings", "text_config")}


def test_what_cannot_be_untied_is_refused(tmp_path: Path) -> None:
    """A file without its config, a head that is a tensor already, and a model that changed meanwhile."""
    model = tied("llama")
    model.save_pretrained(tmp_path / "model")
    source = checkpoint.open_checkpoint(tmp_path / "model")
    with pytest.raises(ImuError, match="is a file"):
        untying.refuse_file(checkpoint.open_checkpoint(tmp_path / "model/model.safetensors"))
    embedding = KINDS["llama"][1]
    with pytest.raises(RefusedError, match="not tied"):
        untying.write(source, embedding, "model.norm.weight", torch.zeros(40, 16), tmp_path)
    path = tmp_path / "model/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(ImuError, match="has changed since"):
        untying.write(source, embedding, "lm_head.weight", torch.zeros(40, 16), tmp_path / "out")
    (tmp_path / "model/config.json").unlink()
    with pytest.raises(ImuError, match="is not there"):
        untying.refuse_file(source)


def test_what_generates_goes_along(tmp_path: Path) -> None:
    """Tokenizers are carried whole, also of 256,000 words and as sentencepiece, and templates; other large files are not."""
    tied("llama").save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "large.json"):
        with (tmp_path / "model" / name).open("wb") as file:
            file.truncate(20_000_000)
    for name in ("tokenizer.model", "chat_template.jinja", "other.model"):
        (tmp_path / "model" / name).write_text("x")
    made = destination.choose(layout.resolve(tmp_path / "model"), str(tmp_path / "out"), force=False)
    carried = {"chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model"}
    assert {path.name for path in made.carried} == carried
    assert set(made.left) == {"large.json", "other.model"}
