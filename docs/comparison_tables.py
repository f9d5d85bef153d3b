"""What docs/comparison.md and the README say of ``benchmarks/compare.py``, from its raw rows: tables, sentences and pictures."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
TITLES = {
    "original": "original",
    "retrained": "**retrained**",
    "imu_head": "**`imu unlearn`**",
    "imu_last_block": "**`imu unlearn --scope last-block`**",
    "published_imu": "published IMU, uncorrected",
    "published_imu_corrected": "published IMU, corrected",
    "gradient_ascent": "gradient ascent",
    "random_labels": "random labels",
    "npo": "NPO",
    "simnpo": "SimNPO",
    "boundary_shrink": "boundary shrink",
    "delete": "DELETE",
    "fine_tuning": "fine-tuning",
    "neggrad_plus": "NegGrad+",
    "salun": "SalUn",
    "ssd": "SSD",
    "lotus": "LoTUS",
    "scrub": "SCRUB",
}
OURS = ("imu_head", "imu_last_block")
FIXED = ("original", "retrained")
PARTS = {
    "airplanes": "All 5,000 airplanes",
    "random5000": "5,000 random images",
    "random500": "500 random images",
    "random37": "37 random images",
    "wrong_labels": "500 wrong labels",
}
COLUMNS = {
    "airplanes": ("forget", "retain", "test", "probe"),
    "wrong_labels": ("forget", "true", "retain", "test"),
}
SAMPLES = ("forget", "retain", "test", "auc_two_sided", "over_unlearned", "probe")
HEADS = {
    "forget": "forget", "retain": "retain", "test": "test", "probe": "probe", "true": "true label", "auc_two_sided": "AUC",
    "over_unlearned": "over-unlearned",
}  # fmt: skip
NEEDS = {"retain": "retain", "unseen": "unseen"}


def rows(name: str = "comparison", kind: str = "run") -> list[dict[str, Any]]:
    """Raw rows of a kind."""
    path = RESULTS / f"{name}.jsonl"
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return [row for row in found if row["kind"] == kind]


def by_method(part: str) -> dict[str, list[dict[str, Any]]]:
    """Rows of a part over their seeds, the original and the retrained model first, then by gap."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows():
        if row["part"] == part:
            found.setdefault(row["method"], []).append(row)
    if part == "random5000" and "imu_last_block" not in found:
        found |= measured_before()
    order = sorted(found, key=lambda name: (FIXED.index(name) if name in FIXED else 2, gap(found[name]) or 0.0))
    return {name: found[name] for name in order}


def measured_before() -> dict[str, list[dict[str, Any]]]:
    """The deeper scope on the random 5,000 as ``quality_depth.py`` has it: the same training, halves and gap, every fifth retained image."""
    runs = (_json("quality_depth_many") or {}).get("random5000", {}).get("runs", [])
    made = [
        {"gap": run["gap"], "seed": run["seed"], "needs": ["unseen"], "elsewhere": True,
         "figures": run["after"] | {"auc_two_sided": max(run["after"]["auc"], 1 - run["after"]["auc"])}}
        for run in runs
    ]  # fmt: skip
    return {"imu_last_block": made} if made else {}


def gap(of: Rows) -> float | None:
    """Mean gap over the seeds."""
    values = [row["gap"] for row in of if row["gap"] is not None]
    return statistics.mean(values) if values else None


