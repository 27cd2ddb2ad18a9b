"""What each address of the logbook answers. The table of addresses is at the end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from nightbeam.testing.elog_truth import Attachment, Document, Holding, LogbookTruth, category, listed_job

__all__ = [
    "EXPERIMENT_ROUTES", "QUESTIONNAIRE_ROUTES", "SITE_ROUTES", "Ask", "Blob", "NoSuccessError", "NotFoundError",
    "Route", "SentenceError", "match", "summarise",
]  # fmt: skip

_DATE: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_PARAMETER_WITH_DAQ: Final = re.compile(r"DAQ[ _]|Calibrations/")
_ICON: Final = Attachment("icon.png", "image/png", b"\x89PNG\r\n\x1a\n(generic icon)")
_TRIGGER_LABELS: Final = {
    "MANUAL": "Manually triggered", "START_OF_RUN": "Start of run", "END_OF_RUN": "End of run",
    "FIRST_FILE_TRANSFERRED": "First file transferred", "ALL_FILES_TRANSFERRED": "All files transferred",
    "ALL_NONREC_FILES_TRANSFERRED": "All files but recorders'", "RUN_PARAM_IS_VALUE": "Run parameter has a value",
}  # fmt: skip


class SentenceError(Exception):
    """Status 500 with a sentence: how the service refuses parameters."""


class NotFoundError(Exception):
    """Status 404 with a sentence."""


class NoSuccessError(Exception):
    """Status 200 with ``success: false``."""


@dataclass(frozen=True, slots=True)
class Blob:
    """An answer that is no JSON."""

    type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """One question, as far as an answer depends on it.

    Attributes
    ----------
    held
        The experiment; None for calls that are about none.
    parts
        What stood in the braces of the route.
    listed
        Summaries of all experiments, as old as the service's cache, and whether each is a standing logbook.
    """

    truth: LogbookTruth
    held: Holding | None
    args: Mapping[str, str]
    parts: Mapping[str, str]
    user: str | None
    listed: Callable[[], Iterable[tuple[Document, bool]]]
    slack: timedelta = timedelta()
    unknown_proposal: int = 404

    @property
    def experiment(self) -> Holding:
        """The experiment of a call that is about one."""
        assert self.held is not None
        return self.held

    def need(self, name: str) -> str:
        """Return a parameter that is mandatory."""
        if name not in self.args:
            raise SentenceError(f"We need the parameter {name}")
        return self.args[name]

    def number(self, name: str, text: str) -> int:
        """Return a number, of which the service does not check that it is one."""
        try:
            return int(text)
        except ValueError:
            raise SentenceError(f"invalid literal for int() with base 10 in {name}") from None


@dataclass(frozen=True, slots=True)
class Route:
    """How a call is answered.

    Attributes
    ----------
    open
        Whether no authentication is needed.
    bare
        Whether the answer has no envelope.
    writes
        Whether it changes state, although it may be asked for with GET.
    kept
        Whether the answer depends on the experiment and the parameters alone.
    """

    answer: Callable[[Ask], Any]
    open: bool = False
    bare: bool = False
    writes: bool = False
    kept: bool = False


def match(routes: Mapping[str, Route], call: str) -> tuple[str, Route, Mapping[str, str]] | None:
    """Return the route of a call, as it is written in the table, and what stands for its braces."""
    if call in routes and "{" not in call:
        return call, routes[call], {}
    pieces = call.split("/")
    for template in (one for one in routes if "{" in one):
        wanted = template.split("/")
        if len(wanted) == len(pieces) and all(w == p or w[0] == "{" for w, p in zip(wanted, pieces, strict=True)):
            found = {w.strip("{}"): p for w, p in zip(wanted, pieces, strict=True) if w[0] == "{"}
            return template, routes[template], found
    return None


def read_time(text: str) -> datetime:
    """Return a time of a document; strings of old records too."""
    return datetime.fromisoformat(text)


# Finding experiments


def summarise(held: Holding) -> Document:
    """Return what the lists of experiments tell of one."""
    keys = ("registration_time", "latest_setup", "is_locked")
    group = held.info.get("posix_group", held.id)
    summary = {key: value for key, value in held.info.items() if key not in keys}
    summary |= {"players": [group, f"uid:{held.info.get('leader_account')}"], "post_players": [group]}
    if held.runs:
        ends = {"first_run": held.runs[min(held.runs)], "last_run": held.runs[max(held.runs)]}
        for name, run in ends.items():
            summary[name] = {key: run.get(key) for key in ("num", "begin_time", "end_time")}
        summary["run_count"] = len(held.runs)
    if held.files:
        summary["totalFiles"] = len(held.files)
        summary["totalDataSize"] = sum(one.get("size", 0) for one in held.files.values()) / 2**30
        summary["file_timestamps"] = _file_timestamps(held)
    return summary


def _file_timestamps(held: Holding) -> Document:
    stamps = sorted((one["create_timestamp"] for one in held.files.values()), key=read_time)
    seconds = (read_time(stamps[0]) - read_time(stamps[-1])).total_seconds()
    days = [f"{int(-seconds // 86400)} days"]
    # Yes: the first is the newest.
    return {"first_file_ts": stamps[-1], "last_file_ts": stamps[0], "duration": seconds, "hr_duration": days}


def _recent(ask: Ask) -> list[str]:
    seconds = ask.number("offset_secs", ask.args.get("offset_secs", "28800"))
    since = ask.truth.now - timedelta(seconds=seconds) - ask.slack
    runs = ((one["name"], one.get("last_run")) for one, standing in ask.listed() if not standing)
    return [name for name, run in runs if run and read_time(run["begin_time"]) >= since]


def _readable(ask: Ask) -> list[Document]:
    known = ask.truth._held
    return [
        one
        for one, _ in ask.listed()
        if one["_id"] not in known or known[one["_id"]].readable_by(ask.user or "")
    ]  # fmt: skip


def _experiments(ask: Ask) -> list[Document]:
    if "categorize" in ask.args:
        raise SentenceError("categorize is not modelled here")
    return _readable(ask)


def _names(ask: Ask) -> list[str]:
    return [one["name"] for one, _ in ask.listed()]


def _sorted_ids(ask: Ask) -> list[str]:
    found = re.fullmatch(r'\[\["(\w+)", *(-?1)\]\]', ask.need("sort"))
    if not found:
        raise SentenceError("sort is a list of pairs")
    summaries = [one for one, _ in ask.listed()]
    summaries.sort(key=lambda one: str(one.get(found[1], "")), reverse=found[2] == "-1")
    return [one["_id"] for one in summaries]


def _search_info(ask: Ask) -> list[Document]:
    words = ask.need("search_text").lower().split()
    keys = ("name", "description", "contact_info", "leader_account")

    def fits(one: Document) -> bool:
        text = " ".join(str(one.get(key, "")) for key in keys).lower()
        return any(word in text for word in words)

    return [one for one in _readable(ask) if fits(one)]


def _proposal_id(name: str) -> str:
    """Return the service's best guess, from the name alone."""
    found = re.fullmatch(r"[a-z]{3}(\w+)\d\d", name)
    return found[1].upper() if found else name


