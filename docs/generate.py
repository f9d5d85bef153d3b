"""Write the generated parts of the documentation: the command reference and the table of metrics.

``python docs/generate.py`` rewrites them, ``--check`` fails if they are not what the code says.
"""

import contextlib
import functools
import io
import json
import os
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comparison_tables as comparison

if TYPE_CHECKING:
    from imu_cli.records.definition import Definition

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
COMMANDS = (
    "influence", "unlearn", "evaluate", "report", "features", "demo", "inspect", "select", "convert",
    "cache", "cache ls", "cache show", "cache rm", "cache verify",
)  # fmt: skip


def help_of(command: str) -> str:
    """What ``imu COMMAND --help`` prints at 110 columns."""
    from imu_cli.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main([*command.split(), "--help"])
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def reference() -> str:
    """docs/cli.md."""
    parts = [
        "# Command reference\n\nGenerated from `imu --help` by `make docs`; do not edit.\n",
        f"## imu\n\n```text\n{help_of('')}\n```\n",
        *(f"## imu {name}\n\n```text\n{help_of(name)}\n```\n" for name in COMMANDS),
    ]
    return "\n".join(parts)


def metrics() -> str:
    """The table of metrics."""
    from imu_cli.records.metric_definitions import DEFINITIONS

    return _metrics(DEFINITIONS)


def retrieval_metrics() -> str:
    """The table of metrics of embedding models."""
    from imu_cli.records.retrieval_metrics import RETRIEVAL

    return _metrics(RETRIEVAL)


def recall_metrics() -> str:
    """The table of metrics of language models."""
    from imu_cli.records.recall_metrics import RECALL

    return _metrics(RECALL)


def _metrics(definitions: "Mapping[str, Definition]") -> str:
    from imu_cli.records.metric_definitions import NUMBERS

    lines = ["| name | what it is | better | unit | needs |", "|---|---|---|---|---|"]
    for name, item in definitions.items():
        unit = "number" if name in NUMBERS else "share"
        lines.append(f"| `{name}` | {item.text} | {item.better} | {unit} | {item.needs} |")
    return "\n".join(lines)


def _results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def class_table() -> str:
    """Every class at 0.5 %: rows that move × weights, from the raw results."""
    runs = [run for run in _results("quality_classes")["runs"] if not run["options"]]
    lines = [
        "| classes | rows | weights | steps | head change | retain (bound) | test kept (bound) |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        lines.append(
            f"| {', '.join(map(str, run['classes']))} | {run['rows']} | {run['weights']} | {run['steps']} | "
            f"{run['head_change']:.1%} | {run['retain']:.2%} ({run['retain_bound']:.2%}) | "
            f"{run['test']:.2%} ({run['test_bound']:.2%}) |"
        )
    return "\n".join(lines)


def fixed_rate_table() -> str:
    """Steps to the target at one fixed learning rate, from the raw results."""
    runs = [run for run in _results("quality_classes")["fixed_rate"] if run["rows"] == "forgotten"]
    lines = ["| class | weights | steps | head change |", "|---|---|---|---|"]
    for run in runs:
        named = ", ".join(map(str, run["classes"]))
        lines.append(f"| {named} | {run['weights']} | {run['steps']} | {run['head_change']:.1%} |")
    return "\n".join(lines)


def _ratio(values: Sequence[float]) -> str:
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.2f}{spread}"


def text_floor_table() -> str:
    """Whole runs on texts against tokenising and a bare forward, from the raw results."""
    found = _results("text_floor")
    bare, whole = (statistics.median(one["wall"] for one in found[name]) for name in ("bare", "whole"))
    stages = ", ".join(
        f"{name} {statistics.median(run.get(name, 0.0) for run in found['stages']):.1f} s"
        for name in found["stages"][0]
    )
    return "\n".join([
        "| texts | tokenising and bare forward | whole | whole ÷ bare: time | processor time | stages |",
        "|---|---|---|---|---|---|",
        f"| {found['texts']:,} | {bare:.1f} s | {whole:.1f} s | {_ratio(found['ratios'])} | {_ratio(found['cpu_ratios'])} | {stages} |",
    ])  # fmt: skip