def undone(part: str, seed: int) -> float | None:
    """The original's own gap: what doing nothing comes to."""
    there = {row["method"]: row["figures"] for row in rows() if (row["part"], row["seed"]) == (part, seed)}
    before = there["original"]
    aim = there.get("retrained") or ({**before, "forget": before["unseen"], "auc": 0.5} if "unseen" in before else None)
    over = COLUMNS.get(part, ("forget", "retain", "test", "auc"))
    return None if aim is None else 100 * statistics.mean(abs(before[name] - aim[name]) for name in over)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean, and standard deviation where there are several."""
    around = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{around}"


def needs(row: Mapping[str, Any]) -> str:
    """Data beyond the forget set."""
    return ", ".join(NEEDS[name] for name in row.get("needs", [])) or "none"


def table(part: str) -> str:
    """Every method of a part."""
    columns, found = COLUMNS.get(part, SAMPLES), by_method(part)
    if not found:
        return f"Not run yet: `python benchmarks/compare.py --parts {part}`."
    heads = " | ".join(HEADS[name] for name in columns)
    lines = [
        f"| method | gap | {heads} | other data | processor s | images forward | seeds |",
        f"|---|{'---|' * (len(columns) + 5)}",
    ]
    for name, of in found.items():
        cells = []
        for column in columns:
            scale, digits = (1, 3) if column == "auc_two_sided" else (100, 2)
            known = [scale * row["figures"][column] for row in of if column in row["figures"]]
            cells.append(spread(known, digits) if known else "")
        own = [undone(part, row["seed"]) if name == "original" else row["gap"] for row in of]
        own = [value for value in own if value is not None]
        cost = [row["seconds"] for row in of if "seconds" in row]
        passes = [max(row["below"], row["above"]) for row in of if "below" in row]
        lines.append(
            f"| {TITLES[name]}{' (`quality_depth.py`)' * ('elsewhere' in of[0])} | {spread(own) if own else ''} "
            f"| {' | '.join(cells)} | "
            f"{'' if name == 'original' else needs(of[0])} | {f'{statistics.mean(cost):.0f}' if cost else ''} | "
            f"{f'{statistics.mean(passes):,.0f}' if passes else ''} | {len(of)} |"
        )
    return "\n".join(lines)


def smallest(part: str) -> str:
    """Who comes nearest, with and without retain data, and how far ours is from it."""
    gaps = {name: gap(of) for name, of in by_method(part).items() if name not in FIXED}
    known = {name: value for name, value in gaps.items() if value is not None}
    without = [name for name in known if "retain" not in by_method(part)[name][0].get("needs", [])]
    mine = [name for name in OURS if name in known]
    if not mine:
        return ""
    best, ours, every = (min(some, key=lambda name: known[name]) for some in (without, mine, known))
    said = f"Nearest without retain data: {TITLES[best]}, {known[best]:.2f} points"
    if best not in OURS:
        said += f"; ours is {known[ours] - known[best]:.2f} points behind ({TITLES[ours]}, {known[ours]:.2f})"
    else:
        others = [name for name in without if name not in OURS]
        if others:
            second = min(others, key=lambda name: known[name])
            said += f"; of the others {TITLES[second]}, {known[second]:.2f}"
    if every != best:
        said += f". With retain data {TITLES[every]} comes nearer: {known[every]:.2f}"
    beaten = [name for name in known if name not in OURS and known[name] < known[ours]]
    named = ", ".join(f"{TITLES[name]} ({known[name]:.2f})" for name in beaten)
    if set(known) <= set(OURS):
        return f"{said}. Nothing else has been run here."
    return f"{said}. " + (f"Nearer than ours: {named}." if beaten else "No method that was run comes nearer than ours.")


def missing(part: str) -> str:
    """Methods without a row in this part, and the command that makes them."""
    found = by_method(part)
    names = [name for name in TITLES if name not in found and name not in FIXED]
    if not found or not names:
        return ""
    titles = ", ".join(TITLES[name].replace("**", "") for name in names)
    return f"Not run yet: {titles} (`python benchmarks/compare.py --parts {part}` goes on where it stopped)."


def settings() -> str:
    """What was chosen for each method and part, of how many trials."""
    trials = rows("comparison_trials", "trial")
    lines = [
        "| scenario | method | trials | rate | steps | coefficient | at the longest tried |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows("comparison_trials", "chosen"):
        mine = [one for one in trials if (one["part"], one["method"]) == (row["part"], row["method"])]
        longest = "yes" if row["steps"] == max(one["steps"] for one in mine) else ""
        lines.append(
            f"| {PARTS[row['part']].lower()} | {TITLES[row['method']]} | {len(mine)} | {row['rate']:g} | {row['steps']} | "
            f"{row['strength']:g} | {longest} |"
        )
    return "\n".join(lines)


SPECIFIED = {5: {"forget": 0.5, "retain": 91.8, "test": 85.5}, 10: {"retain": 88.0, "test": 82.3}}
"""What ../shared/spec/measurements.md says of the published code, in percent, by epochs."""
BORDERS = {"mean": "mean colour", "black": "black"}


def _repeats(border: str, epoch: int) -> list[dict[str, float]]:
    """Figures in percent of the published loop after so many epochs, one entry a seed."""
    of = [row for row in rows(kind="published") if (row["border"], row["epoch"]) == (border, epoch)]
    return [{name: 100 * value for name, value in row["figures"].items()} for row in of]


def repeated() -> str:
    """The published loop, by what its crops see beyond the image, beside what the specification measured of it."""
    lines = ["| epochs | beyond the image | forget | retain | test, kept | seeds |", "|---|---|---|---|---|---|"]
    for epoch, was in SPECIFIED.items():
        cells = " | ".join(f"{was[name]}" if name in was else "" for name in ("forget", "retain", "test"))
        lines.append(f"| {epoch} | specification | {cells} | |")
        for border, title in BORDERS.items():
            of = _repeats(border, epoch)
            if of:
                cells = " | ".join(spread([row[name] for row in of]) for name in ("forget", "retain", "test"))
                lines.append(f"| | {title} | {cells} | {len(of)} |")
    return "\n".join([*lines, "", *(_off(border) for border in BORDERS)])


def _off(border: str) -> str:
    """How far a border's means are from the specification, in points and in the spread of its seeds."""
    points, spreads = [], []
    for epoch, was in SPECIFIED.items():
        of = _repeats(border, epoch)
        for name, value in was.items() if len(of) > 1 else ():
            values = [row[name] for row in of]
            points.append(abs(statistics.mean(values) - value))
            spreads.append(points[-1] / max(statistics.stdev(values), 1e-9))
    if not points:
        return f"Not run with {BORDERS[border]}."
    return (
        f"With {BORDERS[border]} the means are off from the specification by up to {max(points):.1f} points "
        f"({statistics.mean(points):.1f} in the mean), up to {max(spreads):.1f} standard deviations of the seeds."
    )