def _to_proposal(ask: Ask) -> Document:
    keys = ("name", "instrument")
    every = [one for one, _ in ask.listed()]
    return {one["name"]: {k: one[k] for k in keys} | {"proposal_id": _proposal_id(one["name"])} for one in every}


def _active_at(ask: Ask) -> Document:
    key = ask.need("instrument_name"), ask.args.get("station", "0")
    if ask.truth._active.get(key) not in ask.truth._held:
        raise SentenceError(f"There is no active experiment at {key[0]} station {key[1]}")
    return ask.truth._held[ask.truth._active[key]].info


def _active(ask: Ask) -> list[Document]:
    return [ask.truth._held[one].info for one in ask.truth._active.values() if one in ask.truth._held]


def _who(ask: Ask) -> Document:
    return {"userid": ask.user, "groups": ["ps-users"]}


def _instruments(ask: Ask) -> list[Document]:
    names = sorted({held.info["instrument"] for held in ask.truth._held.values()})
    return [{"_id": name, "description": f"{name} instrument", "params": {}, "roles": []} for name in names]


def _endpoints(_: Ask) -> list[Document]:
    site = [f"/lgbk/ws/{call}" for call in SITE_ROUTES]
    return [
        {"endpoint": one, "methods": ["GET"], "docstring": ""}
        for one in [*site, *(f"/lgbk/<experiment_name>/ws/{call}" for call in EXPERIMENT_ROUTES)]
    ]


