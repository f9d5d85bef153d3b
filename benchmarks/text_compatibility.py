"""Which text and token classifiers of transformers go through the whole of ``imu unlearn``, and which are refused, and why?

As compatibility.py asks of images: each is built small with random weights and 10 outputs, saved with a tokenizer of a few words
(``save_pretrained``), and given to ``imu unlearn`` with random texts of several lengths that carry the model's own predictions,
made one text at a time, so without padding. *Works* and *refused* mean what they mean there; besides, the folder that comes out has to
load with its tokenizer and the same ``id2label``. Token classifiers are given sentences of those words, each labelled by the prediction at
its first token.
"""

import json
import time
import warnings
from pathlib import Path
from typing import Any

import common
import compatibility
import torch
from compatibility import CLASSES, Case, Saved
from torch import Tensor, nn

from imu_cli.models import batches, libraries

WORDS = ("blue", "grey", "lion", "heart", "goose", "river", "stone", "lamp", "paper", "cloud", "seven", "north")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEXTS = 12
OF_WORDS = "ForTokenClassification"
PROMISED = 20


def tokenizer_of(words: tuple[str, ...] = WORDS, length: int = 64, **said: Any) -> Any:
    """A tokenizer of whole words, with marks before and after each text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate((*SPECIAL, *words))}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(mark, SPECIAL.index(mark)) for mark in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", marks)
    named = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    transformers = libraries.transformers("the tokenizer")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=length, **named, **said)


def texts() -> list[str]:
    """Random texts of 1 to 20 words."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 21, (TEXTS,), generator=random).tolist()
    return [" ".join(WORDS[at] for at in torch.randint(0, len(WORDS), (n,), generator=random)) for n in lengths]


def build(case: Case) -> nn.Module:
    """The model, with its head made larger: else all texts have one class."""
    transformers = libraries.transformers("the model")
    kind = getattr(transformers, case.name)
    names = {str(at): f"class {at}" for at in range(CLASSES)}
    arguments = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "num_labels": CLASSES, **case.arguments}
    model: nn.Module = kind(kind.config_class(**arguments, id2label=names)).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features == CLASSES:
            nn.init.normal_(module.weight, std=0.5)
    return model


def save(case: Case, model: nn.Module, folder: Path) -> Saved:
    """The folder as transformers writes it."""
    transformers = libraries.transformers("the model")
    model.save_pretrained(folder / "model")  # type: ignore[operator]
    tokenizer = tokenizer_for(case)
    tokenizer.save_pretrained(folder / "model")

    def load(path: Path) -> nn.Module:
        made: nn.Module = getattr(transformers, case.name).from_pretrained(path)
        known = transformers.AutoTokenizer.from_pretrained(path)
        assert known("blue lion")["input_ids"] == tokenizer("blue lion")["input_ids"]
        assert made.config.id2label == {at: f"class {at}" for at in range(CLASSES)}  # type: ignore[union-attr]
        return made

    return Saved(model, folder / "model", [], load)


def tokenizer_for(case: Case) -> Any:
    """The tokenizer of words; where transformers has one of its own for a family, whatever lies there, that one."""
    if case.name.startswith("Qwen2For"):
        letters = sorted({letter for word in WORDS for letter in word} | {"Ġ"})
        vocabulary = {word: at for at, word in enumerate(("<|endoftext|>", *letters))}
        transformers = libraries.transformers("the tokenizer")
        return transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[], model_max_length=200)
    return tokenizer_of(padding_side="left") if case.name.startswith("XLNet") else tokenizer_of()


def together(case: Case, given: list[str], taken: Any) -> dict[str, Tensor]:
    """The texts as one batch by the library's own padding."""
    made = tokenizer_for(case)(given, padding=True, return_tensors="pt")
    return {name: value for name, value in made.items() if name in taken}


def run(case: Case, folder: Path) -> dict[str, Any]:
    """One class, from building to loading the output."""
    import inspect

    started = time.perf_counter()
    torch.manual_seed(0)
    row: dict[str, Any] = {"library": case.library, "name": case.name, "arguments": case.arguments}
    model, given = build(case), texts()
    taken = inspect.signature(model.forward).parameters
    of_words = case.name.endswith(OF_WORDS)
    alone = [compatibility.logits_of(model, together(case, [text], taken)).argmax(dim=-1).flatten() for text in given]
    alone = [
        found[1 : 1 + len(text.split())] if of_words else found[:1] for found, text in zip(alone, given, strict=True)
    ]
    saved, samples = save(case, model, folder), together(case, given, taken)
    if of_words:
        rows = [
            json.dumps({"tokens": text.split(), "tags": found.tolist()})
            for text, found in zip(given, alone, strict=True)
        ]
        first = (samples["input_ids"] == SPECIAL.index("[CLS]")).int().argmax(dim=1).tolist()
        places = [(at, first[at] + 1 + word) for at, found in enumerate(alone) for word in range(len(found))]
        samples[batches.WORDS] = torch.tensor(places)
    else:
        rows = [json.dumps({"text": text, "label": int(found)}) for text, found in zip(given, alone, strict=True)]
    (folder / "forget.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return compatibility.finished(case, row, saved, folder / "forget.jsonl", samples, torch.cat(alone), started)


def run_quietly(case: Case) -> dict[str, Any]:
    """The same in a folder of its own; an exception is a failure with its message."""
    with common.folder("compatibility") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return run(case, folder)
        except Exception as error:  # noqa: BLE001 - a class that cannot be built or saved is a row, not the end
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".replace(str(folder), "…")
            return {
                "library": case.library,
                "name": case.name,
                "arguments": case.arguments,
                "outcome": "fails",
                "said": said,
            }


PADDED = "alone than padded"
SMALL = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 200,
}  # fmt: skip
HALVES = {
    "vocab_size": 40, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 80,
}  # fmt: skip