def figure_of(part: str, method: str, name: str) -> str:
    """A mean in percent, or that there is none."""
    of = by_method(part).get(method, [])
    return f"{100 * statistics.mean(row['figures'][name] for row in of):.2f}" if of else "not run"


def _json(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def against_uniform() -> str:
    """Retained accuracy of influence weights over uniform ones at equal forgetting, all rows moving, mean over the classes."""
    found = _json("quality_classes")
    assert found is not None
    runs = [run for run in found["runs"] if not run["options"] and run["rows"] == "all"]
    by: dict[str, dict[str, float]] = {}
    for run in runs:
        by.setdefault(str(run["classes"]), {})[run["weights"]] = run["retain"]
    ratios = [one["influence"] / one["uniform"] - 1 for one in by.values() if {"influence", "uniform"} <= set(one)]
    return f"{100 * statistics.mean(ratios):+.2f} % retained accuracy over {len(ratios)} cases" if ratios else "not run"


def people() -> str:
    """Mean mAP of forgotten people before and after, over runs on a group."""
    found = _json("quality_people")
    assert found is not None
    runs = [run for run in found["runs"] if run["name"] == "unseen people only"]
    mean = [statistics.mean(run[when]["forget"] for run in runs) for when in ("before", "after", "retrained")]
    auc = [statistics.mean(run[when]["auc"] for run in runs) for when in ("before", "after", "retrained")]
    return (
        f"mAP of forgotten people {mean[0]:.3f} → {mean[1]:.3f} (retrained {mean[2]:.3f}), membership AUC {auc[0]:.2f} → {auc[1]:.2f} "
        f"(retrained {auc[2]:.2f}), {len(runs)} seeds"
    )


def later(name: str) -> str:
    """What a results file of another benchmark says of itself, or that there is none."""
    return f"see [its raw results](../benchmarks/results/{name}.json)" if _json(name) else "not measured here yet"


def sequences() -> tuple[str, str]:
    """Cross-entropy of the forgotten chain: published loop, and ours at the last block; what it is held against is in both."""
    found = _json("sequences")
    if found is None:
        return "not run", later("sequences")
    by: dict[str, list[float]] = {}
    for run in found["runs"]:
        by.setdefault(run["row"], []).append(run["figures"]["forget1"]["loss"])
    ours = next((row for row in by if row.startswith("ours, last block") and "unseen chain" in row), None)
    said = f"before {spread(by['before'])}, retrained {spread(by['retrained: the target'])}"
    return (
        f"{spread(by['published'])} on Markov chains ({said}); the published scores are those of a network before its weights are loaded",
        later("sequences") if ours is None else f"{spread(by[ours])} on the same",
    )


TOFU_ROWS = (
    "before", "retrained", "never fine-tuned", "ours", "gradient ascent", "NPO", "SimNPO", "published update",
)  # fmt: skip
"""Rows of ``benchmarks/language.py``, in the order of the table."""


def tofu_rows() -> Rows:
    """The rows of the TOFU benchmark in order, of each those that judge the most records, means over seeds; none where it has not run."""
    found = _json("language")
    rows = [] if found is None else found["rows"]
    made = []
    for name in sorted({row["row"] for row in rows}, key=lambda name: (*TOFU_ROWS, name).index(name)):
        those = [row for row in rows if row["row"] == name]
        finest = sorted(
            (row for row in those if row["every"] == min(one["every"] for one in those)),
            key=lambda row: row.get("seed") or 0,
        )
        made.append({"row": name, "seeds": len(finest), "figures": _mean([row["figures"] for row in finest])})
    return made


def _mean(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Means of what all of them have, number by number; of what one lacks, those of the first."""
    first = figures[0]
    if len(figures) == 1:
        return first
    return {
        key: _mean([one[key] for one in figures])
        if isinstance(value, dict) and all(key in one for one in figures)
        else sum(one[key] for one in figures) / len(figures)
        if isinstance(value, int | float) and all(key in one for one in figures)
        else value
        for key, value in first.items()
    }


def tofu() -> tuple[str, str]:
    """What the published update came to here, and ours: exact memorisation of what goes and of the authors that stay."""
    rows = {row["row"]: row["figures"] for row in tofu_rows()}

    def said(name: str) -> str:
        if name not in rows:
            return "not run"
        forget, kept = (rows[name][side]["exact_memorization"]["value"] for side in ("forget", "kept"))
        utility = rows[name].get("utility_without_rouge")
        return f"memorised {forget:.3f}, kept authors {kept:.3f}" + (
            f", utility without ROUGE {utility['value']:.3f}" if utility else ""
        )

    beside = [f"{name}: {said(name)}" for name in ("before", "retrained") if name in rows]
    return said("published update"), "; ".join([said("ours"), *beside])


def nine() -> str:
    """The seed's nine rows: published, reproduced, ours, and what could not be reproduced."""
    head = ["| task | published | reproduced | ours | why, and what to hold it against |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(line)} |" for line in (*_classified(), *_others()))])


