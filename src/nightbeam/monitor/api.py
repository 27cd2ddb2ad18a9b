"""The routes under /api, and /metrics. Each parses, asks the reader once, and answers."""

from __future__ import annotations

import hashlib
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import anyio.to_thread
from fastapi import APIRouter, Header, Query, Request
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse, Response
from markupsafe import escape
from pydantic import BeforeValidator, TypeAdapter

from nightbeam.core.errors import AuthError, BusyError, InputError, MissingError, NightbeamError
from nightbeam.monitor.auth import COOKIE, ForbiddenError
from nightbeam.monitor.files import content_of
from nightbeam.monitor.manners import SVG_POLICY
from nightbeam.monitor.metrics import CONTENT_TYPE
from nightbeam.monitor.model import (
    Artifacts,
    CalibrationSets,
    CalibratorMatches,
    ConstantsState,
    CxiState,
    ElogState,
    GroupDetail,
    Groups,
    Health,
    Images,
    MeasurementSets,
    MosaicDetail,
    Mosaics,
    Nights,
    PlatformState,
    Products,
    Put,
    Reprocessed,
    ScansState,
    Scores,
    Status,
    SystemMetrics,
    Tonight,
)
from nightbeam.monitor.read import MOST, Reader

__all__ = ["json_answer", "metrics_router", "reader_of", "router", "start_again", "status_of"]

router = APIRouter(prefix="/api", tags=["api"])
metrics_router = APIRouter(tags=["metrics"])

_NAME: Final = 200
Limit = Annotated[int, Query(ge=1, le=MOST, description="At most so many.")]


def _written(value: Any) -> Any:
    """Refuse a bare number, which would be taken for seconds since 1970: a year would be such a one."""
    try:
        float(value)
    except (TypeError, ValueError):
        return value
    raise ValueError("give a time as 2025-10-03T11:48:57Z")


Since = Annotated[
    datetime | None,
    BeforeValidator(_written),
    Query(description="Only with data from this time on; UTC where it does not say."),
]
Until = Annotated[datetime | None, BeforeValidator(_written), Query(description="Only with data before this time.")]
Name = Annotated[str, InPath(min_length=1, max_length=_NAME)]
Word = Annotated[str | None, Query(max_length=_NAME)]
State = Literal["collecting", "pending", "in_progress", "completed", "failed"]
_ERRORS: Final[dict[int | str, dict[str, Any]]] = {404: {"description": "There is none of that name."}}
_PICTURE: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {kind: {} for kind in ("image/png", "image/jpeg", "image/svg+xml", "application/json")}},
    304: {"description": "It is the one that you have."},
    404: {"description": "There is none that may be seen."},
}


def reader_of(request: Request) -> Reader:
    """Return what an application reads from."""
    found = request.app.state.reader
    assert isinstance(found, Reader)
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def json_answer(kind: Any, value: Any, *, status: int = 200) -> Response:
    """Return a value of `nightbeam.monitor.model` as JSON: ISO times with Z, null for numbers that are none.

    Parameters
    ----------
    kind
        Its class, or ``list[...]`` of one.
    value
        The value. It was made here, so it is written without being checked once more.
    status
        Of the answer.
    """
    return Response(_adapter(kind).dump_json(value), status_code=status, media_type="application/json")


# -- the older pipeline's routes ----------------------------------------------------------------------------------


@router.get("/status", response_model=Status)
def status(request: Request, limit: Limit = 20) -> Response:
    """Groups by state, the newest groups and the newest sets of calibration tables."""
    return json_answer(Status, reader_of(request).status(limit=limit))


@router.get("/products", response_model=Products)
def products(request: Request, limit: Limit = 50) -> Response:
    """Images, newest first."""
    return json_answer(Products, reader_of(request).products(limit=limit))


@router.get("/calibrator_matches", response_model=CalibratorMatches)
def calibrator_matches(request: Request, limit: Limit = 50, matched_only: bool = False) -> Response:
    """The newest groups with the calibrators in their fields."""
    return json_answer(CalibratorMatches, reader_of(request).calibrator_matches(limit=limit, matched_only=matched_only))


@router.get("/qa", response_model=Artifacts)
def qa(request: Request, limit: Limit = 100) -> Response:
    """Figures and reports of quality, newest first."""
    return json_answer(Artifacts, reader_of(request).qa(limit=limit))


@router.get("/qa/thumbs", response_model=Artifacts)
def qa_thumbs(request: Request, limit: Limit = 100) -> Response:
    """The newest picture of each group, newest first."""
    return json_answer(Artifacts, reader_of(request).qa_thumbs(limit=limit))


