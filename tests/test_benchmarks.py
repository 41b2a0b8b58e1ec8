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


@pytest.mark.parametrize("rehearses", [False, True])
def test_the_check_of_a_gpu_runs_tests_that_are_there(load: Any, rehearses: bool) -> None:
    steps = load("gpu.check").steps(rehearses)
    files = [Path(part) for command in steps.values() for part in command if part.endswith(".py")]
    assert [file for file in files if not file.is_file()] == []
    for room in ("coder", "engine", "kernels"):
        for file in (BENCHMARKS.parent / "tests" / room).glob("test_*.py"):
            text = file.read_text()
            assert file in files or ("mark.gpu" not in text and "a CUDA device" not in text)


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
    for part in ({"codec": [1], "coder": [2]}, {"codec": [3]}):
        results.add(kept, {"machine": machine, "gpu": part})
    assert kept["gpu"] == {"codec": [3], "coder": [2]}
    with pytest.raises(SystemExit):
        results.section_of({"nothing": 1})


def test_stored_results_name_their_machine(load: Any) -> None:
    results = load("results")
    for file in results.FOLDER.glob("*/*.json"):
        document = json.loads(file.read_text())
        commit = document["machine"]["commit"].removesuffix("-dirty")
        assert file.parent.name == document["machine"]["name"]
        assert file.name == f"{document['date']}-{commit}.json"


def test_the_model_of_gpu_times_says_what_was_measured(load: Any) -> None:
    critical_path = load("critical_path")
    first = json.loads(critical_path.FIRST_RUN.read_text())
    for way, measured in first["measured_ms"].items():
        nodes = critical_path.from_json(first["graphs"][way])
        assert critical_path.critical_path(nodes).ms == pytest.approx(measured, rel=0.1), way


def test_branches_of_a_graph_run_beside_each_other(load: Any) -> None:
    """The longer one is waited for, and two that each fill the GPU take as long as both."""
    critical_path, gap = load("critical_path"), load("gpu_model").GAP

    def milliseconds(main: Any, side: Any) -> float:
        graph = critical_path.Graph()
        with graph.aside("side"):
            graph.add(side)
        graph.add(main)
        graph.join("side")
        graph.add(small)
        return float(critical_path.critical_path(graph.nodes).ms)

    launch = load("gpu_model").Launch
    small, long = (launch("coder", 1, shape=(us * 1000,)) for us in (10, 50))
    assert milliseconds(small, long) == pytest.approx((50 + 10 + 2 * gap) / 1e3)
    assert milliseconds(long, small) == milliseconds(small, long)
    full = launch("coder", 1 << 20, shape=(50_000,))
    assert milliseconds(full, full) == pytest.approx((2 * 50 + 10 + 3 * gap) / 1e3)


def test_the_launches_of_an_image_are_recorded(load: Any) -> None:
    critical_path = load("critical_path")
    recorder = critical_path.Recorder("photo")
    for encoding in (True, False):
        nodes = recorder.record(64, 128, 2, encoding)
        chain = critical_path.critical_path(nodes)
        kept = critical_path.from_json(json.loads(json.dumps(critical_path.to_json(nodes))))
        assert [(n.launch, n.after) for n in kept] == [(n.launch, n.after) for n in nodes]
        kernels = [node.launch.kernel for node in nodes]
        passes = 2 * recorder.config.slices
        assert kernels.count("pass") == passes and kernels[chain.numbers[-1]] == kernels[-1]
        assert kernels.count("coder") == passes + (3 if encoding else 1)
        assert passes < len(chain.numbers) < len(nodes)
