"""All metrics from tensors: what is measured, what says why not, and the sentence that a reader sees first."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from imu_cli.evaluation import assembly, comparisons, curves, reference_heads, summary
from imu_cli.evaluation.evidence import Evidence, Split
from imu_cli.linear import refits, rows
from imu_cli.linear.rows import Logits, Mapped
from imu_cli.records.evaluation import Metric
from imu_cli.records.metric_definitions import DEFINITIONS
from imu_cli.statistics.intervals import census

CLASSES, WIDTH, L2 = 4, 12, 1e-3


def samples(n: int, seed: int, spread: float = 1.1) -> tuple[Tensor, Tensor]:
    """Features (n, d) around four class means, and labels in turn."""
    means = 2 * torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    labels = torch.arange(n) % CLASSES
    noise = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return means[labels] + spread * noise, labels


FORGET, RETAIN, TEST = samples(400, 1), samples(3000, 2), samples(1200, 3)


def wide(h: Tensor) -> Tensor:
    """Features with their column of ones."""
    return torch.cat([h, torch.ones(len(h), 1, dtype=torch.float64)], dim=1)


def fitted(*parts: tuple[Tensor, Tensor]) -> Tensor:
    """A head trained on these samples."""
    h, labels = wide(torch.cat([part[0] for part in parts])), torch.cat([part[1] for part in parts])
    return refits.fit(h, labels, torch.ones(1, len(h), dtype=torch.bool), CLASSES, L2).heads[0]


ORIGINAL = fitted(FORGET, RETAIN)


def evidence(after: Tensor, kind: str = "sample", retrained: Tensor | None = None, **changed: object) -> Evidence:
    """Everything given: the original's head, another one after, and if wanted a retrained one's outputs."""
    forget = FORGET if kind != "class" else tuple(part[FORGET[1] == 2] for part in FORGET)
    retain = RETAIN if kind != "class" else tuple(part[RETAIN[1] != 2] for part in RETAIN)

    def split(part: tuple[Tensor, ...]) -> Split:
        h = wide(part[0])
        again = None if retrained is None else h @ retrained.T
        return Split(part[1], h @ ORIGINAL.T, h @ after.T, part[0], part[0], again)

    made = Evidence(
        kind=kind,  # type: ignore[arg-type]
        forgotten=(2,) if kind == "class" else (),
        forget=split(forget),
        test=split(TEST),
        retain=split(retain),
        true_labels=None,
        drift=census(0.0, len(forget[1])),
        head=(after[:, :-1], after[:, -1]),
        seed=0,
        head_before=(ORIGINAL[:, :-1], ORIGINAL[:, -1]),
        same_backbone=True,
    )
    return replace(made, **changed)  # type: ignore[arg-type]


def by_name(found: list[Metric]) -> dict[str, Metric]:
    """Metrics by their names."""
    return {item.name: item for item in found}


def said(e: Evidence, changed: list[str] | None = ["fc.weight"]) -> str:  # noqa: B006
    """The summary."""
    return summary.of(e, assembly.measure(e), None if changed is None else True, unchanged=changed == [])


def ascended(length: float) -> Tensor:
    """The original's head after a step up the loss of D_f."""
    from imu_cli.linear import objective

    h, labels = wide(FORGET[0]), FORGET[1]
    gradient = objective.residual(h @ ORIGINAL.T, objective.one_hot(labels, CLASSES)).T @ h
    return ORIGINAL + length * float(ORIGINAL.norm()) * gradient / gradient.norm()


def singled_out(margin: float = -100.0) -> Split:
    """Outputs on D_f whose labels are shifted by a margin, wrong or right for all of them: what no head can do."""
    h = wide(FORGET[0])
    shifted = h @ ORIGINAL.T + margin * torch.nn.functional.one_hot(FORGET[1], CLASSES)
    return Split(FORGET[1], h @ ORIGINAL.T, shifted, FORGET[0], FORGET[0])


def hidden() -> Tensor:
    """The original's head with the row of class 2 far down."""
    head = ORIGINAL.clone()
    head[2, -1] -= 100
    return head


@pytest.mark.parametrize("kind", ["sample", "class", "mislabelled"])
@pytest.mark.parametrize("given", ["everything", "forget alone", "test alone"])
def test_every_metric_is_there_once_and_says_why_it_has_no_number(kind: str, given: str) -> None:
    """In the order of the definitions; a value or a reason, never both and never neither."""
    e = evidence(ORIGINAL, kind)
    if given != "everything":
        bare = [replace(split, before=None, features_before=None) for split in (e.forget, e.test) if split is not None]
        test = None if given == "forget alone" else bare[1]
        e = replace(e, forget=bare[0], test=test, retain=None, drift=None, head_before=None, same_backbone=False)
    found = assembly.measure(e)
    assert [item.name for item in found] == list(DEFINITIONS)
    for item in found:
        assert (item.value is None) == (item.missing is not None), item.name
    if given == "forget alone":
        assert by_name(found)["mia.auc"].missing == "needs --test"
        assert by_name(found)["update_leak.auc"].missing == "needs --test"
        assert by_name(found)["head_gap.forget"].missing == "needs --retain"
    assert by_name(found)["retrained.kl"].missing == "needs --retrained"
    assert by_name(found)["compat.svc_prob"].missing == "needs --compat"
    assert by_name(found)["shadow.auc"].missing == "needs --attack shadow-heads"


