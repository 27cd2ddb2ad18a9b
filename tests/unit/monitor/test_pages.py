"""The pages as a browser gets them, without one: on nothing, on a night, on a hostile one."""

from __future__ import annotations

import asyncio
import hashlib
import html
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from nightbeam.core.errors import UnavailableError
from nightbeam.core.settings import Settings, load_settings
from nightbeam.monitor import render
from nightbeam.monitor.app import create_app
from nightbeam.monitor.auth import COOKIE, Auth
from nightbeam.monitor.model import Reprocessed
from nightbeam.monitor.read import Reader
from nightbeam.monitor.render import STATIC
from nightbeam.monitor.views import VIEWS, address
from nightbeam.monitor.watch import PlatformWatch
from nightbeam.platform import PoolStatus
from nightbeam.testing.sample_night import HOSTILE, SampleNight, sample_night, sample_settings

TOKEN = "the-word-of-this-very-site"
NOW = datetime(2026, 11, 21, 6, 15, 2, tzinfo=UTC)
#: SHA-256 of htmx.min.js in htmx.org 2.0.11.
HTMX = "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717"
RUN = "0f3cf3a1-5d0a-4d3e-9a43-00000000beef"
LISTS = [path for path in VIEWS if "{" not in path]


class Starts:
    """In place of what starts runs."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.partial = False
        self.answer: Callable[[str], Reprocessed] = lambda group: Reprocessed(
            ok=True, group_id=group, run_id=RUN, started=True
        )

    def start(self, group_id: str, *, key: str | None = None, partial: bool = False) -> Reprocessed:
        self.asked.append(group_id)
        self.partial = partial
        return self.answer(group_id)


@dataclass
class Site:
    """The monitor of a site, and how it is asked."""

    settings: Settings
    app: Any
    starts: Starts

    def ask(self, path: str, *, method: str = "GET", accept: str = "text/html", **more: Any) -> httpx.Response:
        async def go() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
                headers = {"accept": accept, **more.pop("headers", {})}
                return await client.request(method, path, headers=headers, **more)

        return asyncio.run(go())

    def page(self, path: str, *, status: int = 200, **more: Any) -> str:
        answer = self.ask(path, **more)
        assert answer.status_code == status, f"{path}: {answer.status_code} {answer.text[-2000:]}"
        assert answer.headers["content-type"].startswith("text/html")
        return answer.text

    def json(self, path: str, *, status: int = 200) -> Any:
        answer = self.ask(path, accept="application/json")
        assert answer.status_code == status, f"{path}: {answer.status_code} {answer.text[-2000:]}"
        return answer.json()

    def log_in(self) -> dict[str, str]:
        """Return the headers of a browser that is logged in."""
        form = {"token": TOKEN, "next": "/groups"}
        answer = self.ask("/login", method="POST", data=form, headers={"origin": "http://127.0.0.1:8000"})
        assert answer.status_code == 303
        return {"cookie": answer.headers["set-cookie"].partition(";")[0]}


def _site(settings: Settings, now: datetime = NOW) -> Site:
    starts = Starts()
    reader = Reader(settings, clock=now.timestamp)
    app = create_app(settings, reader=reader, auth=Auth(TOKEN), reprocessing=starts, share_s=0.0)
    return Site(settings, app, starts)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> SampleNight:
    return sample_night(tmp_path_factory.mktemp("night") / "state", now=NOW)


@pytest.fixture(scope="module")
def hostile_night(tmp_path_factory: pytest.TempPathFactory) -> SampleNight:
    return sample_night(tmp_path_factory.mktemp("hostile") / "state", now=NOW, hostile=True)


@pytest.fixture(scope="module")
def _one_site(night: SampleNight) -> Site:
    return _site(night.settings)


@pytest.fixture
def site(_one_site: Site) -> Site:
    """The site of that night, of which nothing has been asked to be done yet."""
    _one_site.app.state.reprocessing = starts = Starts()
    return replace(_one_site, starts=starts)


@pytest.fixture(scope="module")
def hostile(hostile_night: SampleNight) -> Site:
    return _site(hostile_night.settings)


def _every_page(site: Site, night: SampleNight) -> Iterator[str]:
    yield from LISTS
    yield "/login"
    yield from (address("/groups", group) for group in night.groups)
    yield address("/mosaics", night.mosaic)
    yield from (f"/images/{image['id']}" for image in site.json("/images.json")["items"])
    yield from ("/images?view=table", "/groups?state=failed", "/calibration?days=30&status=retired")


class Page(HTMLParser):
    """What of a page its manners are judged by."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


# -- on nothing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", LISTS)
def test_where_nothing_has_come_yet_each_page_says_so(path, tmp_path):
    site = _site(sample_settings(tmp_path / "state"))
    assert "<h1>" in site.page(path)
    site.json("/tonight.json" if path == "/" else f"{path}.json")


