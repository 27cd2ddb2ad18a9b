"""Every route: its fields, its limits, and what it refuses."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections import namedtuple
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from prometheus_client.parser import text_string_to_metric_families

from nightbeam.core.errors import StorageError
from nightbeam.core.settings import Settings
from nightbeam.monitor.app import create_app
from nightbeam.monitor.auth import COOKIE, Auth
from nightbeam.monitor.metrics import Instruments, Machine
from nightbeam.monitor.model import Reprocessed
from nightbeam.monitor.read import Reader

Get = Callable[..., Any]
FIRST = "2025-10-02T00:00:00"
TOKEN = "a-token-for-the-tests-alone"
GROUP_FIELDS = {
    "group_id", "state", "received_at", "last_update", "subbands_present", "expected_subbands", "has_calibrator",
    "matches",
}  # fmt: skip
MATCH_FIELDS = {"name", "ra_deg", "dec_deg", "sep_deg", "weighted_flux"}
METRICS_FIELDS = {
    "ts", "cpu_percent", "mem_percent", "mem_total", "mem_used", "disk_total", "disk_used", "load_1", "load_5",
    "load_15",
}  # fmt: skip
#: Route -> the fields of each of its items, of the requirement's table.
LISTS = {
    "/api/products": {"id", "path", "ms_path", "created_at", "type", "beam_major_arcsec", "noise_jy", "pbcor"},
    "/api/calibrator_matches": {"group_id", "matched", "matches", "received_at", "last_update"},
    "/api/qa": {"group_id", "name", "path", "created_at"},
    "/api/qa/thumbs": {"group_id", "name", "path", "created_at"},
    "/api/ms_index": {
        "path", "start_mjd", "end_mjd", "mid_mjd", "processed_at", "status", "stage", "stage_updated_at", "cal_applied",
        "imagename",
    },
    "/api/images": {"id", "path", "group_id", "mid_mjd", "mid", "noise_jy", "png_url"},
    "/api/calibration": {"set_name", "tables", "active", "total", "valid_start", "valid_end"},
    "/api/groups": GROUP_FIELDS,
}  # fmt: skip
LIMITED = [*LISTS, "/api/status", "/api/metrics/system/history", "/api/ui/calibrators", "/api/mosaics", "/api/nights",
           "/api/scores", "/api/quarantine"]  # fmt: skip
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def texts_of(value: Any, name: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [one for key, inner in value.items() for one in texts_of(inner, key)]
    if isinstance(value, list):
        return [one for inner in value for one in texts_of(inner, name)]
    return [(name, value)]


# -- fields -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_status_has_the_fields_that_people_know(get: Get):
    found = get("/api/status").json()
    assert {"queue", "recent_groups", "calibration_sets", "matched_recent"} <= set(found)
    assert set(found["queue"]) == {"total", "pending", "in_progress", "failed", "completed", "collecting"}
    assert set(found["recent_groups"][0]) >= GROUP_FIELDS
    assert found["recent_groups"][-1]["matches"][0].keys() == MATCH_FIELDS
    (calibration,) = found["calibration_sets"]
    assert {"set_name": "a", "active": 1, "total": 1}.items() <= calibration.items()
    assert found["matched_recent"] == 1


@pytest.mark.parametrize("route", list(LISTS))
def test_a_list_has_items_with_the_fields_that_people_know(get: Get, route: str):
    items = get(route).json()["items"]
    assert items
    assert all(LISTS[route] <= set(item) for item in items)


def test_a_group_has_its_fields_and_those_of_its_work(get: Get):
    found = get(f"/api/groups/{FIRST}").json()
    assert set(found) >= GROUP_FIELDS | {"qa", "perf_total_time", "writer_type"}
    assert (found["perf_total_time"], found["writer_type"]) == (61.5, "direct-subband")
    assert found["received_at"] == "2025-10-02T00:00:20Z"
    assert get("/api/groups/2000-01-01T00:00:00").status == 404


def test_the_machine_has_its_numbers_and_a_history_oldest_first(get: Get):
    assert set(get("/api/metrics/system").json()) == METRICS_FIELDS
    history = get("/api/metrics/system/history?limit=5").json()
    assert set(history[0]) == METRICS_FIELDS
    assert [one["ts"] for one in history] == sorted(one["ts"] for one in history)


def test_only_matched_groups_are_given_where_only_those_are_wanted(get: Get):
    assert [one["matched"] for one in get("/api/calibrator_matches").json()["items"]].count(True) == 1
    assert [one["group_id"] for one in get("/api/calibrator_matches?matched_only=true").json()["items"]] == [FIRST]


def test_names_are_escaped_in_the_table_of_calibrators(get: Get):
    found = get("/api/ui/calibrators")
    assert found.headers["content-type"].startswith("text/html")
    assert b"3C48 &lt;b&gt;" in found.body
    assert b"<b>" not in found.body


@pytest.mark.parametrize("route", [*LISTS, "/api/status", f"/api/groups/{FIRST}", "/api/tonight", "/api/platform"])
def test_every_time_is_in_utc_and_says_so(get: Get, route: str):
    for name, value in texts_of(get(route).json()):
        if isinstance(value, str) and (
            name.endswith(("_at", "_update", "_start", "_end")) or name in ("start", "mid", "now")
        ):
            assert TIME.fullmatch(value), f"{name} is {value}"


@pytest.mark.parametrize("route", ["elog", "constants", "scans", "cxi", "platform"])
def test_each_system_says_how_it_does(get: Get, route: str):
    system = get(f"/api/{route}").json()["system"]
    assert system["standing"] in ("ok", "waiting", "trouble", "off", "unknown")
    assert system["reason"]


def test_tonight_has_every_system_those_in_trouble_first(get: Get):
    found = get("/api/tonight").json()
    assert {one["key"] for one in found["systems"]} == {"contimg", "elog", "constants", "scans", "cxi", "platform"}
    assert (found["standing"], found["systems"][0]["key"]) == ("trouble", "contimg"), "a group failed"


def test_the_processors_are_measured_whichever_thread_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Times = namedtuple("Times", "user system idle iowait guest")
    looks = iter([Times(100.0, 10.0, 500.0, 5.0, 50.0), Times(130.0, 20.0, 555.0, 10.0, 70.0)])
    monkeypatch.setattr("nightbeam.monitor.metrics.psutil.cpu_times", lambda: next(looks))
    machine, found = Machine(tmp_path), []
    other = threading.Thread(target=lambda: found.append(machine.now().cpu_percent))
    other.start()
    other.join(10.0)
    assert found == [40.0], "of 100 s in all 30 and 10 at work; a guest's 20 are among the first 30"


def test_prometheus_can_read_its_numbers(get: Get):
    get("/api/status")
    families = {one.name: one for one in text_string_to_metric_families(get("/metrics").body.decode())}
    groups = {one.labels["state"]: one.value for one in families["nightbeam_groups"].samples}
    assert groups == {"collecting": 1, "pending": 1, "in_progress": 1, "completed": 1, "failed": 1}
    assert families["nightbeam_backlog_minutes"].samples[0].value == 5.0
    levels = {one.labels["level"]: one.value for one in families["nightbeam_pressure_level"].samples}
    assert levels == {"calm": 1.0, "behind": 0.0, "quick": 0.0}
    counted = {(one.labels["route"], one.labels["status"]): one.value for one in families["nightbeam_requests"].samples}
    assert counted["/api/status", "200"] >= 1.0


# -- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", LIMITED)
@pytest.mark.parametrize("limit", ["0", "-1", "1001", "1e9", "x", "", "9" * 50, "NaN"])
def test_a_limit_that_is_none_is_refused_and_not_sent_back(get: Get, route: str, limit: str):
    found = get(f"{route}?limit={limit}")
    assert found.status == 422
    (said,) = found.json()["detail"]
    assert (said["loc"], set(said)) == (["query", "limit"], {"loc", "msg", "type"})


@pytest.mark.parametrize("route", LIMITED)
def test_a_limit_is_kept(get: Get, route: str):
    found = get(f"{route}?limit=1")
    assert found.status == 200
    if "ui" not in route:
        said = found.json()
        assert len(said if isinstance(said, list) else said.get("items", [])) <= 1


@pytest.mark.parametrize(
    "query",
    ["state=none", "since=yesterday", "before=" + "x" * 201, "text=" + "x" * 201, "since=99999-01-01T00:00:00Z"],
)
def test_a_question_that_makes_no_sense_is_refused(get: Get, query: str):
    assert get(f"/api/groups?{query}").status == 422


@pytest.mark.parametrize(
    "query", ["since=0001-01-01T00:00:00Z", "until=9999-12-31T23:59:59Z", "text=%00", "text=%ff%fe", "before=%00"]
)
def test_an_odd_question_is_answered(get: Get, query: str):
    assert get(f"/api/groups?{query}").status == 200


# -- what may be seen ---------------------------------------------------------------------------------------------


def test_a_figure_a_report_and_a_drawing_come_with_their_types_and_rules(get: Get):
    png = get(f"/api/qa/file/{FIRST}/image.png")
    assert (png.status, png.body, png.headers["content-type"]) == (200, b"\x89PNG qa", "image/png")
    assert png.headers["x-content-type-options"] == "nosniff"
    assert get(f"/api/qa/file/{FIRST}/metrics.json").headers["content-type"] == "application/json"
    svg = get(f"/api/qa/file/{FIRST}/plot.svg")
    assert svg.headers["content-type"] == "image/svg+xml"
    assert "sandbox" in svg.headers["content-security-policy"]
    again = get(f"/api/qa/file/{FIRST}/image.png", headers={"if-none-match": png.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert get("/api/images/1/png").body == b"\x89PNG image"


@pytest.mark.parametrize(
    "path",
    [
        "../monitor.token", "..%2fmonitor.token", "%2e%2e/monitor.token", "%2e%2e%2fmonitor.token",
        "..%252fmonitor.token", f"{FIRST}/../../monitor.token", f"{FIRST}/..%2f..%2fingest.sqlite3",
        f"{FIRST}/%2e%2e%2f%2e%2e%2fnightbeam.yaml",
        f"{FIRST}/..%5c..%5cmonitor.token", f"{FIRST}/%2fetc%2fpasswd", "%2fetc/passwd", f"{FIRST}//etc/passwd",
        f"{FIRST}/image.png%00.txt", f"{FIRST}/%00", f"{FIRST}/notes.txt", f"{FIRST}/.hidden.png", f"{FIRST}/out.png",
        f"{FIRST}/", f"{FIRST}", "", f"{FIRST}/{'a' * 5000}.png", f"{FIRST}/%ff%fe.png",
        f"{FIRST}/%c0%ae%c0%ae%2fmonitor.token",
        f"{FIRST}/%E2%80%A5%2fmonitor.token", "./image.png", f"{FIRST}/image.png/", "~/image.png", f"{FIRST}/*.png",
    ],
)  # fmt: skip
def test_nothing_outside_is_ever_sent(get: Get, filled: Settings, path: str):
    qa = filled.state_dir / "qa"
    secret = "never to be seen"
    for place in (filled.state_dir / "monitor.token", filled.state_dir / "nightbeam.yaml", qa / FIRST / "notes.txt",
                  qa / FIRST / ".hidden.png", filled.state_dir / "outside.png"):  # fmt: skip
        place.write_text(secret)
    (qa / FIRST / "out.png").symlink_to(filled.state_dir / "outside.png")
    found = get(f"/api/qa/file/{path}")
    assert found.status in (404, 405, 422)
    assert secret.encode() not in found.body
    assert b"SQLite" not in found.body


@pytest.mark.parametrize(
    "named",
    ["/etc/passwd", "{state}/monitor.token", "{state}/ingest.sqlite3", "{out}/x.png", "x.png", "{state}/link.png"],
)
def test_a_row_that_names_another_file_shows_none(get: Get, filled: Settings, tmp_path: Path, named: str):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").write_text("secret")
    (filled.state_dir / "link.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    path = named.format(state=filled.state_dir, out=tmp_path / "elsewhere")
    with closing(sqlite3.connect(str(filled.contimg.products_db).removeprefix("sqlite:///"))) as raw:
        raw.execute("UPDATE images SET files = json_object('png', ?)", (path,))
        raw.commit()
    assert get("/api/images/1/png").status == 404


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/api", "/api/", "/api/qa/file/", "/.git/config", "/api/docs"])
def test_nothing_is_listed_and_no_page_loads_from_another_site(get: Get, path: str):
    found = get(path)
    assert found.status == 404
    assert found.json() == {"detail": "Not Found"}


# -- changing something -------------------------------------------------------------------------------------------


class Fake:
    """Remembers what it was asked to start."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []

    def start(self, group_id: str, *, key: str | None = None) -> Reprocessed:
        self.asked.append((group_id, key))
        return Reprocessed(ok=True, group_id=group_id, run_id="r", started=True)


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def changing(app: Any, fake: Fake) -> Any:
    app.state.reprocessing = fake
    return app


