"""The page in the demo: asked in its own process, on a night that is made up."""

from __future__ import annotations

import json
import runpy
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests

from nightbeam.demo import page
from nightbeam.demo.compute import SourceCheck
from nightbeam.demo.model import DemoReport, GroupCheck, MosaicSource
from nightbeam.monitor.app import create_app
from nightbeam.testing.sample_night import SampleNight, sample_night

ask = runpy.run_path(str(Path(__file__).resolve().parents[2] / "asgi.py"))["ask"]
ADDRESS = "http://127.0.0.1:8000/"


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> SampleNight:
    return sample_night(tmp_path_factory.mktemp("night"), now=datetime(2026, 11, 21, 6, 0, tzinfo=UTC))


@pytest.fixture
def standings() -> dict[str, str]:
    """What the page says of systems, where that is not what it says of the night that is made up."""
    return {"contimg": "ok", "platform": "ok"}


@pytest.fixture
def looked(night: SampleNight, standings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    app, paths = create_app(night.settings), []

    def get(url: str, *, timeout: float) -> requests.Response:
        paths.append(url.removeprefix(ADDRESS.rstrip("/")))
        found = ask(app, paths[-1])
        answer = requests.Response()
        body = found.body
        if paths[-1] == "/api/tonight":
            told = json.loads(body)
            told["systems"] = [one for one in told["systems"] if standings.get(one["key"]) != "gone"]
            for one in told["systems"]:
                one["standing"] = standings.get(one["key"], one["standing"])
            body = json.dumps(told).encode()
        answer.status_code, answer._content, answer.url = found.status, body, url
        answer.headers.update(found.headers)
        return answer

    monkeypatch.setattr(page.requests, "get", get)
    return paths


def group(name: str, state: str) -> GroupCheck:
    nothing = [float("nan")] * 3
    return GroupCheck(name, state, 1, {}, None, "", nothing[0], 0, 0, *nothing, "")


def source(mosaic: str) -> MosaicSource:
    return MosaicSource(mosaic, SourceCheck("S1", True, 1.0, 0.1, 1.0))


@pytest.mark.slow
def test_a_page_that_shows_everything_is_right(night: SampleNight, looked: list[str]):
    groups = [group(night.group("completed"), "completed"), group(night.group("failed"), "failed")]
    rows = page.PageDemo(ADDRESS).check(groups, [source(night.mosaic), source(night.mosaic)])
    assert DemoReport((), page=rows).problems == []
    assert len(rows) == 4
    assert {"/", f"/groups/{night.group('failed')}", f"/mosaics/{night.mosaic}"} <= set(looked)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["contimg", "platform"])
@pytest.mark.parametrize("word", ["trouble", "unknown", "off", "gone"])
def test_a_system_that_has_just_run_and_is_shown_otherwise_is_a_problem(
    night: SampleNight, looked: list[str], standings: dict[str, str], key: str, word: str
):
    standings[key] = word
    groups = [group(night.group("completed"), "completed")]
    (problem,) = DemoReport((), page=page.PageDemo(ADDRESS).check(groups, [])).problems
    assert problem.startswith("the page: tonight at a glance: ")
    assert (f"{key} is {word}: " in problem) is (word != "gone")


def test_imaging_may_be_in_trouble_where_a_group_failed(
    night: SampleNight, looked: list[str], standings: dict[str, str]
):
    standings["contimg"] = "trouble"
    groups = [group(night.group("failed"), "failed")]
    assert DemoReport((), page=page.PageDemo(ADDRESS).check(groups, [])).problems == []


def test_what_the_page_does_not_know_or_tells_otherwise_is_a_problem(night: SampleNight, looked: list[str]):
    groups = [group("2001-01-01T00:00:00", "completed"), group(night.group("failed"), "completed")]
    problems = DemoReport((), page=page.PageDemo(ADDRESS).check(groups, [source("no-mosaic")])).problems
    assert [problem.split(":")[0] for problem in problems] == ["the page"] * 3
    assert "404" in problems[0]
    assert problems[1].endswith("failed, expected completed")


def test_a_page_that_is_not_there_is_a_problem_for_each_thing(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_asked: object, **_options: object) -> requests.Response:
        raise requests.ConnectionError("refused")

    monkeypatch.setattr(page.requests, "get", refuse)
    assert len(DemoReport((), page=page.PageDemo(ADDRESS).check([group("g", "completed")], [])).problems) == 2