def _case(kind: str, refused: str = "", **arguments: Any) -> Case:
    return Case("transformers", f"{kind}ForSequenceClassification", 0, arguments, refused)


def _of_words(kind: str, refused: str = "", **arguments: Any) -> Case:
    return Case("transformers", f"{kind}{OF_WORDS}", 0, arguments, refused)


def _like_bert(*kinds: str, **more: Any) -> list[Case]:
    return [_case(kind, **SMALL, **more) for kind in kinds]


CASES = [
    *_like_bert("Bert", "Roberta", "XLMRoberta", "Camembert", "RobertaPreLayerNorm", "Electra", "Deberta", "DebertaV2",
                "MPNet", "LayoutLM", "RoFormer", "Ernie", "MegatronBert", "RemBert"),
    *_like_bert("XLMRobertaXL", "Data2VecText"),
    _case("Albert", **SMALL, embedding_size=16),
    _case("MobileBert", **SMALL, embedding_size=16, intra_bottleneck_size=32, true_hidden_size=32),
    _case("Nystromformer", PADDED, **SMALL), _case("ConvBert", PADDED, **SMALL, embedding_size=16),
    _case("BigBird", **SMALL, attention_type="original_full"), _case("Longformer", **SMALL, attention_window=8),
    _case("SqueezeBert", **SMALL, embedding_size=32, q_groups=1, k_groups=1, v_groups=1, post_attention_groups=1, intermediate_groups=1,
          output_groups=1),
    _case("ModernBert", **SMALL, cls_token_id=2, sep_token_id=3, reference_compile=False),
    _case("DistilBert", vocab_size=40, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=80),
    _case("Flaubert", vocab_size=40, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=80, pad_index=0),
    _case("XLM", vocab_size=40, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=80, pad_index=0),
    _case("XLNet", vocab_size=40, d_model=32, n_layer=2, n_head=4, d_inner=48),
    _case("Funnel", vocab_size=40, d_model=32, n_head=4, d_head=8, d_inner=48, block_sizes=[1, 1], num_decoder_layers=1),
    _case("FNet", vocab_size=40, hidden_size=32, num_hidden_layers=2, intermediate_size=48, max_position_embeddings=80,
          refused=PADDED),
    _case("Bart", **HALVES), _case("MBart", **HALVES),
    _case("T5", vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0),
    _case("OpenAIGPT", vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=80),
    _case("GPT2", vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=80),
    _case("GPTNeo", vocab_size=40, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=80,
          attention_types=[[["global", "local"], 1]]),
    _case("GPTNeoX", **SMALL), _case("OPT", vocab_size=40, hidden_size=32, num_hidden_layers=2, ffn_dim=48, num_attention_heads=4,
          word_embed_proj_dim=32, max_position_embeddings=80),
    _case("Bloom", vocab_size=40, hidden_size=32, n_layer=2, n_head=4),
    *_like_bert("Llama", "Mistral", "Qwen2", "Phi", "Phi3", "Gemma", "StableLm", num_key_value_heads=2),
    *_like_bert("Qwen3", num_key_value_heads=2, head_dim=8),
    *(_of_words(kind, **SMALL) for kind in ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "Deberta", "DebertaV2", "MPNet",
                                            "LayoutLM", "RoFormer", "Ernie", "MegatronBert", "RemBert")),
    _of_words("Albert", **SMALL, embedding_size=16), _of_words("BigBird", **SMALL, attention_type="original_full"),
    _of_words("ModernBert", **SMALL, cls_token_id=2, sep_token_id=3, reference_compile=False),
    _of_words("DistilBert", vocab_size=40, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=80),
    _of_words("XLNet", vocab_size=40, d_model=32, n_layer=2, n_head=4, d_inner=48),
    _of_words("XLM", vocab_size=40, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=80, pad_index=0),
    _of_words("FNet", vocab_size=40, hidden_size=32, num_hidden_layers=2, intermediate_size=48, max_position_embeddings=80,
              refused=PADDED),
    _of_words("GPT2", vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=80),
    *(_of_words(kind, **SMALL, num_key_value_heads=2) for kind in ("Llama", "Mistral", "Gemma")),
]  # fmt: skip


def main() -> None:
    """Run all, or with --quick two; exit code 1 if one fails or there are fewer than promised."""
    parser = common.parser(__doc__)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started, rows = common.environment(), []
    for case in CASES[:2] if options.quick else CASES:
        rows.append(run_quietly(case))
        common.console.print(case.name, rows[-1]["outcome"], rows[-1].get("seconds"), rows[-1]["said"][:300])
    outcomes = [row["outcome"] for row in rows]
    told = ", ".join(f"{outcomes.count(word)} {word}" for word in ("works", "refused", "fails"))
    least = 2 if options.quick else PROMISED
    criteria = [
        common.Criterion(
            "text and token classifiers", f"≥ {least}, none fails", told, len(rows) >= least and "fails" not in outcomes
        )
    ]
    common.keep("text_compatibility", options.quick, {"runs": rows, "criteria": common.verdicts(criteria)}, started)
    common.stop(criteria)


if __name__ == "__main__":
    main()