@pytest.fixture
def post(changing: Any, ask: Callable[..., Any]) -> Get:
    def asked(headers: dict[str, str] | None = None, group: str = FIRST, body: bytes = b"") -> Any:
        return ask(changing, f"/api/reprocess/{group}", method="POST", headers=headers or {}, body=body)

    return asked


def test_whoever_shows_the_token_has_a_group_done_again(post: Get, fake: Fake):
    found = post({"authorization": f"Bearer {TOKEN}", "idempotency-key": "mine"})
    assert (found.status, found.json()["ok"], found.json()["error"]) == (200, True, None)
    assert fake.asked == [(FIRST, "mine")]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"cookie": f"{COOKIE}=forged"}, 401),
        ({"authorization": "Bearer wrong"}, 403),
        ({"authorization": "Basic " + TOKEN}, 401),
        ({"authorization": TOKEN}, 401),
    ],
)
def test_nobody_else_does(post: Get, fake: Fake, headers: dict[str, str], status: int):
    found = post(headers)
    assert (found.status, found.json()["ok"], fake.asked) == (status, False, [])
    assert TOKEN not in found.body.decode()


def test_a_browser_needs_its_cookie_the_word_of_its_page_and_to_be_on_it(post: Get, changing: Any, fake: Fake):
    session = changing.state.auth.new_session()
    cookie = {"cookie": f"{COOKIE}={session.value}"}
    assert post(cookie).status == 403
    good = {**cookie, "x-csrf-token": session.csrf, "origin": "http://127.0.0.1:8000"}
    assert post({**good, "origin": "http://evil.example"}).status == 403
    assert post({**good, "sec-fetch-site": "cross-site"}).status == 403
    assert fake.asked == []
    assert post(good).status == 200