# One experiment


def _info(ask: Ask) -> Document:
    return ask.experiment.info


def _internal_info(ask: Ask) -> Document:
    info = ask.experiment.info
    keys = ("instrument", "start_time", "end_time", "posix_group", "params")
    return {"proposal_id": _proposal_id(info["name"]), **{key: info[key] for key in keys if key in info}}


def _sampled(ask: Ask) -> Callable[[Document], bool]:
    """Return whether a document belongs to a run of the sample asked for."""
    name = ask.args.get("sampleName")
    if name is None:
        return lambda _: True
    runs = {num for num, run in ask.experiment.runs.items() if run.get("sample", {}).get("name") == name}
    return lambda document: document.get("run_num", document.get("num")) in runs


def _in_order(entries: Iterable[Document]) -> list[Document]:
    return sorted(entries, key=lambda one: read_time(one["insert_time"]))


def _elog(ask: Ask) -> list[Document]:
    return _in_order(filter(_sampled(ask), ask.experiment.entries.values()))


def _tree(ask: Ask) -> list[Document]:
    entries = ask.experiment.entries
    if ask.parts["entry_id"] not in entries:
        raise SentenceError("Cannot find the entry")
    wanted = entries[ask.parts["entry_id"]]
    root = wanted.get("root", wanted["_id"])
    return _in_order(one for one in entries.values() if root in (one["_id"], one.get("root")))


def _attachment(ask: Ask) -> Blob:
    entry = ask.experiment.entries.get(ask.need("entry_id"), {})
    wanted = ask.need("attachment_id")
    if all(one["_id"] != wanted for one in entry.get("attachments", [])):
        raise NotFoundError(f"Cannot find the attachment {wanted}")
    stored = ask.truth._stored[wanted]
    if ask.args.get("prefer_preview") != "true":
        return Blob(stored.type, stored.data)
    return Blob("image/png", _ICON.data if stored.preview is None else stored.preview)


def _runs(ask: Ask) -> list[Document]:
    wanted = ask.args.get("includeParams", "true")
    if wanted not in ("true", "false"):
        raise SentenceError("Expecting value: line 1 column 1 (char 0)")
    runs = sorted(filter(_sampled(ask), ask.experiment.runs.values()), key=lambda run: -run["num"])
    return runs if wanted == "true" else [{k: v for k, v in run.items() if k != "params"} for run in runs]


def _run(ask: Ask) -> Document:
    num = ask.number("the run", ask.parts["num"])
    if num not in ask.experiment.runs:
        raise SentenceError(f"Cannot find run {num} in experiment {ask.experiment.name}")
    return ask.experiment.runs[num]


def _params_of_all(ask: Ask) -> list[Document]:
    names = set(ask.need("param_names").split(","))
    return [
        {"_id": run["_id"], "num": run["num"], "params": {k: v for k, v in run["params"].items() if k in names}}
        for run in ask.experiment.runs.values()
    ]


def _current_run(ask: Ask) -> Document:
    if not ask.experiment.runs:
        raise NoSuccessError(f"Cannot find the current run of {ask.experiment.name}")
    return ask.experiment.runs[max(ask.experiment.runs)]