def _both_scopes(part: str) -> str:
    return f"{figure_of(part, 'imu_head', 'forget')} (head), {figure_of(part, 'imu_last_block', 'forget')} (last block)"


def _classified() -> list[tuple[str, ...]]:
    none, d_f = "not reproduced", "accuracy on D_f"
    no_data = "neither CIFAR-100 nor a network of it is at hand"
    published, ours = (figure_of("airplanes", name, "retain") for name in ("published_imu", "imu_head"))
    tenth, corrected, original, again = (
        figure_of("random5000", name, "forget")
        for name in ("published_imu", "published_imu_corrected", "original", "retrained")
    )
    return [
        (
            "class-wise, CIFAR-10: accuracy difference on D_f",
            "0.18",
            figure_of("airplanes", "published_imu", "forget"),
            _both_scopes("airplanes"),
            "the retrained model has 0, so that the difference is the accuracy itself; retained accuracy is "
            f"{published} after the published loop and {ours} after ours",
        ),
        (
            f"sample-wise 10 %, CIFAR-10: {d_f}",
            "98.64",
            f"{tenth} (corrected: {corrected})",
            _both_scopes("random5000"),
            f"the original here has {original}, the retrained model {again}: nearer that is better, lower is not",
        ),
        (f"sample-wise 50 %, CIFAR-10: {d_f}", "72.94", none, none, "no model retrained without that half is at hand"),
        (f"sample-wise 10 %, CIFAR-100: {d_f}", "93.55", none, none, no_data),
        (
            f"superclass- and subclass-wise, CIFAR-100: {d_f}",
            "0.00, 0.00",
            none,
            none,
            f"{no_data}; several classes of CIFAR-10 at once are on the [method page](method.md)",
        ),
    ]


def _others() -> list[tuple[str, ...]]:
    return [
        (
            "re-identification, Market-1501: mAP",
            "0.5585",
            "not reproducible: the published code takes roots of signed scores, NaN where they are negative",
            people(),
            "another network and 16 people, not Market-1501",
        ),
        (
            "sequences, TOFU forget05: reconstruction loss",
            "3.86",
            *sequences(),
            "cross-entropy of the chain that goes, `sequences.py`; TOFU's is another task",
        ),
        (
            "language model, TOFU forget05: model utility",
            "0.33",
            *tofu(),
            "another model (SmolLM2-135M, 30 authors); the whole table is on the [page on language models](language.md)",
        ),
        (
            "against uniform ascent: utility at equal depth",
            "+30 %",
            against_uniform(),
            "the same",
            "`quality_classes.py`: influence weights over uniform ones, classes to 0.5 %, all rows of the head moving",
        ),
    ]