def test_a_group_that_is_worked_on_or_not_there_has_its_status(app: Any, ask: Callable[..., Any]):
    told = {"authorization": f"Bearer {TOKEN}"}
    for group, status, said in (
        ("2000-01-01T00:00:00", 404, "group not found"),
        (FIRST, 503, "no platform runs"),
        ("..%2f..", 404, None),
    ):
        found = ask(app, f"/api/reprocess/{group}", method="POST", headers=told)
        assert found.status == status
        if said:
            assert said in found.json()["error"]


def test_a_body_that_is_too_large_is_refused(post: Get, fake: Fake):
    assert post({"authorization": f"Bearer {TOKEN}"}, body=b"x" * 70_000).status == 413
    assert fake.asked == []


def test_looking_changes_nothing_with_any_other_method(ask: Callable[..., Any], changing: Any):
    for method in ("PUT", "DELETE", "PATCH", "POST"):
        assert ask(changing, "/api/status", method=method, headers={"authorization": f"Bearer {TOKEN}"}).status == 405
    assert ask(changing, f"/api/reprocess/{FIRST}").status == 405


# -- health -------------------------------------------------------------------------------------------------------


def damage(settings: Settings, *names: str) -> None:
    for name in names:
        Path(str(getattr(settings.contimg, f"{name}_db")).removeprefix("sqlite:///")).write_bytes(b"no database" * 1000)