@pytest.mark.parametrize("kind", ["sample", "class", "mislabelled"])
def test_no_number_knows_whether_logits_are_held(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits computed by rows from mapped float32 features give every metric and curve that held ones give."""
    monkeypatch.setattr(rows, "ROWS_AT_ONCE", 97)
    after, again = ascended(0.3), fitted(RETAIN)

    def narrowed(split: Split) -> Split:
        features = split.features
        assert isinstance(features, Tensor)
        return replace(split, features=features.float().double())

    def by_rows(split: Split, *, lazily: bool) -> Split:
        features = split.features
        assert isinstance(features, Tensor)
        mapped = Mapped(features.float(), True, features.device)
        before, now, other = (Logits(mapped, head) for head in (ORIGINAL, after, again))
        alone = rows.with_bias(mapped, False)
        if lazily:
            return Split(split.labels, before, now, alone, alone, other)
        return Split(split.labels, before[:], now[:], alone[:], alone[:], other[:])

    e = evidence(after, kind, again, compat=kind == "sample")  # the papers' scores, which take long, know no kind
    if kind == "mislabelled":
        e = replace(e, true_labels=(e.forget.labels + 1) % CLASSES)
    made = []
    for lazily in (False, True):
        splits = (by_rows(narrowed(split), lazily=lazily) for split in (e.forget, e.test, e.retain) if split)
        forget, test, retain = splits
        parts = {"one": torch.arange(5), "other": torch.arange(5, 9)}
        one = replace(e, forget=forget, test=test, retain=retain, parts=parts)
        made.append([assembly.measure(one), assembly.per_class(one), assembly.per_part(one), curves.of(one)])
    (found, *others), (lazy, *same) = made
    assert [item.name for item in found] == [item.name for item in lazy]
    for item, other in zip(found, lazy, strict=True):
        for name in ("value", "before", "target"):
            ours, theirs = getattr(item, name), getattr(other, name)
            assert ours == (None if theirs is None else pytest.approx(theirs, rel=1e-9, abs=1e-12)), item.name
        assert (item.n, item.note, item.missing, item.interval) == (other.n, other.note, other.missing, other.interval)
    assert others == same


@pytest.mark.parametrize("lacks", ["a class", "a class in one half"])
def test_test_data_without_a_class_of_the_forget_set_cost_what_is_matched_and_nothing_else(lacks: str) -> None:
    """What is compared at D_f's class proportions says that it cannot be; everything else is measured."""
    e = evidence(ascended(0.3))
    assert e.test is not None
    rows = torch.nonzero(e.test.labels != 2).squeeze(1)
    if lacks != "a class":
        rows = torch.cat([rows, torch.nonzero(e.test.labels == 2).squeeze(1)[:1]])
    found = by_name(assembly.measure(replace(e, test=e.test.only(rows))))
    matched = {"probe.accuracy"}
    if lacks == "a class":
        matched |= {
            "test_matched.accuracy",
            "mia.auc",
            "mia.ks",
            "forget.over_unlearned",
            "update_leak.auc",
            "rmia.auc",
        }
        assert found["forget.accuracy"].target is None
        assert found["forget.accuracy"].target_note.startswith(
            "class matching: no unseen sample of class 2 (100 in D_f)"
        )
    for name in matched:
        assert "class 2" in (found[name].missing or ""), name
    for name in ("forget.accuracy", "test.accuracy", "test.accuracy_drop", "retain.accuracy", "retain_mia.auc"):
        assert found[name].missing is None, name


def test_a_retrained_head_has_no_gap_to_a_retrained_head() -> None:
    """A head fitted on retain samples alone differs on no split from the one that the evaluation fits; RMIA is at chance."""
    found = by_name(assembly.measure(evidence(fitted(RETAIN))))
    for name in ("forget", "test", "retain"):
        assert found[f"head_gap.{name}"].value == pytest.approx(0, abs=0.004)
    assert found["head_gap.forget"].interval is None
    assert found["rmia.auc"].interval is not None
    assert found["rmia.auc"].interval.low < 0.5 < found["rmia.auc"].interval.high


def test_the_refitted_heads_have_the_weight_decay_of_the_original() -> None:
    """It is found from the original head and its training samples."""
    found = reference_heads.refit(evidence(ORIGINAL))
    assert isinstance(found, reference_heads.Refitted)
    assert found.l2 == pytest.approx(L2, rel=0.01)


def test_rmia_points_both_ways() -> None:
    """Outputs that are surer on D_f than other heads are give it away from above, wrong ones from below."""
    sure, wrong = (
        by_name(assembly.measure(evidence(ORIGINAL, forget=singled_out(margin))))["rmia.auc"] for margin in (100, -100)
    )
    assert sure.interval is not None
    assert wrong.value is not None
    assert sure.interval.low > 0.7
    assert wrong.value < 0.05
    assert sure.before == wrong.before


def test_the_retrained_model_itself_has_no_gap() -> None:
    """Every distance is 0, all changed samples are nearer to it, and the original's distances stand beside."""
    again = fitted(RETAIN)
    found = by_name(assembly.measure(evidence(again, retrained=again)))
    for name in ("accuracy_gap.forget", "accuracy_gap.test", "average_gap", "churn", "churn.test", "kl", "js", "tv"):
        assert found[f"retrained.{name}"].value == 0, name
    assert found["retrained.closer"].value == 1
    assert found["retrained.kl"].before is not None
    assert found["retrained.kl"].before > 0


def test_the_class_scenario_counts_the_gap_as_it_counts_forgetting() -> None:
    """On D_f the share predicted as a forgotten class; on test the kept classes alone."""
    again = fitted(tuple(part[RETAIN[1] != 2] for part in RETAIN))  # type: ignore[arg-type]
    found = by_name(assembly.measure(evidence(hidden(), "class", retrained=again)))
    assert found["retrained.accuracy_gap.forget"].value == 0
    assert found["retrained.accuracy_gap.forget"].before == found["forget.accuracy"].before
    assert found["retrained.accuracy_gap.test"].n == 900


def test_samples_driven_to_0_are_called_damage_first() -> None:
    """The warning opens the sentence, with accuracy, over-unlearned share and AUC; it is never called success."""
    text = said(evidence(ORIGINAL, forget=singled_out()))
    assert text.startswith("DAMAGE, not forgetting: ")
    assert "of the forget samples are right, and as many unseen ones would not be below" in text
    assert "less sure than 99 % of unseen samples" in text
    assert "two-sided" in text


def test_a_model_that_was_broken_is_damaged_though_forget_and_test_look_alike() -> None:
    """A long ascent takes the test samples along: AUC and over-unlearning show nothing, the warning is there all the same."""
    e = evidence(ascended(1.5))
    found = by_name(assembly.measure(e))
    assert found["mia.auc"].interval is not None
    assert found["mia.auc"].interval.high > 0.5
    assert said(e).startswith("DAMAGE, not forgetting: 27.00% of the forget samples are right")
    assert "points of test accuracy are lost" in said(e)
    assert said(evidence(ascended(1.5), "class")).startswith("DAMAGE, not forgetting: ")


def test_a_hidden_class_is_said_to_be_in_the_features() -> None:
    """Nothing of it is predicted, no warning, and the features still hold it."""
    text = said(evidence(hidden(), "class"))
    assert text.startswith("0.00% of the 100 forget samples")
    assert (
        "the features still hold everything they held before, the class with it; 5 forget samples per class suffice"
        in text
    )
    assert "a fresh linear classifier recognises" in text


def test_the_original_is_said_to_be_what_it_is() -> None:
    """A class that is still predicted is a warning, and a model without a change was not unlearned."""
    assert said(evidence(ORIGINAL, "class"), []).startswith("NOT forgotten: ")
    assert "this model was not unlearned" in said(evidence(ORIGINAL), [])
    assert "not known what changed" in said(evidence(ORIGINAL), None)


def test_an_attack_without_power_on_the_original_is_inconclusive() -> None:
    """Ratios at chance for the original give no number for the unlearned model, and the reason says what was found."""
    from imu_cli.evaluation.evidence import Shadow

    generator = torch.Generator().manual_seed(0)

    def pair(shift: float) -> tuple[Tensor, Tensor]:
        draw = torch.randn(2, 300, generator=generator, dtype=torch.float64)
        return draw[0] + shift, draw[1]

    def shadow(power: float) -> Shadow:
        return Shadow(pair(0.0), pair(power), pair(0.0), pair(0.0), threshold=2.3, heads=64)

    weak = by_name(comparisons.shadow_metrics(evidence(ORIGINAL, shadow=shadow(0.0))))
    assert weak["shadow.auc"].missing is not None
    assert weak["shadow.auc"].missing.startswith("inconclusive")
    assert weak["shadow.auc_retrained_head"].value is not None
    strong = by_name(comparisons.shadow_metrics(evidence(ORIGINAL, shadow=shadow(1.0))))
    assert strong["shadow.auc"].value == pytest.approx(0.5, abs=0.06)
    assert strong["shadow.auc"].before == pytest.approx(0.76, abs=0.05)
    assert strong["shadow.tpr_at_1pct_fpr"].n == 300


def test_parts_are_counted_apart_and_add_up() -> None:
    """Each person's share predicted is that of their rows; a part has its own AUC and interval."""
    rows = {"anna": torch.arange(100), "ben": torch.arange(100, 400)}
    found = assembly.per_part(evidence(ascended(0.3), parts=rows))
    whole = by_name(assembly.measure(evidence(ascended(0.3))))["forget.accuracy"]
    assert [(row.name, row.n) for row in found] == [("anna", 100), ("ben", 300)]
    assert whole.value == pytest.approx(sum(row.n * (row.after or 0) for row in found) / 400)
    assert all(row.auc_interval is not None for row in found)
    assert assembly.per_part(evidence(ORIGINAL)) == []
