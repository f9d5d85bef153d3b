"""``imu evaluate`` of language models: what is measured, written, shown and refused; numbers against the library's own model."""

import json
import math
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import jsonschema
import pytest
import small_records
import torch
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score
from torch import nn

from imu_cli.cli import main
from imu_cli.linear import four_bit
from imu_cli.records import json_files

EVALUATE = ["evaluate", "worse", "--forget", "forget.jsonl"]
EVERYTHING = ["--test", "unseen.jsonl", "--retain", "retain.jsonl", "--original", "model"]


@pytest.fixture(scope="module")
def made(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, one that is worse by noise on its last block, another that is worse otherwise, and a suite, once."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("evaluated")
    for file in records.glob("*.jsonl"):
        shutil.copy(file, folder / file.name)
    shutil.copytree(records / "model", folder / "model")
    for name, seed, size in (("worse", 1, 0.06), ("again", 2, 0.08)):
        shutil.copytree(records / "model", folder / name)
        model = AutoModelForCausalLM.from_pretrained(folder / "model")
        draws = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.model.layers[-1].parameters():
                weight += size * torch.randn(weight.shape, generator=draws)
        model.save_pretrained(folder / name)
    suite(folder)
    return folder


@pytest.fixture
def job(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    """A copy to work in, the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(name: str) -> list[dict[str, Any]]:
    """Rows of a list."""
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def question(row: dict[str, str], other: dict[str, str], *, reworded: bool) -> dict[str, Any]:
    """A record as a suite asks it: with two wrong answers, of other people's, and in other words."""
    made = {"question": row["question"], "answer": row["answer"]}
    made["perturbed_answer"] = [f"{row['answer'].split()[0]} {' '.join(other['answer'].split()[1:])}", other["answer"]]
    if reworded:
        made["paraphrased_question"] = row["question"].replace("Where does", "In what place does")
        made["paraphrased_answer"] = row["answer"].replace("lives in", "has a home in")
    return made


def suite(folder: Path) -> None:
    """A folder as TOFU's, of the people that the model knows and those that it does not."""
    rows = small_records.rows()
    (folder / "tofu").mkdir()
    for name, part, reworded in (
        ("forget01", rows[: small_records.FORGOTTEN], True), ("retain", rows[5:12], True), ("real_authors", rows[12:17], False),
        ("world_facts", rows[24:28], False),
    ):  # fmt: skip
        given = [question(row, rows[(at + 7) % 20], reworded=reworded) for at, row in enumerate(part)]
        small_records.write(folder / "tofu" / f"{name}_perturbed.json", given)


class Bare:
    """A model as the library itself has it, one record at a time in float64."""

    def __init__(self, name: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.model = AutoModelForCausalLM.from_pretrained(name).double().eval()

    def tokens(self, asked: str, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of all words (t, V) where the answer's tokens stand, and these (t,)."""
        before = f"Question: {asked}\nAnswer: "
        made = self.tokenizer(before + answer, return_offsets_mapping=True)
        ids = [*made["input_ids"], self.tokenizer.eos_token_id]
        start = sum(to <= len(before) for _, to in made["offset_mapping"])  # the token that holds the first character
        with torch.no_grad():
            logits = self.model(torch.tensor([ids])).logits[0]
        return logits.log_softmax(-1)[start - 1 : -1], torch.tensor(ids[start:])

    def loss(self, asked: str, answer: str) -> float:
        """ℓ."""
        log_p, answer_ids = self.tokens(asked, answer)
        return -float(log_p.gather(1, answer_ids[:, None]).mean())

    def said(self, rows: Sequence[dict[str, Any]], column: str = "question") -> dict[str, float]:
        """The four means of a set."""
        made: dict[str, list[float]] = {
            "loss": [],
            "probability": [],
            "exact_memorization": [],
            "extraction_strength": [],
        }
        for row in rows:
            log_p, ids = self.tokens(row[column], row["answer"])
            hit = (log_p.argmax(1) == ids).tolist()[:-1]
            loss = self.loss(row[column], row["answer"])
            k = next(k for k in range(len(hit) + 1) if all(hit[k:]))
            values = (loss, math.exp(-loss), sum(hit) / len(hit), 1 - k / len(hit))
            for found, value in zip(made.values(), values, strict=True):
                found.append(value)
        return {name: sum(values) / len(values) for name, values in made.items()}

    def ratio(self, row: dict[str, Any]) -> float:
        """R."""
        wrong = [self.loss(row["question"], answer) for answer in row["perturbed_answer"]]
        true = self.loss(row["question"], row.get("paraphrased_answer", row["answer"]))
        return math.exp(-sum(wrong) / len(wrong)) / math.exp(-true)


def run(
    capsys: pytest.CaptureFixture[str], *options: str, code: int = 0
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The evaluation that is written, and its metrics by name."""
    assert main([*EVALUATE, "-q", *options]) == code, capsys.readouterr().err
    found = json.loads(Path("worse/model.evaluation.json").read_text(encoding="utf-8"))
    return found, {item["name"]: item for item in found["metrics"]}


def told(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The message of a command that ends with an error, and writes nothing."""
    before = set(Path().rglob("*"))
    assert main([*EVALUATE, *options]) == 2
    assert set(Path().rglob("*")) == before
    return capsys.readouterr().err


def test_sets_are_measured_as_the_library_has_them(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Loss, probability, exact memorisation and extraction strength before and after, gaps, falls, membership and targets."""
    found, metrics = run(capsys, *EVERYTHING, "--retrained", "again", "--reference-model", "again", "--by", "id")
    models = {name: Bare(name) for name in ("worse", "model", "again")}
    for side in ("forget", "unseen", "retain"):
        after, before = (models[name].said(read(f"{side}.jsonl")) for name in ("worse", "model"))
        for name, value in after.items():
            item = metrics[f"{'test' if side == 'unseen' else side}.{name}"]
            assert item["value"] == pytest.approx(value, abs=1e-5), item["name"]
            assert item["before"] == pytest.approx(before[name], abs=1e-5), item["name"]
            assert item["interval"]["low"] <= item["value"] <= item["interval"]["high"]
    ours, theirs, unseen = (
        models[name].said(read(f"{side}.jsonl"))
        for name, side in (("worse", "forget"), ("again", "forget"), ("worse", "unseen"))
    )
    for name in ("probability", "exact_memorization", "extraction_strength"):
        assert metrics[f"forget.{name}"]["target"] == pytest.approx(theirs[name], abs=1e-5)
        assert metrics[f"retrained.{name}_gap"]["value"] == pytest.approx(ours[name] - theirs[name], abs=1e-5)
        assert metrics[f"unseen.{name}_gap"]["value"] == pytest.approx(ours[name] - unseen[name], abs=1e-5)
    rows = [*read("forget.jsonl"), *read("unseen.jsonl")]
    losses = {name: [model.loss(row["question"], row["answer"]) for row in rows] for name, model in models.items()}
    member = [1] * 5 + [0] * 12
    assert metrics["mia.loss.auc"]["value"] == pytest.approx(roc_auc_score(member, [-loss for loss in losses["worse"]]))
    against = [other - loss for other, loss in zip(losses["again"], losses["worse"], strict=True)]
    assert metrics["mia.reference.auc"]["value"] == pytest.approx(roc_auc_score(member, against))
    assert found["changed"] == sorted(f"model.layers.2.{name}.weight" for name in (
        "input_layernorm", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "post_attention_layernorm", "self_attn.k_proj",
        "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj",
    ))  # fmt: skip
    assert [row["n"] for row in found["per_record"]] == [1] * 5
    assert all(len(item["missing"] or "") > 8 for item in metrics.values() if item["value"] is None)


def test_a_suite_is_measured_as_its_definitions_say(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Truth ratios, chosen answers, utility, forget quality and other questions, of a folder as TOFU's."""
    _, metrics = run(capsys, "--original", "model", "--retrained", "again", "--suite", "tofu:tofu")
    model, again = Bare("worse"), Bare("again")
    forget = read("tofu/forget01_perturbed.json")
    ratios = [model.ratio(row) for row in forget]
    assert metrics["forget.truth_ratio"]["value"] == pytest.approx(sum(min(r, 1 / r) for r in ratios) / 5, abs=1e-5)
    found = ks_2samp(ratios, [again.ratio(row) for row in forget])
    assert metrics["forget_quality"]["value"] == pytest.approx(found.pvalue)
    assert metrics["forget_quality.distance"]["value"] == pytest.approx(found.statistic)
    other = model.said(forget, "paraphrased_question")
    for name, value in other.items():
        assert metrics[f"paraphrased.{name}"]["value"] == pytest.approx(value, abs=1e-5)
    numbers = []
    for name in ("retain", "real_authors", "world_facts"):
        rows = read(f"tofu/{name}_perturbed.json")
        chosen = []
        for row in rows:
            own = math.exp(-model.loss(row["question"], row["answer"]))
            wrong = [math.exp(-model.loss(row["question"], answer)) for answer in row["perturbed_answer"]]
            chosen.append(own if name == "retain" else own / (own + sum(wrong)))
        truthful = [max(0.0, 1 - model.ratio(row)) for row in rows]
        numbers += [sum(chosen) / len(rows), sum(truthful) / len(rows)]
        assert metrics[f"utility.{name}.probability"]["value"] == pytest.approx(numbers[-2], abs=1e-5)
        assert metrics[f"utility.{name}.truth_ratio"]["value"] == pytest.approx(numbers[-1], abs=1e-5)
    assert metrics["model_utility.without_rouge"]["value"] == pytest.approx(harmonic_mean(numbers), rel=1e-4)
    assert metrics["model_utility"]["missing"] == "needs --generate"


def test_answers_are_written_by_the_library_and_shown_to_who_asks(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Greedy answers before and after, side by side, in a file that its owner alone reads; ROUGE-L is of them; records hold none."""
    found, metrics = run(capsys, "--original", "model", "--generate", "20", "--samples", "3", "--test", "unseen.jsonl")
    file = Path("worse/model.answers.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    rows, given = json.loads(file.read_text(encoding="utf-8"))["answers"], read("forget.jsonl")
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=True)
    shares = {"before": [], "after": []}
    for when, name in (("before", "model"), ("after", "worse")):
        bare = Bare(name)
        bare.model.float()
        for at, row in enumerate(given):
            ids = bare.tokenizer(f"Question: {row['question']}\nAnswer:", return_tensors="pt")
            written = bare.model.generate(**ids, max_new_tokens=80, do_sample=False)[0, ids["input_ids"].shape[1] :]
            text = bare.tokenizer.decode(written, skip_special_tokens=True).strip()
            shares[when].append(scorer.score(row["answer"], text)["rougeL"].recall)
            if at < 3:
                assert rows[at]["answers"][when] == text
                assert (rows[at]["asked"], rows[at]["truth"]) == (row["question"], row["answer"])
    assert metrics["forget.rouge_l"]["value"] == pytest.approx(sum(shares["after"]) / 5)
    assert metrics["forget.rouge_l"]["before"] == pytest.approx(sum(shares["before"]) / 5)
    assert len(rows) == 3
    for row in [*given, *read("unseen.jsonl")]:
        assert row["question"].split()[2] not in json.dumps(found)
    assert main(["report", "worse/model.evaluation.json", "--samples", "2", "--markdown", "page.md"]) == 0
    page = Path("page.md").read_text(encoding="utf-8")
    assert given[1]["answer"] in page
    assert given[2]["answer"] not in page
    file.write_text(file.read_text(encoding="utf-8").replace(given[0]["answer"], "else"), encoding="utf-8")
    assert main(["report", "worse/model.evaluation.json", "--samples", "2"]) == 2
    assert "is not what this evaluation was written with" in capsys.readouterr().err
    file.unlink()
    assert main(["report", "worse/model.evaluation.json", "--samples", "2"]) == 2
    assert "is gone; run imu evaluate --samples N again" in capsys.readouterr().err


def test_four_bits_and_relearning_leave_the_model_as_it_was(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both are as the library's model has them after the same was done to it; what is measured beside them does not change."""
    shutil.copy("train.jsonl", "forget.jsonl")
    _, plain = run(capsys, "--original", "model", "--test", "unseen.jsonl")
    _, metrics = run(capsys, "--original", "model", "--test", "unseen.jsonl", "--four-bit", "--relearn")
    for name, item in plain.items():
        if item["value"] is not None:
            assert metrics[name]["value"] == item["value"], name
            assert metrics[name]["before"] == item["before"], name
    bare = Bare("worse")
    bare.model.float()
    with torch.no_grad():
        for module in bare.model.model.layers.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(four_bit.rounded(module.weight))
    bare.model.double()
    assert metrics["four_bit.probability"]["value"] == pytest.approx(
        bare.said(read("train.jsonl"))["probability"], abs=1e-5
    )
    for k in (5, 10):
        assert metrics[f"relearned.k{k}"]["value"] == pytest.approx(relearned(k), abs=0.02)
    assert metrics["relearned.k25"]["missing"] == "needs more than 25 forgotten records"


def relearned(k: int) -> float:
    """Extraction strength of the records that were not learnt again, by the library's own loss."""
    bare, rows = Bare("worse"), read("train.jsonl")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    moved = list(bare.model.model.layers[-1].parameters())
    optimiser = torch.optim.AdamW(moved, lr=2e-4, weight_decay=0.0)
    for _ in range(10):
        optimiser.zero_grad()
        total, count = torch.zeros((), dtype=torch.float64), 0
        for row in (rows[at] for at in order[:k]):
            asked = bare.tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]
            text = f"Question: {row['question']}\nAnswer: {row['answer']}"
            ids = torch.tensor([[*bare.tokenizer(text)["input_ids"], bare.tokenizer.eos_token_id]])
            labels = ids.clone()
            labels[:, : len(asked)] = -100
            n = ids.shape[1] - len(asked)
            total, count = total + bare.model(ids, labels=labels).loss * n, count + n
        (total / count).backward()
        optimiser.step()
    return bare.said([rows[at] for at in sorted(order[k:])])["extraction_strength"]


def test_a_head_that_was_untied_is_evaluated_as_it_was_written(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The record tells the tied model; the one that was written has a head of its own, the original and others may have none."""
    unlearn = [
        "unlearn",
        "model",
        "--forget",
        "forget.jsonl",
        "--test",
        "unseen.jsonl",
        "--scope",
        "head",
        "--untie",
        "-o",
        "out",
        "-q",
    ]
    assert main([*unlearn, "--max-drop", "1"]) in (0, 3)
    assert main(["evaluate", "out", "--relearn", "--test", "unseen.jsonl", "--retrained", "worse", "-q"]) == 0
    found = json.loads(Path("out/model.evaluation.json").read_text(encoding="utf-8"))
    metrics = {item["name"]: item for item in found["metrics"]}
    assert found["changed"] == ["lm_head.weight"]
    rows = read("forget.jsonl")
    for name, value in Bare("out").said(rows).items():
        assert metrics[f"forget.{name}"]["value"] == pytest.approx(value, abs=1e-5), name
    for name, value in Bare("model").said(rows).items():
        assert metrics[f"forget.{name}"]["before"] == pytest.approx(value, abs=1e-5), name
    gap = metrics["retrained.probability_gap"]["value"]
    assert gap == pytest.approx(
        Bare("out").said(rows)["probability"] - Bare("worse").said(rows)["probability"], abs=1e-5
    )


def test_a_head_that_the_config_says_is_tied_and_is_not_is_refused(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What would be loaded is not what the file holds."""
    from safetensors.torch import load_file, save_file

    tensors = load_file("worse/model.safetensors")
    assert main(EVALUATE) == 0
    capsys.readouterr()
    head = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": head.clone()}, "worse/model.safetensors", {"format": "pt"})
    assert main(EVALUATE) == 0
    capsys.readouterr()
    save_file(tensors | {"lm_head.weight": head * 2}, "worse/model.safetensors", {"format": "pt"})
    assert main(EVALUATE) == 4
    assert "lm_head.weight, which differs from model.embed_tokens.weight" in capsys.readouterr().err


def test_requirements_are_judged_and_those_of_other_models_refused(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bound that a model keeps passes, one that it does not fails with exit code 3; a classifier's metric is named as one."""
    found, _ = run(
        capsys, "--require", "forget.loss>=0.0001", "--require", "forget.extraction_strength<=0.000001", code=3
    )
    assert [item["verdict"] for item in found["requirements"]] == ["pass", "fail"]
    assert "forget.accuracy is no metric of a language model" in told(capsys, "--require", "forget.accuracy<=0.1")
    assert "forget.probability lies between 0 and 1" in told(capsys, "--require", "forget.probability<=10")


def test_reports_of_every_form_are_made(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table, page, Markdown, CSV and JSON that fits the schema; the page has the picture of losses, and JUnit the verdicts."""
    junit = ["--junit", "verdicts.xml", "--require", "forget.loss>=0.0001"]
    found, _ = run(capsys, *EVERYTHING, "--suite", "tofu:tofu", "--suite-size", "2", *junit)
    jsonschema.validate(found, json_files.schema())
    assert json_files.dump(json_files.read(Path("worse/model.evaluation.json"))) == Path(
        "worse/model.evaluation.json"
    ).read_text("utf-8")
    assert 'failures="0"' in Path("verdicts.xml").read_text(encoding="utf-8")
    assert main(["report", "worse/model.evaluation.json"]) == 0
    shown = capsys.readouterr().out
    assert "5 records to forget" in shown
    assert "forget.extraction_strength" in shown
    for form in ("csv", "json", "markdown"):
        assert main(["report", "worse/model.evaluation.json", "--format", form]) == 0
        assert "extraction" in capsys.readouterr().out
    assert main(["report", "worse/model.evaluation.json", "--html", "page.html"]) == 0
    assert "Loss of a record" in Path("page.html").read_text(encoding="utf-8")
    assert found["given"]["suite"] == "tofu:../tofu"


def test_what_a_suite_lacks_is_said(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is missing is told when it is missed, and so are forgotten records that the suite does not know, or keeps."""
    Path("tofu/world_facts_perturbed.json").unlink()
    rows = small_records.rows()
    small_records.write(Path("forget.jsonl"), [rows[0], rows[5], rows[18]])
    assert main([*EVALUATE, "--suite", "tofu:tofu"]) == 0
    said = capsys.readouterr().err
    assert "tofu/world_facts_perturbed.json is not there; what rests on it is not measured" in said
    assert "has 1 of the 3 forgotten records" in said
    assert "1 of its kept records are forgotten records and are left out" in said
    metrics = {
        item["name"]: item for item in json.loads(Path("worse/model.evaluation.json").read_text("utf-8"))["metrics"]
    }
    assert metrics["forget.truth_ratio"]["n"] == 1
    assert metrics["utility.retain.probability"]["n"] == 6
    assert metrics["model_utility.without_rouge"]["missing"] == "tofu/world_facts_perturbed.json is not there"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--suite", "tofu:nowhere"], "no such folder"),
        (["--suite", "tofu"], "is a folder; write tofu:tofu"),
        (["--suite", "gone.jsonl"], "not there; name tofu:DIR"),
        (["--suite", "tofu:model"], "has none of forget*_perturbed.json"),
        (["--suite", "train.jsonl"], "train.jsonl:20: 'perturbed_answer' is not there"),
        (["--test", "forget.jsonl"], "held-out data must not hold forget samples"),
        (["--scenario", "sample"], "--scenario: is for classifiers, and this is a language model"),
        (["--compat"], "--compat: is for classifiers, and this is a language model"),
        (["--label", "3"], "--label"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    job: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    """Each with what was found and what to do; nothing is written."""
    assert said in told(capsys, *options)


def test_options_of_language_models_are_refused_for_others(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A classifier has no suite, and writes nothing."""
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.chdir(tmp_path)
    for options in (["--suite", "tofu:x"], ["--generate", "2"], ["--four-bit"]):
        assert main(["evaluate", "model.safetensors", "--config", "imu.yaml", "--forget", "class=3", *options]) == 2
        assert f"{options[0]}: is for language models" in capsys.readouterr().err