@pytest.mark.parametrize("path", ["/groups/2026-11-21T03:15:02", "/images/7", "/images/seven", "/mosaics/none"])
def test_where_nothing_has_come_yet_what_is_asked_for_is_not_there(path, tmp_path):
    site = _site(sample_settings(tmp_path / "state"))
    site.page(path, status=404)
    assert "error" in site.json(f"{path}.json", status=404)


# -- on a night ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_page_of_a_night_is_there_and_so_is_the_same_as_json(site, night):
    for path in _every_page(site, night):
        site.page(path)
        if path != "/login":
            name, _, query = path.partition("?")
            site.json(("/tonight" if name == "/" else name) + ".json" + (f"?{query}" if query else ""))


def test_tonight_puts_what_failed_first(site, night):
    page = site.page("/")
    told = page.index(night.group("failed"))
    assert told < page.index(night.group("waiting")) < page.index("The last sky")
    assert page.index(">trouble<") < page.index("Platform</a></h3>")
    attention = site.json("/tonight.json")["attention"]
    assert [one["state"] for one in attention] == ["failed"] * 4 + ["waiting_for_gains"]


def test_tonight_shows_the_last_mosaic_and_the_strip_that_no_calibration_holds_for(site, night):
    page = site.page("/")
    assert f'href="/mosaics/{night.mosaic}"' in page
    assert "2026_tonight_0137+331" in page
    assert "groups of this strip borrow one, or wait" in page


def test_every_state_is_said_in_words_and_with_a_shape(site, night):
    page = site.page("/groups?limit=200")
    for word in ("failed", "waits for gains", "in progress", "pending", "collecting", "completed"):
        assert re.search(rf'<svg class="mark tone-\w+".*?</svg><span>{word}</span>', page), word


def test_groups_can_be_filtered_and_the_filters_stand_in_the_form(site, night):
    found = site.json("/groups.json?state=failed")["items"]
    assert {g["group_id"] for g in found} == {night.group("failed"), night.group("timed out")}
    page = site.page("/groups?state=failed&text=imager")
    assert '<option value="failed" selected>' in page
    assert 'value="imager"' in page
    assert night.group("failed") in page
    assert night.group("timed out") not in page


def test_a_day_is_whole_both_its_ends_included(site):
    day = site.json("/groups.json?since=2026-11-21&until=2026-11-21&limit=200")["items"]
    assert len(day) == len(site.json("/groups.json?limit=200")["items"])
    assert site.json("/groups.json?until=2026-11-20")["items"] == []


def test_older_groups_are_a_page_further_and_none_is_shown_twice_or_left_out(site, night):
    seen, path = [], "/groups?limit=7"
    while path:
        page = site.page(path)
        body = page[page.index("<tbody>") : page.index("</tbody>")]
        seen += re.findall(r'<th scope="row"><a class="nowrap" href="/groups/([^"]+)"', body)
        found = re.search(r'<a href="([^"]+)" rel="next">Older', page)
        path = html.unescape(found[1]) if found else ""
    assert seen == sorted(night.groups, reverse=True)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/groups?state=odd", "state=odd is unknown here"),
        ("/groups?limit=0", "give a number from 1 to 1000"),
        ("/groups?limit=١", "give a number"),
        ("/groups?since=yesterday", "write it as 2026-11-21"),
        ("/groups?until=9999-12-31", "give an earlier one"),
        ("/calibration?days=31", "give a number from 1 to 30"),
        ("/images?view=film", "view is one of pictures, table"),
    ],
)
def test_a_filter_that_cannot_be_says_what_can(site, path, words):
    assert words in site.page(path, status=400)
    name, _, query = path.partition("?")
    assert set(site.json(f"{name}.json?{query}", status=400)) == {"error", "fix"}


def test_an_address_that_is_none_names_those_that_are_near(site):
    page = site.page("/grups", status=404)
    assert "Nothing is at /grups" in page
    assert '<li><a href="/groups">' in page
    assert site.ask("/grups", accept="application/json").json() == {"detail": "Not Found"}


@pytest.mark.parametrize(("old", "new"), [("/ui", "/"), ("/tonight", "/")])
def test_older_addresses_lead_to_the_new_ones(site, old, new):
    answer = site.ask(old)
    assert (answer.status_code, answer.headers["location"]) == (307, new)


def test_files_that_cannot_be_read_stand_below_the_groups_unless_others_are_asked_for(site):
    assert "the file has 0 bytes" in site.page("/groups")
    assert "the file has 0 bytes" not in site.page("/groups?state=failed")


def test_a_number_of_rows_that_is_in_the_address_is_the_one_that_is_chosen(site):
    assert '<option value="7" selected>7</option>' in site.page("/groups?limit=7")


# -- one group ----------------------------------------------------------------------------------------------------