def _runs_for_calib(ask: Ask) -> list[Document]:
    def epoch(text: str | None) -> int | None:
        return None if text is None else int(read_time(text).timestamp())

    return [
        {
            "run_num": run["num"], "run_type": run["type"],
            "begin_time": epoch(run["begin_time"]), "end_time": epoch(run["end_time"]),
        }
        for run in ask.experiment.runs.values()
    ]  # fmt: skip


def _daq_params(ask: Ask) -> Document:
    return {key: value for key, value in _run(ask)["params"].items() if _PARAMETER_WITH_DAQ.match(key)}


def _descriptions(ask: Ask) -> list[Document]:
    names = sorted({name for run in ask.experiment.runs.values() for name in run["params"]})
    return [{"param_name": name, "description": ""} for name in names]


def _samples(ask: Ask) -> list[Document]:
    samples = (run["sample"] for run in ask.experiment.runs.values() if "sample" in run)
    return list({one["_id"]: one for one in samples}.values())


def _nothing(_: Ask) -> list[Document]:
    return []


def _tagged(ask: Ask) -> list[tuple[str, int]]:
    entries = _in_order(one for one in ask.experiment.entries.values() if "run_num" in one)
    return [(tag, one["run_num"]) for one in entries for tag in one.get("tags", [])]


def _tags(ask: Ask) -> list[str]:
    return sorted({tag for one in ask.experiment.entries.values() for tag in one.get("tags", [])})


def _tags_to_runs(ask: Ask) -> dict[str, list[int]]:
    pairs = _tagged(ask)
    return {tag: [num for other, num in pairs if other == tag] for tag, _ in pairs}


def _runs_to_tags(ask: Ask) -> dict[str, list[str]]:
    pairs = _tagged(ask)
    return {str(num): [tag for tag, other in pairs if other == num] for _, num in pairs}


def _runs_with_tag(ask: Ask) -> list[int]:
    wanted = ask.need("tag")
    return sorted({num for tag, num in _tagged(ask) if tag == wanted})


def _table_data(ask: Ask) -> Any:
    raise SentenceError(f"Cannot find run table definition for {ask.need('tableName')}")


def _files(ask: Ask) -> list[Document]:
    files = filter(_sampled(ask), ask.experiment.files.values())
    return sorted(files, key=lambda one: (one["run_num"], read_time(one["create_timestamp"])), reverse=True)


def _files_of_run(ask: Ask) -> list[Document]:
    num = ask.number("the run", ask.parts["num"])
    return [one for one in _files(ask) if one["run_num"] == num]


def _extensions(ask: Ask) -> dict[str, int]:
    return Counter(one["path"].rpartition(".")[2] for one in ask.experiment.files.values())


def _definitions(ask: Ask) -> list[Document]:
    return sorted(ask.experiment.definitions.values(), key=lambda one: str(one["name"]))


def _triggers(_: Ask) -> list[Document]:
    return [{"value": value, "label": label} for value, label in _TRIGGER_LABELS.items()]


def _jobs(ask: Ask) -> list[Document]:
    held = ask.experiment
    jobs = [listed_job(held, job) for job in held.jobs.values() if job["def_id"] in held.definitions]
    return sorted(jobs, key=lambda job: -int(job["run_num"]))


# Searching


def _search(ask: Ask) -> list[Document]:
    """Return the entries that the first known parameter chooses, and all that they answer or replace."""
    entries, args, chosen = ask.experiment.entries, ask.args, _chooser(ask)
    found = [one for one in entries.values() if chosen(one)]
    if not found and _is_words(args):
        found = [one for one in entries.values() if args.get("search_text", "").lower() in one["content"].lower()]
    wanted: dict[str, Document] = {}
    while found:
        one = found.pop()
        if one["_id"] not in wanted:
            wanted[one["_id"]] = one
            found += [entries[other] for other in (one.get("root"), one.get("parent")) if other in entries]
    place = {key: n for n, key in enumerate(entries)}
    return _in_order(sorted(wanted.values(), key=lambda one: place[one["_id"]]))


