"""The worked example of docs/evaluation.md: what `imu evaluate` says of five models, of which one only should please.

CIFAR-10, the shared ResNet-20, through the commands as a user gives them:

* *class*: all airplanes forgotten with the defaults: gone from the outputs, still in the features;
* *matched*: 5,000 images at random, to what unseen images look like: as far as --max-drop allows;
* *driven*: the same images by plain ascent as low as it goes in 100 steps: the model is ruined, and that is said;
* *few*: 37 images at random, pushed to 0 one by one by matched unlearning: given away by it, and the model damaged;
* *original*: the model as it was, evaluated as if the airplanes were forgotten: it must fail every gate.

Keeps the figures, and with --keep DIR the records, the evaluations and the HTML report.
"""

import contextlib
import io
import random
from pathlib import Path
from typing import Any

import common
import torch
import yaml
from common import Criterion

from imu_cli.cli import main as imu
from imu_cli.records.evaluation import Evaluation
from imu_cli.records.json_files import read

GATES = ("forget.accuracy<=0.005", "test_forgotten.accuracy<=0.02", "test.accuracy_drop<=0.01")
SAMPLES = {"random": 5000, "few": 37}


def run(words: list[str], expected: tuple[int, ...] = (0,)) -> int:
    """One command, its tables thrown away; an exit code that was not expected ends the benchmark."""
    common.console.print(f"$ imu {' '.join(words)}", style="dim")
    with contextlib.redirect_stdout(io.StringIO()):
        code = imu(words)
    if code not in expected:
        raise SystemExit(f"imu {' '.join(words)}: exit code {code}, expected {expected}")
    return code


def choose(name: str) -> list[str]:
    """``--forget`` with a manifest of images drawn at random, the same each time."""
    rows = sorted(random.Random(0).sample(range(50_000), SAMPLES[name]))
    path = Path(f"{name}.csv")
    path.write_text("index\n" + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return ["--forget", str(path)]


def evaluations(quick: bool) -> dict[str, tuple[Evaluation, int]]:
    """Every evaluation with the exit code of its command, in the current folder."""
    model, data = str(common.checkpoint()), common.batches()
    retain = [] if quick else ["--retain", data]
    settings = {"arch": common.architecture(), "preprocess": common.PREPROCESS, "data": data, "device": "cpu"}
    Path("imu.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    config, test = ["--config", "imu.yaml", "--quiet"], ["--test", f"{data}#test"]
    airplanes, chosen, few = ["--forget", "class=airplane"], choose("random"), choose("few")
    run(["unlearn", model, *config, *airplanes, "-o", "class.safetensors"])
    run(["unlearn", model, *config, *chosen, *test, "-o", "matched.safetensors"], (0, 3))
    down = ["--until", "forget.accuracy<=0", "--max-drop", "1"]
    ascent = ["--method", "imu", "--max-steps", "100"]
    run(["unlearn", model, *config, *chosen, *test, *down, *ascent, "-o", "driven.safetensors"], (0, 3))
    run(["unlearn", model, *config, *few, *test, *down, "--method", "matched", "-o", "few.safetensors"], (0, 3))
    gates = [word for gate in GATES for word in ("--require", gate)]
    codes = {
        name: run(["evaluate", f"{name}.safetensors", *config, *test, *more], (0, 3, 5))
        for name, more in (("class", [*retain, *gates]), ("matched", []), ("driven", []), ("few", []))
    }
    original = ["--original", model, "--scenario", "class", "-o", "original.evaluation.json", *gates]
    codes["original"] = run(["evaluate", model, *config, *airplanes, *test, *original], (0, 3, 5))
    run(["report", *(f"{name}.evaluation.json" for name in codes), "--html", "report.html"])
    found: dict[str, tuple[Evaluation, int]] = {}
    for name, code in codes.items():
        made = read(Path(f"{name}.evaluation.json"))
        assert isinstance(made, Evaluation)
        found[name] = made, code
    return found


def figures(made: Evaluation, code: int) -> dict[str, Any]:
    """What the page shows of an evaluation."""
    return {
        "exit_code": code,
        "summary": made.summary,
        "metrics": [
            item.model_dump(include={"name", "value", "before", "n", "interval", "target", "target_range", "census"})
            for item in made.metrics
            if item.missing is None
        ],
        "requirements": [item.model_dump(include={"text", "verdict"}) for item in made.requirements],
    }


def criteria(found: dict[str, tuple[Evaluation, int]]) -> list[Criterion]:
    """What an evaluation that cannot fool its user has to say of these models."""
    values = {name: {m.name: m for m in made.metrics} for name, (made, _) in found.items()}
    said = {name: made.summary for name, (made, _) in found.items()}
    forgetting = [item.verdict for item in found["original"][0].requirements if "forg" in item.metric]
    gone, few = values["class"], values["few"]
    over = few["forget.over_unlearned"]
    assert over.interval is not None
    assert over.target_range is not None
    auc = few["mia.auc_two_sided"].value or 0.0
    return [
        common.at_most("class: forget accuracy", gone["forget.accuracy"].value or 0.0, 0.005),
        common.at_least("class: recovery from 5 shots", gone["recovery.k5"].value or 0.0, 0.95),
        common.at_least("class: linear probe", gone["probe.accuracy"].value or 0.0, 0.8),
        _says("class: the features still hold it", said["class"], "features still hold"),
        _says("driven: called damage", said["driven"], "DAMAGE, not forgetting"),
        _says("few: called damage", said["few"], "DAMAGE, not forgetting"),
        Criterion("few: over-unlearned beyond chance", "yes", f"{over.value:.3f}", over.interval.low > over.target_range.high),
        Criterion("few: two-sided AUC", "> 0.55", f"{auc:.3f}", auc > 0.55),
        Criterion("original: fails every forgetting gate", "fail", ", ".join(forgetting), set(forgetting) == {"fail"}),
        Criterion("original: exit code", "3", str(found["original"][1]), found["original"][1] == 3),
    ]  # fmt: skip


def _says(what: str, summary: str, words: str) -> Criterion:
    return Criterion(what, f"“{words}”", "said" if words in summary else "not said", words in summary)


def main() -> None:
    """Run, keep, judge."""
    parser = common.parser(__doc__)
    parser.add_argument("--keep", type=Path, help="a folder for records, evaluations and the HTML report")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = common.environment()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    place = contextlib.nullcontext(options.keep.resolve()) if options.keep else common.folder("worked")
    with place as folder, contextlib.chdir(folder):
        found = evaluations(options.quick)
    checked = criteria(found)
    runs = {name: figures(*made) for name, made in found.items()}
    for name, made in runs.items():
        common.console.print(f"\n[bold]{name}[/bold]: {made['summary']}")
    common.keep("worked_example", options.quick, {"runs": runs, "criteria": common.verdicts(checked)}, started)
    common.stop(checked)


if __name__ == "__main__":
    main()