def people_table() -> str:
    """What forgetting people of a re-identification model came to, run by run, from the raw results."""
    runs = _results("quality_people")["runs"]
    lines = [
        "| | people | seed | AUC before | after | reference to retrained | mAP forgotten | others' mAP | unseen people's mAP | ended by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        before, after, count = run["before"], run["after"], len(run["people"].split(","))
        lines.append(
            f"| {run['name']} | {count if count > 1 else run['people']} | {run['seed']} | {before['auc']:.3f} | {after['auc']:.3f} | "
            f"{run['reference']['auc']:.3f} to {run['retrained']['auc']:.3f} | {after['forget']:.4f} | "
            f"{after['others'] - before['others']:+.4f} | {after['unseen'] - before['unseen']:+.4f} | {run['reason']}, step {run['steps']} |"
        )
    return "\n".join(lines)


def floor_table() -> str:
    """Whole runs against bare forwards, and where images come from files against decoding and bare, from the raw results."""
    found = _results("floor")
    lines = [
        "| network, images from | command | bare forward | as imu runs it | decoding alone | whole | whole ÷ bare: time "
        "| processor time | ÷ (bare + decoding): time | processor time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in found["runs"]:
        bare, alone, whole = (
            statistics.median(one["wall"] for one in run[name]) for name in ("bare", "decoding", "whole")
        )
        fast = f"{run['fast'][0]['wall']:.1f} s" if run["fast"] else ""
        cells = [_ratio(run[name]) for name in ("ratios", "cpu_ratios", "disk_ratios", "disk_cpu_ratios")]
        lines.append(
            f"| {run['network']}, {run['source']} | `{run['command']}` | {bare:.1f} s | {fast} | {alone:.2f} s | {whole:.1f} s | "
            + " | ".join(cells)
            + " |"
        )
    again = found["cached_features"]
    lines.append(
        f"\nThe repeat from `--cache-features` ({again['network']}): {statistics.median(again['whole']):.2f} s."
    )
    return "\n".join(lines)


def images_table() -> str:
    """JPEGs from disk, and how quickly they decode, from the raw results."""
    found = _results("images")
    lines = [
        f"{found['images']} JPEGs, {found['batch_size']} at a time: whole ÷ bare {_ratio(found['ratios_wall'])} in time, "
        f"{_ratio(found['ratios_cpu'])} in processor time; ÷ (bare + decoding) {_ratio(found['disk_ratios_wall'])} and "
        f"{_ratio(found['disk_ratios_cpu'])}.\n",
        "| images a second, decoded and shaped | " + " | ".join(next(iter(found["decoded"].values()))) + " |",
        "|---|---|---|---|",
    ]
    for kind, rates in found["decoded"].items():
        lines.append(
            f"| {kind} | " + " | ".join(f"{statistics.median(values):,.0f}" for values in rates.values()) + " |"
        )
    return "\n".join(lines)


def scaling_table() -> str:
    """Fits of a + b·n, and stages against their products, from the raw results."""
    found = _results("scaling")
    judged = found["judged"]
    lines = [
        f"| stage | a | b, a sample | largest error of the fit | ÷ its own matrix products at n = {judged['n']:,}, "
        f"d = {judged['d']}, c = {judged['c']} |",
        "|---|---|---|---|---|",
    ]
    for stage, one in found["fits"].items():
        runs = judged["stages"][stage]
        ratio = _ratio([taken / other for taken, other in zip(runs["seconds"], runs["products"], strict=True)])
        lines.append(f"| {stage} | {1e3 * one['a']:.2f} ms | {1e6 * one['b']:.3f} µs | {one['worst']:.1%} | {ratio} |")
    return "\n".join(lines)


def sizes_table() -> str:
    """Seconds along classes and features, from the raw results."""
    lines = ["| n | d | c | scores | step | look |", "|---|---|---|---|---|---|"]
    axes = ("small n", "n", "c", "d")
    for one in sorted(_results("scaling")["sweep"], key=lambda one: axes.index(one["along"])):
        taken = (statistics.median(one["stages"][stage]["seconds"]) for stage in ("scores", "step", "look"))
        lines.append(
            f"| {one['n']:,} | {one['d']:,} | {one['c']:,} | " + " | ".join(f"{value:.3g} s" for value in taken) + " |"
        )
    return "\n".join(lines)


def memory_table() -> str:
    """Memory of whole runs, held and streamed, and of the largest file, from the raw results."""
    lines = ["| run | memory beyond a run on few samples | allowed |", "|---|---|---|"]
    for one in _results("memory")["memory"]:
        what = f"`{one['command']} --features`, {one['n']:,} x {one['d']}, {one['c']} classes, {one['how']}"
        lines.append(f"| {what} | {one['beyond'] / 1e6:,.0f} MB | {one['bound'] / 1e6:,.0f} MB |")
    largest = _results("scaling_huge")["huge"]
    what = f"`influence --features`, {largest['n']:,} x {largest['d']:,}, {largest['c']:,} classes, all of the process"
    lines.append(f"| {what}, {largest['seconds'] / 60:.0f} min | {largest['bytes'] / 1e6:,.0f} MB | 8,000 MB |")
    return "\n".join(lines)


def evaluation_table() -> str:
    """`imu evaluate` against the bare forwards over the same images, and the shadow heads, from the raw results."""
    found = _results("evaluation")
    ratio, cpu = (statistics.median(found[name]) for name in ("ratios", "cpu_ratios"))
    heads = sum(found["shadow_heads"][f"{stage} shadow heads"] for stage in ("fitting", "unlearning", "comparing"))
    spread = f"{min(found['ratios']):.2f} to {max(found['ratios']):.2f}"
    return "\n".join(
        [
            "| what | measured |",
            "|---|---|",
            f"| `imu evaluate` over the bare forwards, time, median of {len(found['ratios'])} | {ratio:.2f} ({spread}) |",
            f"| the same, processor time | {cpu:.2f} |",
            f"| 64 shadow heads on 64 features and 10 classes, beyond the features | {heads:.1f} s |",
        ]
    )


def references_table() -> str:
    """Reference and shadow heads of a hundred classes, from the raw results."""
    found = _results("references")
    names = {
        "before": "3 reference heads, as they were fitted before",
        "references": "reference heads",
        "shadows": "shadow heads",
    }
    lines = [
        "| heads | rows x features | passes a head | processor seconds | matrix products alone, float64 |",
        "|---|---|---|---|---|",
    ]
    for kind, name in names.items():
        lines += [
            f"| {name if kind == 'before' else str(one['heads']) + ' ' + name} | {one['n']:,} x {one['features']} | "
            f"{one['passes']:.0f} | {one['cpu']:.1f} | {one['products_alone']:.1f} |"
            for one in found["runs"][kind]
        ]
    return "\n".join(lines)


def _times(by_clock: dict[str, list[float]]) -> str:
    wall, cpu = by_clock["wall"], statistics.median(by_clock["cpu"])
    return (
        f"{statistics.median(wall):.1f} times quicker ({min(wall):.1f} to {max(wall):.1f}); in processor time {cpu:.1f}"
    )


def _published_phases(found: dict[str, Any]) -> Iterator[str]:
    """The published loop's phases: images a second, and the seconds of both readings of an epoch."""
    sizes = found["sizes"]
    named = {
        "fisher": "Fisher pass, batch size 1",
        "influence": "influence pass, batch size 1",
        "ascent": f"ascent, {sizes['epochs']} epochs, two forwards a step",
    }
    for phase, text in named.items():
        rate = statistics.median(found["images_per_second"][phase])
        ascended = [sizes["epochs"] * images for images in sizes["epoch_images"].values()]
        images = ascended if phase == "ascent" else [sizes["forget"]] * len(ascended)
        yield f"| published: {text} | {rate:.0f} | " + " | ".join(f"{count / rate:.0f} s" for count in images) + " |"


def published_table() -> str:
    """The published loop against whole runs of ``imu unlearn``, from the raw results."""
    found = _results("published")
    every, top = (f"{images:,.0f}" for images in found["sizes"]["epoch_images"].values())
    whole = (f"{statistics.median(seconds):.0f} s" for seconds in found["published_seconds"].values())
    lines = [
        f"| what | images a second | each epoch over all {every} images | over the top {top}, the published default |",
        "|---|---|---|---|",
        *_published_phases(found),
        f"| published loop, extrapolated | | {' | '.join(whole)} |",
    ]
    for precision, runs in found["unlearn"].items():
        if runs is not None:
            taken = statistics.median(run["spent"]["wall"] for run in runs)
            times = (_times(by_clock) for by_clock in found["times_quicker"][precision].values())
            rate = found["sizes"]["forget"] / taken
            lines.append(f"| all of `imu unlearn`, {precision}, {taken:.1f} s | {rate:.0f} | {' | '.join(times)} |")
    low = found["lower_precision"]
    rates, error = low["images_per_second"], low["estimated"]
    lines.append(
        f"\n`--precision bfloat16` on {low['images']} of the images{'' if found['bfloat16_native'] else ' (emulated here)'}: "
        f"{rates['bfloat16']:.0f} images a second against {rates['float32']:.0f} in float32; the scores are off by "
        f"{low['relative_rms']:.1%} of their root mean square, {low['sign_changed']} change sign. The record, which measures "
        f"{error['n']} of them, says {error['relative_rms']:.1%}, rank correlation {error['rank_correlation']:.3f}."
    )
    return "\n".join(lines)


ON_GPU = {
    "scores of a class, of the largest score": ("commands", "influence", "off"),
    "head that forgot a class, of its change": ("commands", "class", "off"),
    "head that forgot samples (matched), of its change": ("commands", "matched", "off"),
    "features of a ResNet-18, of the largest": ("models", "ResNet-18", "features_off"),
    "features of a ViT, of the largest": ("models", "ViT", "features_off"),
    "replay of a ResNet-18's head, of the largest logit": ("models", "ResNet-18", "replay_error"),
    "replay of a ViT's head, of the largest logit": ("models", "ViT", "replay_error"),
}
"""What a GPU's numbers are off by: phase, item and field of the raw results."""


def gpu_results() -> dict[str, Any]:
    """The run of everything, with those parts that were measured again in their place."""
    again = RESULTS / "on_gpu" / "again.json"
    return _results("on_gpu/results") | (_results("on_gpu/again") if again.is_file() else {})


def gpu_agreement() -> str:
    """What a GPU computes beside the CPU in float32, by precision, from the raw results."""
    found, precisions = gpu_results(), ("float32", "tf32", "bfloat16")
    lines = [f"| {found['gpu']}, off the CPU's float32 by | {' | '.join(precisions)} |", "|---|---|---|---|"]
    for what, (part, item, name) in ON_GPU.items():
        cells = (found[part][f"{item}, {precision}"][name] for precision in precisions)
        lines.append(f"| {what} | {' | '.join(f'{value:.1e}' for value in cells)} |")
    return "\n".join(lines)


def gpu_floor() -> str:
    """A whole pass with its scores over the bare forward on a GPU, from the raw results."""
    found = gpu_results()
    lines = [f"| {found['gpu']} | whole ÷ bare | images a second | bare |", "|---|---|---|---|"]
    for name, run in found["floor"].items():
        if "ratios" in run:
            lines.append(
                f"| {name} | {_ratio(run['ratios'])} | {run['images_a_second']:,} | {run['bare_images_a_second']:,} |"
            )
    return "\n".join(lines)


def coldstart_table() -> str:
    """Every command in a process of its own beside an import of torch, from the raw results."""
    runs = _results("coldstart")["runs"]
    lines = [
        "| process | time, median (range) | processor time | × `import torch`, median (range) | the same, processor time |",
        "|---|---|---|---|---|",
    ]
    bare = [one for run in runs for one in run["torch"]]
    lines.append(f"| `python -c 'import torch'` | {_both_clocks(bare)} | 1 | 1 |")
    for run in runs:
        ratios, cpu = run["ratios"], run["cpu_ratios"]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| `{run['command']}` | {_both_clocks(run['runs'])} | {spread} | {statistics.median(cpu):.2f} |")
    return "\n".join(lines)


def _both_clocks(runs: Sequence[dict[str, float]]) -> str:
    walls, cpus = ([run[clock] for run in runs] for clock in ("wall", "cpu"))
    spread = f"{min(walls):.2f} to {max(walls):.2f}"
    return f"{statistics.median(walls):.2f} s ({spread}) | {statistics.median(cpus):.2f} s"


SHOWN = {
    "class": ("forget.accuracy", "test_forgotten.accuracy", "test.accuracy", "test.accuracy_drop", "retain.accuracy",
              "mask_bound.retain", "recovery.k5", "probe.accuracy", "features.drift"),
    "samples": ("forget.accuracy", "test.accuracy_drop", "mia.auc", "mia.auc_two_sided", "forget.over_unlearned",
                "update_leak.auc", "probe.accuracy"),
}  # fmt: skip
"""Metrics of the worked example's two tables."""


def _worked(run: str) -> dict[str, Any]:
    return {item["name"]: item for item in _results("worked_example")["runs"][run]["metrics"]}


def _cells(item: dict[str, Any], name: str) -> list[str]:
    """Before, after, interval and target of a metric as reports show them."""
    from imu_cli.records.parts import Interval
    from imu_cli.views import words

    ends = None if item["interval"] is None else Interval(**item["interval"])
    target = "" if item["target"] is None else words.shown(name, item["target"])
    before = "" if item["before"] is None else words.shown(name, item["before"])
    return [before, words.shown(name, item["value"]), words.span(name, ends) or "census", target]


def worked_class() -> str:
    """The airplanes: every metric with its interval, n and target."""
    found = _worked("class")
    lines = ["| metric | before | after | 95 % interval | target | n |", "|---|---|---|---|---|---|"]
    for name in SHOWN["class"]:
        lines.append(f"| `{name}` | {' | '.join(_cells(found[name], name))} | {found[name]['n']:,} |")
    return "\n".join(lines)


def worked_samples() -> str:
    """Three runs on random samples beside the original: what each metric says of them."""
    runs = {name: _worked(name) for name in ("matched", "driven", "few")}
    lines = ["| metric | target | matched, 5,000 | driven, 5,000 | few, 37 |", "|---|---|---|---|---|"]
    for name in SHOWN["samples"]:
        cells = [_cells(found[name], name) for found in runs.values()]
        said = (after if span == "census" else f"{after} ({span})" for _, after, span, _ in cells)
        lines.append(f"| `{name}` | {cells[0][3]} | {' | '.join(said)} |")
    return "\n".join(lines)


def worked_said() -> str:
    """The first paragraph of each report."""
    runs = _results("worked_example")["runs"]
    return "\n".join(f"* **{name}**: {runs[name]['summary']}" for name in ("class", "matched", "driven", "few"))


def worked_gates() -> str:
    """The gates on the unlearned model and on the original."""
    runs = _results("worked_example")["runs"]
    lines = ["| gate | airplanes unlearned | the original as if unlearned |", "|---|---|---|"]
    for mine, theirs in zip(runs["class"]["requirements"], runs["original"]["requirements"], strict=True):
        lines.append(f"| `{mine['text']}` | {mine['verdict']} | {theirs['verdict']} |")
    lines.append(f"| exit code | {runs['class']['exit_code']} | {runs['original']['exit_code']} |")
    return "\n".join(lines)


def _head_of(run: dict[str, Any]) -> str:
    head = run["head"]
    return f"`{head['module']}`, {head['features']}{' + 1' * head['bias']}"


def models_table() -> str:
    """Every architecture that was tried, from the raw results."""
    lines = ["| library | model | outcome | head | steps |", "|---|---|---|---|---|"]
    for run in _results("compatibility")["runs"]:
        shown = "".join(
            f" `{key}={value}`" for key, value in run["arguments"].items() if run["library"] == "torchvision"
        )
        last = (
            f"{_head_of(run)} | {run['steps']}{', target not met' * (run['code'] == 3)}"
            if run["outcome"] == "works"
            else " | "
        )
        lines.append(f"| {run['library']} | {run['name']}{shown} | {run['outcome']} | {last} |")
    return "\n".join(lines)


def models_summary() -> str:
    """How many architectures of each library work and are refused, from the raw results."""
    runs = _results("compatibility")["runs"]
    lines = ["| library | works | refused | neither |", "|---|---|---|---|"]
    for library in dict.fromkeys(run["library"] for run in runs):
        outcomes = [run["outcome"] for run in runs if run["library"] == library]
        lines.append(
            f"| {library} | " + " | ".join(str(outcomes.count(word)) for word in ("works", "refused", "fails")) + " |"
        )
    return "\n".join(lines)


def text_models_table() -> str:
    """Every text classifier that was tried, from the raw results."""
    lines = ["| model | outcome | head | steps | reason |", "|---|---|---|---|---|"]
    for run in _results("text_compatibility")["runs"]:
        works = run["outcome"] == "works"
        last = (
            f"{_head_of(run)} | {run['steps']}{', target not met' * (run['code'] == 3)} | "
            if works
            else f" | | {_reason(run)}"
        )
        lines.append(f"| {run['name']} | {run['outcome']} | {last} |")
    return "\n".join(lines)


def _reason(run: dict[str, Any]) -> str:
    """Why it was refused, up to the first comma of the message."""
    return str(run["said"]).removeprefix("imu: model: ").split(" (by up to")[0]


SPREAD = ("forget", "retain", "retain_drop", "test_drop")


def _spread(runs: Sequence[dict[str, Any]], name: str, scale: float = 100, digits: int = 2) -> str:
    values = [scale * run[name] for run in runs]
    around = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{around}"


def _by_method(name: str, part: str) -> Iterator[tuple[int, str, list[dict[str, Any]]]]:
    """Runs of one size and method over their seeds, the original first."""
    found = _results(name)
    runs = [*found["before"], *found[part]]
    for n in sorted({run["n"] for run in runs}):
        for method in dict.fromkeys(run["method"] for run in runs):
            yield n, method, [run for run in runs if (run["n"], run["method"]) == (n, method)]


def samples_table(name: str, part: str) -> str:
    """Random samples by size and method, mean ± standard deviation over the seeds, from the raw results."""
    lines = [
        "| n | method | reached | forget % | retain % | fall of retain | fall of test | AUC |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for n, method, runs in _by_method(name, part):
        reached = "" if method == "original" else f"{sum(run['reached'] for run in runs)} of {len(runs)}"
        cells = " | ".join(_spread(runs, column) for column in SPREAD)
        lines.append(f"| {n:,} | {method} | {reached} | {cells} | {_spread(runs, 'auc', 1, 3)} |")
    return "\n".join(lines)


def frontier_table(name: str, n: int) -> str:
    """Retained accuracy and fall of test accuracy at each level of forgetting that a method reached."""
    runs = [run for run in _results(name)["frontier"] if run["n"] == n and run["reached"]]
    methods = list(dict.fromkeys(run["method"] for run in runs))
    lines = [f"| n = {n:,}: forget at most | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for goal in sorted({run["goal"] for run in runs}, reverse=True):
        cells = []
        for method in methods:
            those = [run for run in runs if (run["goal"], run["method"]) == (goal, method)]
            cells.append(f"{_spread(those, 'retain')}; {_spread(those, 'test_drop')}" if those else "–")
        lines.append(f"| {goal:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def depth_table() -> str:
    """Random samples where the last block moves: means and spread over the runs that were made, from the raw results."""
    lines = [
        "| n | weights | runs | forget | unseen, under that model | retain before → after | fall of test, points | AUC before → after | steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    files = {"quality_depth": "uniform", "quality_depth_5000": "uniform", "quality_depth_influence": "influence"}
    runs = [{**run, "weights": by} for name, by in files.items() for run in _results(name)["samples"]]
    for n, by in sorted(
        {(run["n"], run["weights"]) for run in runs}, key=lambda case: (case[0], case[1] == "influence")
    ):
        those = [run for run in runs if (run["n"], run["weights"]) == (n, by)]
        mean = {
            f"{when}.{name}": statistics.mean(run[when][name] for run in those)
            for when in ("before", "after")
            for name in those[0][when]
        }
        steps = ", ".join(str(run["steps"]) for run in those)
        lines.append(
            f"| {n:,} | {by} | {len(those)} | {mean['after.forget']:.2%} | {mean['after.unseen']:.2%} | {mean['before.retain']:.2%} → "
            f"{mean['after.retain']:.2%} | {100 * mean['after.drop']:.2f} | {mean['before.auc']:.3f} → {mean['after.auc']:.3f} | {steps} |"
        )
    return "\n".join(lines)


def sequences_table() -> str:
    """Two Markov chains, one of them forgotten: cross-entropy and KL to the retrained model by chain, from the raw results."""
    runs = _results("sequences")["runs"]
    chains = list(runs[0]["figures"])
    lines = ["| model | seeds | " + " | ".join(chains) + " |", "|---" * (2 + len(chains)) + "|"]
    for row in dict.fromkeys(run["row"] for run in runs):
        those = [run["figures"] for run in runs if run["row"] == row]
        cells = (
            f"{_spread([run[chain] for run in those], 'loss', 1)} ({_spread([run[chain] for run in those], 'kl', 1, 3)})"
            for chain in chains
        )
        lines.append(f"| {row} | {len(those)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tofu_table() -> str:
    """Ten authors of TOFU forgotten, row by row, from the raw results."""
    rows = comparison.tofu_rows()
    if not rows:
        return "Not measured here yet."
    sides = ("forget", "unseen", "kept", "paraphrased")
    names = ("loss", "probability", "exact_memorization", "extraction_strength")
    lines = [
        f"| model | judged | {' | '.join(sides)} | truth ratio | forget quality: p (distance) | utility without ROUGE |",
        "|---" * (len(sides) + 5) + "|",
    ]
    for row in rows:
        found = row["figures"]
        cells = [", ".join(f"{found[side][name]['value']:.3f}" for name in names) for side in sides]
        quality, utility = found.get("forget_quality"), found.get("utility_without_rouge")
        cells += [
            f"{found['truth_ratio']['value']:.3f}",
            f"{quality['p']:.2g} ({quality['distance']:.2f})" if quality else "",
            f"{utility['value']:.3f}" if utility else "",
        ]
        counts = ", ".join(f"{found[side]['loss']['n']:.0f}" for side in sides)
        name = row["row"] if row["seeds"] == 1 else f"**{row['row']}**, mean of {row['seeds']} seeds"
        lines.append(f"| {name} | {counts} | {' | '.join(cells)} |")
    lines.append(
        "\nEach cell: cross-entropy in nats a token, probability, exact memorisation, extraction strength; means over so many records "
        f"({', '.join(sides)}) as *judged* says. Truth ratio and forget quality are over as many questions as forgotten records, the "
        "latter against the retrained model's of the same questions."
    )
    return "\n".join(lines)


def mislabelled_table() -> str:
    """Wrong labels by method, means over the seeds, from the raw results."""
    runs = _results("quality_mislabelled")["runs"]
    lines = [
        "| method | forget, predicted as the wrong label % | as the true one % | other images % | test % |",
        "|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(run["method"] for run in runs):
        those = [run for run in runs if run["method"] == method]
        cells = " | ".join(_spread(those, name) for name in ("wrong", "true", "retain", "test"))
        lines.append(f"| {method} | {cells} |")
    return "\n".join(lines)


def matched_cost_table() -> str:
    """Time and memory of the whole path, from the raw results."""
    lines = [
        "| 512 features, 10 classes | values of ρ | seconds | processor seconds | peak memory | forget before, after | ended by |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in _results("matched_cost")["runs"]:
        lines.append(
            f"| {run['name']} | {run['points']} | {run['seconds']:.1f} | {run['processor_seconds']:.1f} | "
            f"{run['peak_gibibytes']:.2f} GiB | {run['forget_before']:.2%}, {run['forget']:.2%} | `{run['reason']}` |"
        )
    return "\n".join(lines)


def with_block(text: str, name: str, body: str) -> str:
    """The text with what stands between the markers of this name replaced."""
    start, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    head, _, rest = text.partition(start)
    _, _, tail = rest.partition(end)
    return f"{head}{start}\n{body}\n{end}{tail}"


def compared(part: str) -> str:
    """Every method of a scenario, who comes nearest, and what is not there."""
    said = (comparison.table(part), comparison.smallest(part), comparison.missing(part))
    return "\n\n".join(one for one in said if one)


COMPARED = ("airplanes", "random5000", "random500", "random37")
BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"comparison": comparison.readme},
    "comparison.md": {
        **{part: functools.partial(compared, part) for part in (*COMPARED, "wrong_labels")},
        "nine": comparison.nine,
        "repeated": comparison.repeated,
        "settings": comparison.settings,
    },
    "evaluation.md": {
        "metrics": metrics,
        "recall metrics": recall_metrics,
        "worked class": worked_class,
        "worked samples": worked_samples,
        "worked said": worked_said,
        "worked gates": worked_gates,
    },
    "people.md": {"metrics": retrieval_metrics, "people": people_table},
    "models.md": {"summary": models_summary, "models": models_table, "text models": text_models_table},
    "performance.md": {
        "floor": floor_table,
        "text floor": text_floor_table,
        "images": images_table,
        "scaling": scaling_table,
        "sizes": sizes_table,
        "memory": memory_table,
        "published": published_table,
        "evaluation": evaluation_table,
        "references": references_table,
        "coldstart": coldstart_table,
        "gpu agreement": gpu_agreement,
        "gpu floor": gpu_floor,
    },
    "language.md": {"tofu": tofu_table},
    "method.md": {
        "classes": class_table,
        "fixed rate": fixed_rate_table,
        "samples": functools.partial(samples_table, "quality_samples", "within_max_drop"),
        "depth": depth_table,
        "samples frontier": functools.partial(frontier_table, "quality_samples", 500),
        "wide": functools.partial(samples_table, "quality_wide", "to_held_out_level"),
        "matched cost": matched_cost_table,
        "mislabelled": mislabelled_table,
        "sequences": sequences_table,
    },
}
"""Generated blocks of each page."""


def made() -> dict[Path, str]:
    """Every generated file with what it should hold."""
    pages: dict[Path, str] = {DOCS / "cli.md": reference()}
    pages |= {DOCS / "comparison" / f"{part}.svg": comparison.picture(part) for part in COMPARED}
    for path in [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]:
        page, blocks = path.name, BLOCKS.get(path.name, {})
        text = path.read_text(encoding="utf-8")
        marked = re.findall("<!-- begin (.*) -->", text)
        if sorted(marked) != sorted(blocks):  # a table that nobody makes stays empty without a word
            raise ValueError(f"{page}: has the blocks {sorted(marked)}, made are {sorted(blocks)}")
        for name, body in blocks.items():
            text = with_block(text, name, body())
        if blocks:
            pages[path] = text
    return pages


def main() -> int:
    """Write, or with ``--check`` compare."""
    os.environ |= {"COLUMNS": "110", "TERMINAL_WIDTH": "110", "NO_COLOR": "1"}
    stale = [path for path, text in made().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(DOCS.parent)}: not what the code says; run make docs")
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(made()[path], encoding="utf-8")
        print(f"wrote {path.relative_to(DOCS.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
