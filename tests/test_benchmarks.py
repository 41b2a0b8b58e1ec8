"""The comparison of suites, the results that are kept, and the document made of them."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    return import_module


def entry(*units: float) -> dict[str, Any]:
    return {"group": "g", "seconds": [u / 100 for u in units], "units": list(units), "extra": {}}


def test_the_document_is_what_the_results_say(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report = load("report")
    monkeypatch.setattr(report, "save", lambda figure, path: drawn.append(path))
    drawn: list[Path] = []
    text = report.generate(report.TEMPLATE.read_text(), report.results())
    assert text == report.TARGET.read_text(), "run: make report"
    figures = {path.name for path in drawn}
    assert figures == {path.name for path in report.FIGURES.iterdir()}
    assert all(f"figures/{name}" in text for name in figures)


def test_a_section_that_nobody_writes(load: Any) -> None:
    with pytest.raises(SystemExit, match="poetry"):
        load("report").generate("<!-- poetry -->", [])


def test_regressions_are_beyond_the_noise(load: Any) -> None:
    suite = load("suite")
    before = {"still": entry(1.0, 1.01, 1.02), "wild": entry(1.0, 1.2, 1.4), "gone": entry(1, 1)}
    slower = {"still": entry(1.2, 1.21, 1.22), "wild": entry(1.2, 1.4, 1.6), "new": entry(1, 1)}
    assert suite.regressions(before, slower) == {"still": "1.20 times as slow, noise 5%"}
    assert suite.regressions(before, before) == {}
    assert suite.regressions(slower, before) == {}  # faster
    little = {"still": entry(1.04, 1.05, 1.05)}
    assert suite.regressions(before, little) == {}
    old = {"still": {**entry(), "units": []}}  # from before there was a yardstick
    assert suite.regressions(old, slower) == {}
    theirs = {"test_decode[reference]": before["still"]}
    assert suite.regressions(theirs, {"test_decode[reference]": slower["still"]}) == {}


def test_a_slow_kernel_of_recorded_runs_is_found(load: Any) -> None:
    """The newest stored suite of each machine against itself, with one kernel twice as slow."""
    suite, results = load("suite"), load("results")
    stored = [results.newest_with("suite", folder.name) for folder in machines(results)]
    documents = [json.loads(file.read_text())["suite"] for file in stored if file is not None]
    measured = [d for d in documents if any(each["units"] for each in d.values())]
    assert measured
    for before in measured:
        slow = next(key for key in before if "window_attention" in key)
        after = {**before, slow: {**before[slow], "units": [2 * u for u in before[slow]["units"]]}}
        assert suite.regressions(before, after).keys() == {slow}


def machines(results: ModuleType) -> list[Path]:
    return [folder for folder in results.FOLDER.iterdir() if folder.is_dir()]


def test_results_are_added_to_those_of_the_day(load: Any) -> None:
    results = load("results")
    machine = {"threads": 2, "load": 0.5}
    first = {"model": "demo", "machine": machine, "results": [{"engines": {"cpu": 1}}]}
    newer = {**first, "results": [{"engines": {"cpu": 2}}]}
    other = {**first, "machine": {"threads": 1, "load": 0.5}}
    kept: dict[str, Any] = {}
    for document in (first, other, newer):
        results.add(kept, document)
    assert [each["threads"] for each in kept["bench"]] == [1, 2]
    assert kept["bench"][1]["results"] == newer["results"]
    results.add(kept, {"suite": {"a": entry(1)}})
    results.add(kept, {"suite": {"b": entry(1)}})
    assert kept["suite"] == {"b": entry(1)}
    with pytest.raises(SystemExit):
        results.section_of({"nothing": 1})


def test_stored_results_name_their_machine(load: Any) -> None:
    results = load("results")
    for file in results.FOLDER.glob("*/*.json"):
        document = json.loads(file.read_text())
        commit = document["machine"]["commit"].removesuffix("-dirty")
        assert file.parent.name == document["machine"]["name"]
        assert file.name == f"{document['date']}-{commit}.json"
