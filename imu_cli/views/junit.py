"""Verdicts as JUnit XML, which CI systems show beside the tests."""

from collections.abc import Mapping
from xml.etree import ElementTree

from imu_cli.files import streams
from imu_cli.records.evaluation import Evaluation, Requirement
from imu_cli.records.recall import Recall
from imu_cli.records.retrieval import Judged
from imu_cli.views import words

MARK = '<testsuites name="imu"'
"""By what a file of ours is known."""

ELEMENTS = {"fail": "failure", "inconclusive": "error"}
"""An inconclusive gate is an error and not skipped: Jenkins, GitLab and the GitHub actions pass over what was skipped,
and a pipeline that stopped (exit code 5) would show nothing red."""


def junit(result: Judged) -> str:
    """One test case a requirement: passed, ``failure`` where it failed, ``error`` where too few samples decide."""
    result = words.printable(result)
    verdicts = [item.verdict for item in result.requirements]
    counts = {
        "tests": str(len(verdicts)),
        "failures": str(verdicts.count("fail")),
        "errors": str(verdicts.count("inconclusive")),
    }
    root = ElementTree.Element("testsuites", {"name": "imu", **counts})
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        {"name": f"imu evaluate {result.model.path}", **counts, "skipped": "0", "time": f"{_seconds(result):.3f}",
         "timestamp": result.created.partition("+")[0]},
    )  # fmt: skip
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("model.sha256", result.model.sha256),
        ("scenario", _scenario(result)),
        ("imu", result.environment.imu),
    ):
        ElementTree.SubElement(properties, "property", {"name": name, "value": value})
    for item in result.requirements:
        _case(suite, result, item)
    ElementTree.SubElement(suite, "system-out").text = f"{result.summary}\n{result.limit}"
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def refused(problems: Mapping[str, str]) -> str:
    """An error for every requirement that cannot be judged, by its text: nothing was measured."""
    counts = {"tests": str(len(problems)), "failures": "0", "errors": str(len(problems))}
    root = ElementTree.Element("testsuites", {"name": "imu", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": "imu evaluate", **counts, "skipped": "0", "time": "0"})
    for text, said in problems.items():
        shown = streams.plain(said)
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": "imu.requirement", "name": streams.plain(text), "time": "0"}
        )
        ElementTree.SubElement(case, "error", {"message": shown, "type": "refused"}).text = shown
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _scenario(result: Judged) -> str:
    if isinstance(result, Recall):
        return "records"
    return result.scenario if isinstance(result, Evaluation) else "people"


def _seconds(result: Judged) -> float:
    return sum(value for value in result.seconds.values() if words.finite(value))


def _case(suite: ElementTree.Element, result: Judged, item: Requirement) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", {"classname": f"imu.{item.metric}", "name": item.text, "time": "0"}
    )
    metric = next((metric for metric in result.metrics if metric.name == item.metric), None)
    said = f"{item.verdict}: compared {words.number(item.compared)}; {item.reason}"
    if item.warning:
        said += f"\nwarning: {item.warning}"
    if item.verdict in ELEMENTS:
        found = ElementTree.SubElement(case, ELEMENTS[item.verdict], {"message": said, "type": item.verdict})
        found.text = said if metric is None else f"{said}\n{metric.name}: {metric.definition}"
    else:
        ElementTree.SubElement(case, "system-out").text = said