def _is_words(args: Mapping[str, str]) -> bool:
    """Whether nothing goes before the words of the text."""
    pairs = (("start_run_num", "end_run_num"), ("start_date", "end_date"))
    first = any(name in args for name in ("run_num", "_id")) or any(a in args and b in args for a, b in pairs)
    text = args.get("search_text", "")
    return not first and text[:2] not in ("t:", "x:") and not (not text and "tag" in args)


def _chooser(ask: Ask) -> Callable[[Document], bool]:
    args = ask.args
    if "run_num" in args:
        num = ask.number("run_num", args["run_num"])
        return lambda one: one.get("run_num") == num
    if "start_run_num" in args and "end_run_num" in args:
        low, high = (ask.number(name, args[name]) for name in ("start_run_num", "end_run_num"))
        return lambda one: isinstance(one.get("run_num"), int) and low <= one["run_num"] <= high
    if "_id" in args:
        return lambda one: one["_id"] == args["_id"]
    if "start_date" in args and "end_date" in args:
        begin, end = _date(args["start_date"]), _date(args["end_date"])
        return lambda one: begin <= read_time(one["relevance_time"]) <= end
    return _text_chooser(args.get("search_text", ""), args.get("tag"))


def _text_chooser(text: str, tag: str | None) -> Callable[[Document], bool]:
    if text.startswith("t:"):
        return lambda one: text[2:] in one.get("tags", [])
    if text.startswith("x:"):
        try:
            pattern = re.compile(text[2:])
        except re.error as error:
            raise SentenceError(f"Regular expression is invalid: {error}") from None
        return lambda one: bool(pattern.search(one["content"]))
    if not text:
        return lambda one: tag is None or tag in one.get("tags", [])
    stems = _stems(text)

    def fits(one: Document) -> bool:
        exact = text == one["author"] or text in one.get("tags", [])
        return exact or not stems.isdisjoint(_stems(f"{one.get('title', '')} {one['content']}"))

    return fits


def _stems(text: str) -> set[str]:
    return {re.sub(r"(?<=\w{3})(ing|ed|es|s)$", "", word) for word in re.findall(r"\w+", text.lower())}


def _date(text: str) -> datetime:
    if not _DATE.fullmatch(text):
        raise SentenceError(f"time data '{text}' does not match format '%Y-%m-%dT%H:%M:%S.%fZ'")
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise SentenceError(str(error)) from None


# Questionnaire


def _questionnaire(ask: Ask) -> dict[str, list[Document]]:
    key = ask.parts["period"].removeprefix("run"), ask.parts["proposal"]
    held = [one for one in ask.truth._held.values() if one.proposal == key]
    if held and all(one.info["instrument"] == "UED" for one in held):
        raise SentenceError("The instrument has no questionnaire")
    if not ask.parts["period"].startswith("run") or key not in ask.truth._fields:
        return _no_questionnaire(ask, known=bool(held))
    answer: dict[str, list[Document]] = {}
    for field_id, document in ask.truth._fields[key].items():
        answer.setdefault(category(field_id), []).append(document)
    return answer


def _no_questionnaire(ask: Ask, *, known: bool) -> dict[str, list[Document]]:
    if ask.unknown_proposal == 404 and not known:
        raise NotFoundError("There is no such proposal")
    if ask.unknown_proposal == 500 and not known:
        raise SentenceError("There is no such proposal")
    return {}


def _proposals(ask: Ask) -> Document:
    return {held.name: held.proposal[1] for held in ask.truth._held.values() if held.proposal}


def _urawi(ask: Ask) -> Document:
    for held in ask.truth._held.values():
        if held.proposal and held.proposal == (ask.parts["period"].removeprefix("run"), ask.parts["proposal"]):
            spokesman = {"firstName": "Jane", "lastName": "Doe", "email": "jane@example.org"}
            info = {
                "instrument": held.info["instrument"],
                "proposalTitle": "",
                "proposalAbstract": "",
                "approved": True,
            }
            return {"info": {**info, "spokesPerson": spokesman}, "contacts": {"point_of_contact": "Jane Doe"}}
    raise NotFoundError("There is no such proposal")