@router.get("/qa/file/{group}/{name}", response_class=Response, responses=_PICTURE)
def qa_file(request: Request, group: Name, name: Name) -> Response:
    """A figure or a report."""
    return _file(request, reader_of(request).qa_file(group, name))


@router.get("/metrics/system", response_model=SystemMetrics)
def metrics_system(request: Request) -> Response:
    """The machine now, at most a second ago."""
    return json_answer(SystemMetrics, request.app.state.machine.now())


@router.get("/metrics/system/history", response_model=list[SystemMetrics])
def metrics_history(request: Request, limit: Limit = 60) -> Response:
    """The machine at its last moments, oldest first; 200 are remembered."""
    return json_answer(list[SystemMetrics], request.app.state.machine.history(limit))


@router.get("/groups", response_model=Groups)
def groups(
    request: Request,
    limit: Limit = 50,
    state: State | None = None,
    since: Since = None,
    until: Until = None,
    text: Word = None,
    before: Word = None,
) -> Response:
    """Groups, newest data first; ``before`` goes on after the last one seen."""
    found = reader_of(request).groups(state=state, since=since, until=until, text=text, limit=limit, before=before)
    return json_answer(Groups, found)


@router.get("/groups/{group_id}", response_model=GroupDetail, responses=_ERRORS)
def group(request: Request, group_id: Name) -> Response:
    """All that is known of a group."""
    return json_answer(GroupDetail, _found(reader_of(request).group(group_id), "group not found"))


@router.get("/ui/calibrators", response_class=HTMLResponse)
def ui_calibrators(request: Request, limit: Limit = 50) -> HTMLResponse:
    """The calibrators of the newest groups as a table of HTML."""
    found = reader_of(request).calibrator_matches(limit=limit)
    rows = "".join(
        f"<tr><td>{escape(one.group_id)}</td><td>{'yes' if one.matched else 'no'}</td>"
        f"<td>{escape(', '.join(match.name for match in one.matches))}</td></tr>"
        for one in found.items
    )
    head = "<tr><th>group</th><th>matched</th><th>calibrators</th></tr>"
    return HTMLResponse(f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>")


@router.get("/ms_index", response_model=MeasurementSets)
def ms_index(request: Request, stage: Word = None, status: Word = None, limit: Limit = 100) -> Response:
    """Measurement Sets, the newest change of stage first."""
    return json_answer(MeasurementSets, reader_of(request).ms_index(stage=stage, status=status, limit=limit))


@router.post(
    "/reprocess/{group_id}",
    response_model=Reprocessed,
    responses={
        code: {"model": Reprocessed, "description": text}
        for code, text in {
            401: "Nobody has shown the token.",
            403: "It is another token, or a page of another site has sent this.",
            404: "There is no such group.",
            409: "Somebody works on it, or it lacks subbands.",
            503: "The queue or Prefect does not answer.",
        }.items()
    },
)
async def reprocess(
    request: Request,
    group_id: Name,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=_NAME, description="The same key gives the same run.")
    ] = None,
) -> Response:
    """Have a group done again from the beginning: the deployment's run is started, once."""
    try:
        found = await start_again(request, group_id, key=idempotency_key)
    except NightbeamError as error:
        return json_answer(Reprocessed, Reprocessed(ok=False, error=error.what), status=status_of(error))
    return json_answer(Reprocessed, found)


async def start_again(
    request: Request, group_id: str, *, key: str | None = None, csrf: str | None = None
) -> Reprocessed:
    """Have a group done again, if the request may ask for that; for the API and for a form of the page.

    Parameters
    ----------
    request
        Its headers and cookies say who asks.
    group_id
        The group.
    key
        The same key gives the same run.
    csrf
        What a form said in `nightbeam.monitor.auth.CSRF_FIELD`; by default a header says it.

    Raises
    ------
    AuthError
        As `nightbeam.monitor.auth.Auth.demand`.
    NightbeamError
        As `nightbeam.monitor.remote.Reprocessing.start`.
    """
    state = request.app.state
    state.auth.demand(request.headers, request.cookies.get(COOKIE), scheme=request.url.scheme, csrf=csrf)
    # Prefect may take its time: those who only look are not to wait behind that.
    work = partial(state.reprocessing.start, group_id, key=key)
    found = await anyio.to_thread.run_sync(work, limiter=state.slow)
    assert isinstance(found, Reprocessed)
    return found


def status_of(error: NightbeamError) -> int:
    """Return the status of an answer that an error is."""
    if isinstance(error, ForbiddenError):
        return 403
    for kind, status in ((AuthError, 401), (MissingError, 404), (BusyError, 409), (InputError, 409)):
        if isinstance(error, kind):
            return status
    return 503


# -- ours ---------------------------------------------------------------------------------------------------------