@pytest.mark.parametrize(
    ("database", "path"),
    [
        ("queue", f"/api/groups/{FIRST}"),
        ("queue", f"/groups/{FIRST}.json"),
        ("products", "/api/mosaics/m"),
        ("products", "/api/mosaics/m/png"),
        ("products", "/api/images/1/png"),
        ("products", "/images/1.json"),
        ("products", "/mosaics/m.json"),
    ],
)
def test_what_cannot_be_read_is_not_said_to_be_missing(get: Get, filled: Settings, database: str, path: str):
    assert get(path).status in (200, 404)
    damage(filled, database)
    found = get(path)
    said = found.json()
    assert (found.status, f"the {database} cannot be read" in said.get("detail", said.get("error"))) == (503, True)


def test_a_queue_that_cannot_be_read_has_no_numbers_for_prometheus(filled: Settings):
    def names() -> set[str]:
        reader = Reader(filled)
        told = Instruments(reader, Machine(filled.state_dir)).text().decode()
        reader.close()
        return {one.name for one in text_string_to_metric_families(told)}

    counted = {"nightbeam_groups", "nightbeam_backlog_groups"}
    assert counted <= names()
    damage(filled, "queue")
    assert not counted & names()


def test_the_backlog_is_told_in_minutes_of_sky(get: Get):
    found = get("/api/status").json()["backlog"]
    assert (found["level"], found["waiting"], found["minutes"], found["in_work"]) == ("calm", 1, 5.0, 1)
    assert (found["owed_images"], found["since"]) == (0, None)


def test_a_site_that_listens_at_an_address_answers_there(filled: Settings, ask: Any):
    def status(host: str, asked: str) -> int:
        monitor = filled.monitor.model_copy(update={"host": host})
        app = create_app(filled.model_copy(update={"monitor": monitor}), auth=Auth(TOKEN))
        return int(ask(app, "/api/openapi.json", headers={"host": asked}).status)

    assert status("192.168.7.5", "192.168.7.5:8000") == 200
    assert status("192.168.7.5", "192.168.7.6:8000") == 400
    assert status("0.0.0.0", "0.0.0.0") == 400
    assert status("fe80::1", "[fe80::1]:8000") == 200