def readme() -> str:
    """Gaps of every method, a column a part that has ours in it."""
    parts = [part for part in PARTS if any(name in by_method(part) for name in OURS)]
    found = {part: by_method(part) for part in parts}
    names = [name for name in TITLES if name not in FIXED and any(name in found[part] for part in parts)]
    first = {name: gap(found[parts[0]].get(name, [])) for name in names} if parts else {}
    names.sort(key=lambda name: (first[name] is None, first[name] or 0.0))
    least = {part: min(gap(of) or 0.0 for name, of in found[part].items() if name not in FIXED) for part in parts}
    lines = [
        f"| | other data | {' | '.join(PARTS[part].lower() for part in parts)} |",
        f"|---|---|{'---|' * len(parts)}",
    ]
    for name in names:
        cells = []
        for part in parts:
            value = gap(found[part].get(name, []))
            shown = "" if value is None else f"{value:.2f}"
            cells.append(f"**{shown}**" if value is not None and value == least[part] else shown)
        data = next(needs(found[part][name][0]) for part in parts if name in found[part])
        lines.append(f"| {TITLES[name].replace('**', '')} | {data} | {' | '.join(cells)} |")
    return "\n".join(lines)


WIDE, HIGH, LEFT, TOP, RIGHT, BOTTOM = 640, 360, 60, 20, 250, 50


def picture(part: str) -> str:
    """Forgetting against utility, as SVG: a dot a method (filled where it needs no retain data), a cross for the target."""
    found = by_method(part)
    across = "probe" if part == "airplanes" else "forget"
    mean: Callable[[Rows, str], float] = lambda of, name: 100 * statistics.mean(row["figures"][name] for row in of)  # noqa: E731
    points = {name: (mean(of, across), mean(of, "test")) for name, of in found.items()}
    goal = points.get("retrained") or points.get("original", (90.0, 90.0))
    low, high = goal[1] - 8, max([goal[1], *(y for _, y in points.values())]) + 0.5
    xs = [min(max(x, goal[0] - 15), goal[0] + 15) for x, _ in points.values()] or [goal[0]]
    left, right = min(xs) - 1, max(xs) + 1
    plot = (WIDE - LEFT - RIGHT, HIGH - TOP - BOTTOM)

    def at(x: float, y: float) -> tuple[float, float]:
        inside = min(max(x, left), right), min(max(y, low), high)
        return LEFT + plot[0] * (inside[0] - left) / (right - left), TOP + plot[1] * (high - inside[1]) / (high - low)

    what = "what a probe recalls of unseen airplanes, %" if part == "airplanes" else "accuracy on what was forgotten, %"
    made = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDE}" height="{HIGH}" fill="white"/>',
        f'<rect x="{LEFT}" y="{TOP}" width="{plot[0]}" height="{plot[1]}" fill="none" stroke="#888"/>',
        f'<text x="{LEFT + plot[0] / 2:.0f}" y="{HIGH - 12}" text-anchor="middle">{what}</text>',
        f'<text x="14" y="{TOP + plot[1] / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 14 {TOP + plot[1] / 2:.0f})">test accuracy, %</text>',
    ]
    for step in range(5):
        x, y = left + (right - left) * step / 4, low + (high - low) * step / 4
        made.append(f'<text x="{at(x, low)[0]:.1f}" y="{TOP + plot[1] + 15}" text-anchor="middle">{x:.1f}</text>')
        made.append(f'<text x="{LEFT - 5}" y="{at(left, y)[1] + 4:.1f}" text-anchor="end">{y:.1f}</text>')
    for number, (name, (x, y)) in enumerate(points.items()):
        px, py = at(x, y)
        colour = "#c00" if name in OURS else "#000" if name in FIXED else "#06c"
        hollow = "retain" in found[name][0].get("needs", []) and name not in FIXED
        fill = "white" if hollow else colour
        outside = " (beyond the edge)" if not (left <= x <= right and low <= y <= high) else ""
        title = TITLES[name].replace("**", "").replace("`", "")
        row = TOP + 10 + 18 * number
        for cx, cy in ((px, py), (WIDE - RIGHT + 20, row)):
            made.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="7" fill="{fill}" stroke="{colour}"/>')
            ink = colour if hollow else "white"
            made.append(
                f'<text x="{cx:.1f}" y="{cy + 3:.1f}" text-anchor="middle" font-size="8" fill="{ink}">{number + 1}</text>'
            )
        made.append(f'<text x="{WIDE - RIGHT + 32}" y="{row + 4}">{title}{outside}</text>')
    return "\n".join([*made, "</svg>", ""])