@router.get("/health", response_model=Health, responses={503: {"model": Health, "description": "What cannot be read."}})
def health(request: Request) -> Response:
    """Whether the databases can be read."""
    found = reader_of(request).health()
    return json_answer(Health, found, status=503 if found.problems else 200)


@router.get("/tonight", response_model=Tonight)
def tonight(request: Request) -> Response:
    """All systems at a glance, those in trouble first."""
    return json_answer(Tonight, reader_of(request).tonight())


@router.get("/calibration", response_model=CalibrationSets)
def calibration(request: Request, limit: Limit = 100, since: Since = None, until: Until = None) -> Response:
    """Sets of calibration tables and when they are valid, newest first."""
    return json_answer(CalibrationSets, reader_of(request).calibration_sets(since=since, until=until, limit=limit))


@router.get("/images", response_model=Images)
def images(
    request: Request,
    limit: Limit = 50,
    since: Since = None,
    until: Until = None,
    before: Annotated[int | None, Query(ge=0, le=2**53)] = None,
) -> Response:
    """Images with what was measured on them, newest first."""
    return json_answer(Images, reader_of(request).images(since=since, until=until, before=before, limit=limit))


@router.get("/images/{image_id}/png", response_class=Response, responses=_PICTURE)
def image_png(request: Request, image_id: Annotated[int, InPath(ge=0, le=2**53)]) -> Response:
    """The picture of an image."""
    return _file(request, reader_of(request).image_png(image_id))


@router.get("/mosaics", response_model=Mosaics)
def mosaics(request: Request, limit: Limit = 50, since: Since = None, until: Until = None) -> Response:
    """Mosaics, the newest data first."""
    return json_answer(Mosaics, reader_of(request).mosaics(since=since, until=until, limit=limit))


@router.get("/mosaics/{name}", response_model=MosaicDetail, responses=_ERRORS)
def mosaic(request: Request, name: Name) -> Response:
    """A mosaic with its tiles and checks."""
    return json_answer(MosaicDetail, _found(reader_of(request).mosaic(name), "mosaic not found"))


@router.get("/mosaics/{name}/png", response_class=Response, responses=_PICTURE)
def mosaic_png(request: Request, name: Name) -> Response:
    """The picture of a mosaic."""
    return _file(request, reader_of(request).mosaic_png(name))


@router.get("/nights", response_model=Nights)
def nights(request: Request, limit: Limit = 31) -> Response:
    """What became of the mosaics of the last nights."""
    return json_answer(Nights, reader_of(request).nights(limit=limit))


@router.get("/scores", response_model=Scores)
def scores(
    request: Request,
    kind: Literal["group", "mosaic"] | None = None,
    subject: Word = None,
    verdict: Literal["good", "warn", "bad", "unknown"] | None = None,
    limit: Limit = 200,
) -> Response:
    """Judged measures: of one group or mosaic, or the last of all."""
    return json_answer(Scores, reader_of(request).scores(kind, subject, verdict=verdict, limit=limit))


@router.get("/quarantine", response_model=Put)
def quarantine(request: Request, limit: Limit = 100) -> Response:
    """What was put aside, the last first."""
    return json_answer(Put, reader_of(request).quarantine(limit=limit))


@router.get("/elog", response_model=ElogState)
def elog(request: Request) -> Response:
    """The mirror of the electronic logbook."""
    return json_answer(ElogState, reader_of(request).elog())


@router.get("/constants", response_model=ConstantsState)
def constants(request: Request) -> Response:
    """The cache of detector constants."""
    return json_answer(ConstantsState, reader_of(request).constants())


@router.get("/scans", response_model=ScansState)
def scans(request: Request) -> Response:
    """The scan calibrator and its stores."""
    return json_answer(ScansState, reader_of(request).scans())


@router.get("/cxi", response_model=CxiState)
def cxi(request: Request) -> Response:
    """The writers of CXI files."""
    return json_answer(CxiState, reader_of(request).cxi())


@router.get("/platform", response_model=PlatformState)
def platform(request: Request) -> Response:
    """The platform's processes and pools."""
    return json_answer(PlatformState, reader_of(request).platform())


@metrics_router.get("/metrics", response_class=Response)
def prometheus(request: Request) -> Response:
    """What Prometheus reads."""
    return Response(request.app.state.instruments.text(), media_type=CONTENT_TYPE)


# -- inside -------------------------------------------------------------------------------------------------------


def _found(value: Any, what: str) -> Any:
    if value is None:
        raise MissingError(what)
    return value


def _file(request: Request, path: Path) -> Response:
    data, kind = content_of(path)
    mark = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"etag": mark}
    if kind == "image/svg+xml":
        headers["content-security-policy"] = SVG_POLICY
    if request.headers.get("if-none-match") == mark:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=kind, headers=headers)