def test_a_group_shows_when_each_of_its_subbands_came(site, night):
    page = site.page(address("/groups", night.group("late")))
    cells = re.findall(r"<b>(sb\d\d)</b>.*?<span>(\w+)</span></span><span>([^<]+)</span>", page)
    assert len(cells) == 16
    assert cells[0] == ("sb00", "arrived", "first")
    assert cells[11] == ("sb11", "arrived", "+46 s")  # 0.8 s each, and 37 s more
    assert cells[15][:2] == ("sb15", "late")


def test_a_group_shows_what_is_missing_and_what_came_twice(site, night):
    page = site.page(address("/groups", night.group("collecting")))
    assert page.count("<span>missing</span>") == 5
    page = site.page(address("/groups", night.group("duplicate")))
    assert "again/" in page
    assert "sb04 came again" in page


def test_a_failed_group_shows_every_attempt_the_error_and_the_log_of_the_step_that_failed(site, night):
    page = site.page(address("/groups", night.group("failed")))
    for attempt in (1, 2, 3):
        assert f"out of memory at cycle {attempt}" in page
    log = page[page.index('<h2 id="log">') :]
    assert "ERROR the imager ended with 137" in log
    assert "/logs/groups/" in log


def test_another_log_can_be_chosen_in_the_address_and_nothing_else_can(site, night):
    path = address("/groups", night.group("failed"))
    assert "rows 111744" in site.page(f"{path}?log=convert")
    assert '<div class="tail"' not in site.page(f"{path}?log=..%2F..%2Fingest")


def test_a_group_shows_its_tables_stages_scores_and_figures(site, night):
    page = site.page(address("/groups", night.group("borrowed")))
    assert "2026_yesterday_0137+331" in page
    assert "<span>borrowed</span>" in page
    assert "24 h 29 min older than the data" in page  # 1.02 d
    assert [kind for kind in ("kcal", "bpcal", "gpcal", "2gcal") if f"_0137+331_{kind}" not in page] == []
    assert page.count('class="stage stage-') == 6
    assert "2 sources in common with the catalogue" in page
    pictures = [image for image in Page(page).all("img") if "/api/qa/file/" in str(image["src"])]
    assert len(pictures) == 6
    assert all(p["loading"] == "lazy" and p["alt"] for p in pictures)


def test_pictures_can_be_fetched_where_the_page_says(site, night):
    for path in (address("/groups", night.group("late")), "/images", "/mosaics", "/"):
        for image in Page(site.page(path)).all("img"):
            answer = site.ask(str(image["src"]))
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), image["src"]


def test_where_prefect_has_a_page_every_attempt_leads_to_its_run_there(night):
    told = night.settings.monitor.model_copy(update={"prefect_url": "https://prefect.example"})
    site = _site(night.settings.model_copy(update={"monitor": told}))
    links = [a["href"] for a in Page(site.page(address("/groups", night.group("failed")))).all("a")]
    runs = [link for link in links if str(link).startswith("https://prefect.example/runs/flow-run/")]
    assert len(set(runs)) == len(runs) == 3
    at_work = site.page(address("/groups", night.group("in_progress")))
    assert re.search(r'Worked on by</dt><dd><a href="https://prefect\.example/runs/flow-run/[0-9a-f-]{36}"', at_work)


def test_a_group_that_waits_says_why(site, night):
    page = site.page(address("/groups", night.group("waiting")))
    assert "Why it waits" in page
    assert "no calibration for Dec +16.1" in page


@pytest.mark.slow
def test_a_group_whose_worker_has_been_silent_for_a_quarter_of_an_hour_is_told_from_one_at_work(night):
    path = address("/groups", night.group("in_progress"))
    later = _site(night.settings, NOW + timedelta(minutes=16))
    for place in (path, "/groups"):
        assert "<span>silent</span>" in later.page(place)
        assert "<span>silent</span>" not in _site(night.settings).page(place)


# -- calibration, images, mosaics and the services -----------------------------------------------------------------


def test_the_time_line_has_a_window_for_each_set_and_says_which_holds_now(site):
    page = site.page("/calibration")
    assert page.count('class="window tone-good"') == 4
    assert page.count('class="window tone-off"') == 1
    assert page.count('class="window tone-bad"') == 1
    assert page.count("holds now</span>") == 1
    assert ">now</text>" in page
    assert "antenna 24 was off source" in page
    assert "31 of 96 antennas" in page
    anchors = {str(a["href"])[1:] for a in Page(page).all("a") if str(a.get("href")).startswith("#set-")}
    assert anchors <= {str(row.get("id")) for row in Page(page).all("tr")}


def test_only_the_days_that_are_asked_for_are_on_the_time_line_and_below_it(site):
    names = lambda query: {one["set_name"] for one in site.json(f"/calibration.json?{query}")["items"]}  # noqa: E731
    assert "2026_tonight_0521+166" in names("days=1"), "it was turned down tonight"
    assert "2026_two_nights_ago_1459+716" not in names("days=1")
    assert "2026_two_nights_ago_1459+716" in names("days=3")
    assert names("until=2026-11-10") == set()
    assert "Look at 30 days" in site.page("/calibration?until=2026-11-10")