# Calls that change state


def _start_run(ask: Ask) -> Document:
    return ask.truth.start_run(ask.experiment.id)


def _end_run(ask: Ask) -> Document:
    if not ask.experiment.runs:
        raise SentenceError("There is no run")
    return ask.truth.end_run(ask.experiment.id)


def _done(_: Ask) -> None:
    return None


_WRITES: Final = {
    name: Route(_done, writes=True)
    for name in (
        "close_shift", "cross_post_elogs", "clone_sample", "make_sample_current", "stop_current_sample",
        "change_sample_for_run", "elog_email_subscribe", "elog_email_unsubscribe", "delete_workflow_job",
        "kill_workflow_job", "add_collaborator", "remove_collaborator", "toggle_role", "sync_posix_group",
        "sync_collaborators_with_user_portal", "file_available_at_location", "check_and_move_run_files_to_location",
        "clone_system_template_run_tables", "migrate_attachments", "reload_experiment_cache",
        "rebuild_experiment_cache_for_experiment", "reload_named_cache",
    )
}  # fmt: skip

SITE_ROUTES: Final[Mapping[str, Route]] = {
    "experiment_names_updated_within": Route(_recent, open=True),
    "get_cached_experiment_names": Route(_names, open=True),
    "experiments_to_proposal": Route(_to_proposal, open=True),
    "activeexperiment_for_instrument_station": Route(_active_at, open=True),
    "experiments": Route(_experiments),
    "sorted_experiment_ids": Route(_sorted_ids),
    "search_experiment_info": Route(_search_info),
    "activeexperiments": Route(_active),
    "usergroups": Route(_who),
    "instruments": Route(_instruments),
    "api_endpoints": Route(_endpoints, bare=True),
    **_WRITES,
}

EXPERIMENT_ROUTES: Final[Mapping[str, Route]] = {
    "info": Route(_info),
    "internalinfo": Route(_internal_info, open=True),
    "elog": Route(_elog, kept=True),
    "elog/{entry_id}/complete_elog_tree": Route(_tree),
    "search_elog": Route(_search),
    "attachment": Route(_attachment),
    "runs": Route(_runs, kept=True),
    "runs/{num}": Route(_run),
    "get_run_params_for_all_runs": Route(_params_of_all),
    "current_run": Route(_current_run, open=True),
    "runs_for_calib": Route(_runs_for_calib, open=True),
    "{num}/daq_run_params": Route(_daq_params, open=True),
    "run_param_descriptions": Route(_descriptions),
    "samples": Route(_samples),
    "shifts": Route(_nothing),
    "get_elog_tags": Route(_tags),
    "get_tags_to_runs": Route(_tags_to_runs),
    "get_runs_to_tags": Route(_runs_to_tags),
    "get_runs_with_tag": Route(_runs_with_tag, open=True),
    "run_tables": Route(_nothing),
    "run_table_data": Route(_table_data),
    "files": Route(_files, kept=True),
    "{num}/files": Route(_files_of_run),
    "file_counts_by_extension": Route(_extensions, open=True),
    "workflow_definitions": Route(_definitions, kept=True),
    "workflow_triggers": Route(_triggers),
    "workflow_jobs": Route(_jobs, kept=True),
    "start_run": Route(_start_run, writes=True),
    "end_run": Route(_end_run, writes=True),
    **_WRITES,
}

QUESTIONNAIRE_ROUTES: Final[Mapping[str, Route]] = {
    "proposal/attribute/{period}/{proposal}": Route(_questionnaire, bare=True),
    "questionnaire/getURAWIProposalIds": Route(_proposals, bare=True),
    "questionnaire/urawidata/{period}/{proposal}": Route(_urawi, bare=True),
}