def test_a_head_is_a_get_without_its_body(get: Get, app: Any, ask: Any):
    for path in ("/api/status", "/groups", "/metrics"):
        found = ask(app, path, method="HEAD")
        assert (found.status, found.body) == (200, b"")
        assert int(found.headers["content-length"]) > 0
    assert ask(app, "/api/none", method="HEAD").status == 404


def test_health_is_200_where_all_can_be_read_and_503_with_the_reason_where_not(get: Get, filled: Settings, ask: Any):
    assert (get("/api/health").status, get("/api/health").json()["status"]) == (200, "ok")
    Path(str(filled.contimg.queue_db).removeprefix("sqlite:///")).write_bytes(b"no database" * 1000)
    found = ask(create_app(filled, auth=Auth(TOKEN)), "/api/health")
    assert (found.status, found.json()["databases"]["queue"]) == (503, "unreadable")
    assert "is no SQLite database" in found.json()["problems"][0]


def test_of_a_site_without_anything_every_route_is_answered(settings: Settings, ask: Any):
    app = create_app(settings, auth=Auth(TOKEN))
    for path, item in ask(app, "/api/openapi.json").json()["paths"].items():
        if "get" in item and "{" not in path:
            found = ask(app, path)
            assert found.status == 200, path
    assert ask(app, "/api/products").json()["items"] == []


def test_the_reference_has_a_row_for_every_route(get: Get, root: Path):
    page = (root / "docs" / "reference" / "http-api.md").read_text()
    routes = {
        f"{method.upper()} {path}" for path, item in get("/api/openapi.json").json()["paths"].items() for method in item
    }
    named = set(re.findall(r"^\| `((?:GET|POST) [^`]+)` \|", page, re.MULTILINE))
    assert named == routes | {"GET /api/openapi.json"}


def test_on_a_full_disk_one_can_look_and_nobody_can_change_anything(
    settings: Settings, ask: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def full(path: Path, **_: Any) -> str:
        raise StorageError(f"no space left for {path}")

    monkeypatch.setattr("nightbeam.monitor.app.read_token", full)
    app = create_app(settings)
    assert "no space left" in caplog.text
    assert ask(app, "/api/status").status == 200
    told = {"authorization": f"Bearer {TOKEN}"}
    assert ask(app, f"/api/reprocess/{FIRST}", method="POST", headers=told).status == 403


@pytest.mark.parametrize("bare", ["93.0", "2025", "20251003", "1e9", "nan"])
def test_a_bare_number_is_no_time(filled: Settings, reader: Reader, fake: Fake, ask: Any, bare: str):
    app = create_app(filled, reader=reader, auth=Auth(TOKEN), reprocessing=fake)  # type: ignore[arg-type]
    answer = ask(app, f"/api/groups?since={bare}")
    assert (answer.status, "2025-10-03T11:48:57Z" in answer.body.decode()) == (422, True)
    assert ask(app, "/api/groups?since=2025-10-02").status == 200


# -- its own description ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")
def test_what_the_description_allows_and_what_it_does_not_never_fails(filled: Settings, reader: Reader, fake: Fake):
    import schemathesis
    from schemathesis import GenerationMode

    everybody = filled.monitor.model_copy(update={"allowed_hosts": ("*",)})
    settings = filled.model_copy(update={"monitor": everybody})
    app = create_app(settings, reader=reader, auth=Auth(TOKEN), reprocessing=fake, share_s=0.0)  # type: ignore[arg-type]
    tried: dict[str, int] = {}

    def attack(operation: Any, mode: GenerationMode) -> None:
        @hypothesis_settings(max_examples=8, derandomize=True, deadline=None, database=None,
                             suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case: Any) -> None:
            case.headers["authorization"] = f"Bearer {TOKEN}"
            case.call_and_validate()  # no 5xx, the statuses, types and schemas that are described
            tried[operation.label] = tried.get(operation.label, 0) + 1

        run()

    for found in schemathesis.openapi.from_asgi("/api/openapi.json", app).get_all_operations():
        operation = found.ok()
        attack(operation, GenerationMode.POSITIVE)
        if any((operation.path_parameters, operation.query, operation.headers)):
            attack(operation, GenerationMode.NEGATIVE)
    assert len(tried) >= 27
    assert tried["POST /api/reprocess/{group_id}"] >= 8
    assert fake.asked