def test_an_image_that_is_bad_says_so_where_all_are_shown(site, night):
    page = site.page("/images")
    (bad,) = re.findall(r'<li class="tone-bad">(.*?)</li>', page, re.DOTALL)
    assert "1.6 times" in bad
    assert "rms 55.0 mJy" in bad
    assert page.count("<li class") == sum(k not in _WITHOUT_IMAGE for k in night.groups.values())


_WITHOUT_IMAGE = ("collecting", "pending", "waiting", "in_progress", "failed", "timed out")


def test_a_mosaic_shows_rejected_tiles_first_and_checks_that_failed_first(site, night):
    page = site.page(address("/mosaics", night.mosaic))
    tiles = page[page.index('<h2 id="tiles">') :]
    assert tiles.index("noise 55.0 mJy") < tiles.index("<span>used</span>")
    checks = page[page.index('<h2 id="checks">') :]
    assert checks.index("below -5 sigma") < checks.index("coverage") < checks.index("no catalogue was given")
    assert "16.3 Jy/beam" in page


def test_the_services_say_how_they_do(site):
    assert "the service answered 503" in site.page("/elog")
    assert "mfxl1033223" in site.page("/constants")
    assert "chunk 0.3 of counts has 812 of 4096 bytes" in site.page("/scans")
    cxi = site.page("/cxi")
    assert "12.2 %" in cxi or "12.3 %" in cxi
    assert ">27.0<" in cxi, "84240 peaks in 3120 hits"
    platform = site.page("/platform")
    assert "Nothing runs" in platform
    assert "over 1, 5 and 15 minutes" in platform
    assert "older than 30 days" in platform


@pytest.mark.slow
def test_measures_that_are_unknown_are_counted_beside_a_good_verdict(tmp_path):
    night = sample_night(tmp_path / "state", now=NOW)
    site = _site(night.settings)
    image = site.json("/images.json")["items"][0]
    with closing(sqlite3.connect(tmp_path / "state" / "products.sqlite3")) as raw:
        raw.execute("UPDATE qa_scores SET verdict = 'good' WHERE subject = ?", (image["group_id"],))
        first = raw.execute("SELECT name FROM qa_scores WHERE subject = ?", (image["group_id"],)).fetchone()
        raw.execute(
            "UPDATE qa_scores SET verdict = 'unknown' WHERE subject = ? AND name = ?", (image["group_id"], *first)
        )
        raw.commit()
    card = site.page("/images").partition(f"/images/{image['id']}")[2].partition("</li>")[0]
    assert "<span>good</span>" in card
    assert "1 unknown" in card


@pytest.mark.slow
def test_what_housekeeping_put_aside_is_said_to_be_so_and_has_no_picture(tmp_path):
    night = sample_night(tmp_path / "state", now=NOW)
    site = _site(night.settings)
    image = site.json("/images.json")["items"][0]
    mosaic = next(one for one in site.json("/mosaics.json")["mosaics"]["items"] if one["png_url"])
    assert image["png_url"]
    with closing(sqlite3.connect(tmp_path / "state" / "products.sqlite3")) as raw:
        stem = image["path"].removesuffix(".fits").removesuffix(".pbcor").removesuffix(".image")
        for kind, path in (("image", stem), ("mosaic", mosaic["output_path"])):
            raw.execute(
                "INSERT INTO quarantine (path, original_path, kind, reason, moved_at, state) VALUES (?, ?, ?, ?, ?, ?)",
                (f"/q/{path}", path, kind, "it is older than 30 days", NOW.timestamp() - 10, "held"),
            )
        raw.commit()
    for path in ("/images", "/images?view=table", f"/images/{image['id']}", f"/groups/{image['group_id']}"):
        page = site.page(path)
        assert ("put aside" in page, image["png_url"] in page) == (True, False), path
    for path in ("/mosaics", f"/mosaics/{mosaic['name']}"):
        page = site.page(path)
        assert ("put aside" in page, mosaic["png_url"] in page) == (True, False), path
    with closing(sqlite3.connect(tmp_path / "state" / "products.sqlite3")) as raw:
        raw.execute("UPDATE images SET created_at = ?", (NOW.timestamp() - 5,))
        raw.execute("UPDATE quarantine SET state = 'restored' WHERE original_path = ?", (mosaic["output_path"],))
        raw.commit()
    assert "put aside" not in site.page(f"/images/{image['id']}"), "it was made again since"
    assert "put aside" not in site.page(f"/mosaics/{mosaic['name']}")


@pytest.mark.slow
def test_a_quick_image_and_its_group_say_so(tmp_path):
    site = _site(sample_night(tmp_path / "state", now=NOW).settings)
    image = next(one for one in site.json("/images.json")["items"] if one["group_id"])
    for name, change in (
        ("products.sqlite3", "UPDATE images SET quick = 1 WHERE group_id = ?"),
        ("ingest.sqlite3", "UPDATE ingest_queue SET imaging = 'quick', owed = 'image' WHERE group_id = ?"),
    ):
        with closing(sqlite3.connect(tmp_path / "state" / name)) as raw:
            raw.execute(change, (image["group_id"],))
            raw.commit()
    assert "fewer pixels and components" in site.page(f"/images/{image['id']}")
    assert "<span>quick</span>" in site.page("/images")
    page = site.page(f"/groups/{image['group_id']}")
    assert "imaged quickly" in page
    assert "owed its full image" in page


def test_every_work_pool_says_how_it_is(tmp_path):
    told = {"state_dir": tmp_path / "state", "platform.api_url": "http://127.0.0.1:9/api"}
    site = _site(load_settings(overrides=told, environ={}).resolved())
    pools = (
        PoolStatus("ready-pool", False, 1, 2, 0, 0, 0),
        PoolStatus("paused-pool", True, 1, 0, 0, 0, 0),
        PoolStatus("bare-pool", False, 0, 0, 0, 0, 0),
        PoolStatus("late-pool", False, 1, 0, 0, 0, 4),
    )
    reader = site.app.state.reader
    reader._platform = PlatformWatch(reader.settings, now=lambda: NOW, ask=lambda *_, **__: ("healthy", pools))
    rows = {line.partition("</th>")[0]: line for line in site.page("/platform").split('<th scope="row">')}
    said = {"ready-pool": "ready", "paused-pool": "paused", "bare-pool": "no worker", "late-pool": "behind"}
    assert {name: word for name, word in said.items() if f"<span>{word}</span>" in rows[name]} == said


def test_a_writer_that_is_gone_is_not_said_to_run(site):
    page = site.page("/cxi")
    assert "<span>dead</span>" in page
    assert "<span>running</span>" not in page


# -- trouble ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("database", "path"),
    [("ingest", "/groups"), ("ingest", "/"), ("products", "/images"), ("cal_registry", "/calibration")],
)
def test_a_database_that_is_none_is_said_on_the_page_which_comes_all_the_same(tmp_path, database, path):
    settings = sample_settings(tmp_path / "state")
    settings.state_dir.mkdir()
    (settings.state_dir / f"{database}.sqlite3").write_bytes(b"this is no database" * 100)
    page = _site(settings).page(path)
    assert re.search(r'class="banner tone-warn".*?sqlite3', page, re.DOTALL)


@pytest.mark.parametrize(
    ("database", "path", "words"),
    [
        ("products", "/", "No mosaic has been built yet"),
        ("products", "/images", "No image has been made yet"),
        ("products", "/mosaics", "No mosaic has been planned yet"),
        ("cal_registry", "/", "No set of tables holds now"),
        ("ingest", "/groups", "No group has come yet"),
    ],
)
def test_of_what_cannot_be_read_it_is_not_said_that_there_is_none(tmp_path, database, path, words):
    settings = sample_settings(tmp_path / "state")
    assert words in _site(settings).page(path), "nobody has made it yet"
    settings.state_dir.mkdir()
    (settings.state_dir / f"{database}.sqlite3").write_bytes(b"this is no database" * 100)
    page = _site(settings).page(path)
    assert words not in page
    assert "cannot be told" in page
    assert re.search(r'class="banner tone-warn".*?sqlite3', page, re.DOTALL)


def test_why_groups_cannot_be_read_is_brought_up_to_date_with_them(tmp_path):
    settings = sample_settings(tmp_path / "state")
    settings.state_dir.mkdir()
    (settings.state_dir / "ingest.sqlite3").write_bytes(b"this is no database" * 100)
    page = _site(settings).page("/groups")
    assert page.index('id="fresh"') < page.index("banner tone-warn")


def test_a_group_in_a_queue_that_cannot_be_read_is_not_said_to_be_missing(tmp_path):
    settings = sample_settings(tmp_path / "state")
    settings.state_dir.mkdir()
    (settings.state_dir / "ingest.sqlite3").write_bytes(b"this is no database" * 100)
    assert "the queue cannot be read" in _site(settings).page("/groups/2026-11-21T03:15:02", status=503)


@pytest.mark.slow
def test_rows_that_hold_next_to_nothing_are_shown_as_far_as_they_go(tmp_path):
    settings = sample_settings(tmp_path / "state")
    sample_night(tmp_path / "state", now=NOW)
    state = settings.state_dir
    rows = {
        "ingest": [
            "INSERT INTO ingest_queue (group_id, state, received_at, last_update) VALUES ('bare', 'odd', 0, 0)",
            "INSERT INTO ingest_queue (group_id, state, received_at, last_update, calibrators, dec_deg,"
            " expected_subbands) VALUES ('odder', 'failed', 1e300, -1e300, '[{}, 3, null]', 9e999, 3)",
            "INSERT INTO subband_files (group_id, subband_idx, path) VALUES ('odder', 99, '')",
            "INSERT INTO attempts (group_id, attempt, started_at, outcome) VALUES ('odder', 1, 9e999, 'odd')",
            "INSERT INTO receipts (group_id, step, finished_at, content) VALUES ('odder', 'calibrate', 0, '[1]')",
            "INSERT INTO receipts (group_id, step, finished_at, content) VALUES ('bare', 'calibrate', 0, '"
            '{"set_name": 7, "tables": "x", "age_days": "old"}\')',
        ],
        "cal_registry": [
            "INSERT INTO caltables (set_name, path, table_type, order_index, created_at, status)"
            " VALUES ('bare', '/x', 'K', 0, 9e999, 'odd')",
            "INSERT INTO calsets (set_name, status, created_at, mid_mjd) VALUES ('gone', 'failed', 0, 9e999)",
        ],
        "products": [
            "INSERT INTO images (path, ms_path, created_at, type, files) VALUES ('/a', '/b', 9e999, '5min', '{')",
            "INSERT INTO mosaics (name, created_at, status, tiles, verdicts, checks, files) VALUES"
            " ('bare', 9e999, 'odd', '', '[{}, 3, {\"reasons\": 7}]', '{\"a\": 1}', '[]')",
            "INSERT INTO qa_scores (kind, subject, name, verdict, created_at) VALUES ('mosaic', 'bare', 'x', 'odd', 0)",
            "INSERT INTO nights (night, state, updated_at) VALUES ('someday', 'odd', -1e300)",
        ],
    }  # fmt: skip
    for name, statements in rows.items():
        with closing(sqlite3.connect(state / f"{name}.sqlite3")) as connection, connection:
            for statement in statements:
                connection.execute(statement)
    site = _site(settings)
    (image,) = [one["id"] for one in site.json("/images.json?limit=200")["items"] if one["path"] == "/a"]
    for path in (*LISTS, "/groups/bare", "/groups/odder", "/mosaics/bare", f"/images/{image}", "/images?view=table"):
        site.page(path)
        if path != "/images?view=table":
            site.json("/tonight.json" if path == "/" else f"{path}.json")


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("day", ["0001-01-01", "9999-12-30", "9999-12-31"])
def test_the_ends_of_all_time_are_days_like_others_or_refused(site, path, day):
    for query in (f"since={day}", f"until={day}", f"until={day}&days=30", f"since={day}&until={day}"):
        assert site.ask(f"{path}?{query}").status_code in (200, 400), query


def test_how_many_were_looked_through_is_said_only_where_there_are_more(site, monkeypatch):
    assert "Looked through" not in site.page("/groups?text=imager")
    assert "Looked through" not in site.page("/mosaics?text=tonight")
    monkeypatch.setattr("nightbeam.monitor.read.SEARCHED", 3)
    monkeypatch.setattr("nightbeam.monitor.views._MOST_MOSAICS", 1)
    assert "Looked through the newest 3 groups" in site.page("/groups?text=imager")
    assert "Looked through the newest 1 mosaics" in site.page("/mosaics?text=tonight")


def test_a_page_that_goes_on_from_a_row_that_is_gone_says_so(site):
    for path in ("/groups?before=2000-01-01T00:00:00", "/images?before=99999"):
        page = site.page(path)
        assert "begin again" in page
        assert "has been made yet" not in page


# -- hostile values -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_that_a_database_holds_becomes_markup(hostile, hostile_night):
    seen = 0
    for path in _every_page(hostile, hostile_night):
        text = hostile.page(path)
        page = Page(text)
        assert HOSTILE not in text
        assert not [attrs for tag, attrs in page.tags if any(name.startswith("on") for name in attrs)], path
        assert [attrs.get("src", "").partition("?")[0] for attrs in page.all("script")] == [
            "/static/htmx.min.js", "/static/page.js",
        ], path  # fmt: skip
        assert not [attrs for attrs in page.all("img") if not str(attrs["src"]).startswith("/api/")], path
        seen += "alert(&#39;x&#39;)" in text
    assert seen >= 12, "it was there to be seen"


@pytest.mark.parametrize(
    "path", ["/groups?text=", "/mosaics?text=", "/calibration?text=", "/login?next=", "/groups/", "/mosaics/", "/none/"]
)
def test_nothing_of_an_address_becomes_markup(site, path):
    text = site.ask(path + httpx.URL("http://x", params={"q": HOSTILE}).query.decode()[2:].replace("%2F", "%5C")).text
    page = Page(text)
    assert HOSTILE not in text
    assert len(page.all("script")) == 2
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]


# -- manners ------------------------------------------------------------------------------------------------------


def test_every_page_keeps_to_the_policy_without_any_exception_from_it(site, night):
    for path in _every_page(site, night):
        page = Page(site.page(path))
        assert not [tag for tag, attrs in page.tags if "style" in attrs or tag == "style"], path
        for tag, attrs in page.tags:
            for name in ("src", "href", "action", "hx-get"):
                told = attrs.get(name)
                assert told is None or told.startswith(("/", "#")), f"{path}: {tag} {name}={told}"
                assert told is None or not told.startswith("//"), path


def test_every_page_can_be_used_by_keyboard_and_read_aloud(site, night):
    for path in _every_page(site, night):
        text = site.page(path)
        page = Page(text)
        assert page.all("html")[0]["lang"] == "en"
        assert len(page.all("h1")) == len(page.all("main")) == len(page.all("nav")) == 1, path
        assert page.all("a")[0] == {"class": "skip", "href": "#main"}
        assert all(th.get("scope") in ("col", "row") for th in page.all("th")), path
        assert all("alt" in image for image in page.all("img"))
        ids = [str(attrs["id"]) for _, attrs in page.tags if attrs.get("id")]
        assert len(ids) == len(set(ids)), path
        labelled = {attrs["aria-labelledby"] for _, attrs in page.tags if attrs.get("aria-labelledby")}
        assert labelled <= set(ids), path
        fields = len([i for i in page.all("input") if i.get("type") != "hidden"]) + len(page.all("select"))
        assert len(page.all("label")) >= fields, path


def test_times_say_when_and_how_long_ago(site, night):
    page = site.page(address("/groups", night.group("late")))
    pattern = (
        r'<time class="nowrap" datetime="(2026-11-\d\dT[\d:]{8}Z)">([^<]+)</time> <span class="soft nowrap">[^<]+ ago<'
    )
    found = re.findall(pattern, page)
    assert found
    assert all(iso.replace("T", " ") == shown for iso, shown in found)


def test_a_page_is_brought_up_to_date_unless_it_is_held_still(site):
    assert 'hx-get="/groups?state=failed" hx-trigger="every 10s, seen"' in site.page("/groups?state=failed")
    still = site.page("/groups?state=failed&refresh=0")
    assert "hx-get" not in still
    assert 'href="/groups?state=failed">Keep it up to date' in still


def test_a_group_that_has_ended_is_not_asked_for_again_and_again(site, night):
    assert "hx-get" in site.page(address("/groups", night.group("in_progress")))
    assert "hx-get" not in site.page(address("/groups", night.group("late")))


def test_htmx_is_told_to_evaluate_nothing_and_to_add_no_style(site):
    (told,) = [m["content"] for m in Page(site.page("/")).all("meta") if m.get("name") == "htmx-config"]
    config = json.loads(str(told))
    assert (config["allowEval"], config["includeIndicatorStyles"], config["selfRequestsOnly"]) == (False, False, True)


@pytest.mark.parametrize("name", STATIC)
def test_files_of_the_page_are_kept_by_a_browser_for_as_long_as_they_are_the_same(site, name):
    (address_,) = {
        str(attrs.get("src") or attrs.get("href"))
        for _, attrs in Page(site.page("/")).tags
        if f"/static/{name}" in str(attrs.get("src") or attrs.get("href"))
    }
    answer = site.ask(address_)
    assert (answer.status_code, answer.headers["content-type"]) == (200, STATIC[name])
    assert "immutable" in answer.headers["cache-control"]
    assert "immutable" not in site.ask(f"/static/{name}?v=older").headers["cache-control"]


@pytest.mark.parametrize("name", ["base.html", "..%2Fpages.py", "", "style.css%00"])
def test_nothing_but_those_files_is_served(site, name):
    assert site.ask(f"/static/{name}").status_code == 404


# -- doing something ----------------------------------------------------------------------------------------------


def _csrf(page: str) -> str:
    (found,) = [i["value"] for i in Page(page).all("input") if i.get("name") == "csrf"]
    return str(found)


def test_whoever_is_not_logged_in_is_led_to_the_log_in_and_back(site, night):
    path = address("/groups", night.group("failed"))
    page = site.page(path)
    assert "<button" not in page
    assert f"/login?next={httpx.URL('http://x', params={'n': path}).query.decode()[2:]}".replace(
        "%3A", ":"
    ) in page.replace("%3A", ":")
    answer = site.ask(f"{path}/reprocess", method="POST", data={})
    assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (303, "/login")
    assert site.starts.asked == []


def test_the_cookie_is_kept_from_scripts_and_other_sites(site):
    answer = site.ask("/login", method="POST", data={"token": TOKEN, "next": "/groups?state=failed"})
    assert answer.headers["location"] == "/groups?state=failed&said=in"
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert TOKEN not in cookie


@pytest.mark.parametrize("to", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_after_the_log_in_one_is_never_led_to_another_site(site, to):
    answer = site.ask("/login", method="POST", data={"token": TOKEN, "next": to})
    assert answer.headers["location"] == "/?said=in"


@pytest.mark.parametrize(
    ("form", "headers"),
    [({"token": "another"}, {}), ({}, {}), ({"token": TOKEN}, {"origin": "https://evil.example"})],
)
def test_a_wrong_word_or_one_from_elsewhere_lets_nobody_in(site, form, headers):
    answer = site.ask("/login", method="POST", data=form, headers=headers)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_a_click_reprocesses_a_group_and_leads_back_to_it_with_a_link_to_its_run(site, night):
    headers, group = site.log_in(), night.group("failed")
    path = address("/groups", group)
    page = site.page(path, headers=headers)
    answer = site.ask(f"{path}/reprocess", method="POST", data={"csrf": _csrf(page)}, headers=headers)
    assert site.starts.asked == [group]
    assert (answer.status_code, answer.headers["location"]) == (303, f"{path}?said=reprocessing&run={RUN}")
    assert "a run was started" in site.page(answer.headers["location"], headers=headers)


@pytest.mark.parametrize("form", [{}, {"csrf": ""}, {"csrf": "another"}])
def test_a_form_without_the_word_of_its_page_does_nothing(site, night, form):
    path = address("/groups", night.group("failed"))
    page = site.page(f"{path}/reprocess", status=403, method="POST", data=form, headers=site.log_in())
    assert "the form is not of this session" in page
    assert site.starts.asked == []


def test_a_form_that_another_site_sends_does_nothing(site, night):
    path, headers = address("/groups", night.group("failed")), site.log_in()
    form = {"csrf": _csrf(site.page(path, headers=headers))}
    more = headers | {"origin": "https://evil.example"}
    site.page(f"{path}/reprocess", status=403, method="POST", data=form, headers=more)
    assert site.starts.asked == []


def test_what_keeps_a_group_from_being_done_again_is_said_in_its_words(site, night):
    def refuse(_group: str) -> Reprocessed:
        raise UnavailableError("no platform runs, so nothing would do it", fix="start it with `nightbeam up`")

    site.starts.answer = refuse
    path, headers = address("/groups", night.group("failed")), site.log_in()
    form = {"csrf": _csrf(site.page(path, headers=headers))}
    page = site.page(f"{path}/reprocess", status=503, method="POST", data=form, headers=headers)
    assert "no platform runs" in page
    assert "start it with" in page


def test_a_group_that_is_being_worked_on_has_no_button_but_says_why(site, night):
    page = site.page(address("/groups", night.group("in_progress")), headers=site.log_in())
    assert "Reprocess</button>" not in page
    assert "nightbeam groups reprocess" in page


@pytest.mark.parametrize("partial", [True, False])
def test_a_group_that_lacks_subbands_is_done_with_those_it_has_where_that_is_ticked(site, night, partial):
    path, headers = address("/groups", night.group("timed out")), site.log_in()
    page = site.page(path, headers=headers)
    assert "although 9 subbands are missing" in page
    form = {"csrf": _csrf(page)} | ({"partial": "1"} if partial else {})
    site.ask(f"{path}/reprocess", method="POST", data=form, headers=headers)
    assert (site.starts.asked, site.starts.partial) == ([night.group("timed out")], partial)


def test_after_the_log_out_the_page_says_so_and_the_cookie_is_gone(site):
    answer = site.ask("/logout", method="POST", headers=site.log_in())
    assert answer.headers["location"] == "/?said=out"
    assert "Max-Age=0" in answer.headers["set-cookie"]


def test_a_page_of_another_site_cannot_log_anybody_out(site):
    headers = site.log_in() | {"origin": "https://evil.example"}
    answer = site.ask("/logout", method="POST", headers=headers)
    assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)


def test_a_message_in_an_address_is_one_of_ours_or_none(site):
    assert 'role="status"' not in site.page("/groups?said=%3Cb%3Eyour+account+is+locked")
    assert "evil" not in site.page("/groups?said=reprocessing&run=https://evil.example")


# -- how long it takes --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_page_asks_no_more_of_the_databases_for_more_groups(tmp_path, monkeypatch):
    counts = []
    for groups in (16, 40):
        made = sample_night(tmp_path / str(groups) / "state", now=NOW, groups=groups)
        site = _site(made.settings)
        site.page("/")
        asked: list[int] = []
        reader = site.app.state.reader
        for kept in reader._databases().values():
            original = kept.read

            def read(original: Any = original, asked: list[int] = asked) -> Any:
                asked.append(1)
                return original()

            monkeypatch.setattr(kept, "read", read)
        site.app.state.reader._clock = (NOW + timedelta(seconds=30)).timestamp
        for path in LISTS:
            site.page(path)
        counts.append(len(asked))
    assert counts[0] == counts[1] > 0


def test_the_word_of_the_site_is_on_no_page(site, night):
    headers = site.log_in()
    assert [p for p in _every_page(site, night) if TOKEN in site.page(p, headers=headers)] == []


def test_the_file_of_htmx_is_the_published_one():
    file = Path(render.__file__).parent / "static" / "htmx.min.js"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == HTMX
