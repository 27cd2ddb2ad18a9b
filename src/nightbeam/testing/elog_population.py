"""Logbooks of any size, and users who change them: made up, the same for one seed, and odd where real ones are."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from nightbeam.testing.elog_truth import Attachment, LogbookTruth

__all__ = ["populate", "stir"]

_INSTRUMENTS: Final = ("mfx", "cxi", "xpp", "tmo", "rix", "xcs", "mec", "amo", "ued")
_STANDING: Final = ("Sample Delivery System", "Laser Hall", "Controls", "X-ray Operations")
_CATEGORIES: Final = (
    "personnel", "xray", "xraytech", "laser", "sample", "detector", "contr", "data", "area", "export", "analysis",
    "hutch", "pcdssetup",
)  # fmt: skip
_CONTACTS: Final = (
    "Jane Doe (jane@example.org)", "", "Jane Doe", "Jane (Janie) Doe (jane@example.org)",
    "Łukasz Müller (l@example.org)",
)  # fmt: skip
_WORDS: Final = (
    "jet", "restarted", "hutch", "closed", "beam", "lost", "background", "high", "dark", "run", "ice", "on",
    "detector", "pedestals", "taken", "sample", "changed", "pump", "laser", "timing", "drifted", "attenuator",
    "moved", "hits", "good", "clogging", "again", "alignment", "done", "shift", "handover", "calm",
)  # fmt: skip
_TAGS: Final = ("DARK", "jet", "SCREENSHOT", "laser", "Σ-good")
_PICTURE: Final = '<p>seen:</p><img src="data:image/png;base64,' + "iVBORw0KGgo" * 2000 + '"/>'
_ODD_CONTENTS: Final = (
    "before\0after", "\0", "", "a < b & c > d", "𝔘nder the 🔬: 結晶 naïve Ångström", "lone \ud83d half", _PICTURE,
    '<script>alert("no")</script>', "'; DROP TABLE experiments; --", " \t\r\n ", "Run number 32: Running 12000 events",
    "\U000f0000 \ue000 \ufeff \u202e", "x" * 300_000,
)  # fmt: skip
_ODD_VALUES: Final = (
    math.nan, math.inf, -math.inf, 2**63, -(2**70), 1e-308, "", "NaN", "<b>42</b>", "https://example.org/p.png",
    "nul\0inside", "ｆｕｌｌ 😀", False, 0, 0.1 + 0.2,
)  # fmt: skip
_HUGE: Final = 5 << 20
#: How many parameters every run has.
_USUAL: Final = 12


def populate(
    logbook: LogbookTruth,
    experiments: int = 50,
    entries: int = 200,
    runs: int = 50,
    files: int = 200,
    *,
    parameters: int = 100,
    fields: int = 59,
    definitions: int = 2,
    jobs: int = 10,
    standing: int = 0,
    odd: float = 0.02,
    huge: int = 0,
    days: float = 5.0,
    seed: int = 0,
) -> list[str]:
    """Add experiments to a logbook, and return their ``_id``.

    Parameters
    ----------
    experiments, entries, runs, files
        How many; the last three for each experiment. History copies count as entries.
    parameters
        Of each run, the dozen that every run has included.
    fields
        Of each proposal's questionnaire.
    definitions, jobs
        Of workflows, for each experiment.
    standing
        How many standing logbooks come in addition: no runs, spaces in the name.
    odd
        Share of the documents that are odd as documents can be: NUL, NaN, no size, times as strings...
    huge
        How many experiments get an entry of 5 MB.
    days
        How long ago it all began; it goes on until now.
    """
    dice = random.Random(f"population {seed}")
    first = len(logbook.experiments)
    made = []
    for n in range(first, first + experiments):
        made.append(_experiment(logbook, n))
        _runs(logbook, made[-1], runs, parameters, odd=odd, days=days, dice=dice, old=n % 7 == 6)
        _files(logbook, made[-1], files, max(runs, 1), odd=odd, days=days, dice=dice)
        _workflows(logbook, made[-1], definitions, jobs, max(runs, 1), dice=dice)
        _questionnaire(logbook, made[-1], fields, odd=odd, dice=dice)
    for n in range(standing):
        name = _STANDING[n] if n < len(_STANDING) else f"Standing Log {n}"
        made.append(logbook.add_experiment(name, instrument="OPS", standing=True)["_id"])
    for n, experiment in enumerate(made):
        _entries(logbook, experiment, entries, runs, odd=odd, days=days, dice=dice, huge=n < huge)
    return made


def _experiment(logbook: LogbookTruth, n: int) -> str:
    instrument = _INSTRUMENTS[n % len(_INSTRUMENTS)]
    name = (
        f"{instrument}{101_000_000 + n}"[:10] + f"{n:03d}25" if n % 2 else f"{instrument}l{chr(97 + n % 26)}{n:03d}25"
    )
    name = f"ued{1_013_000 + n}" if instrument == "ued" else name
    # Every eighth has the proposal of the one before it.
    params = {"PNR": f"L-{10_000 + n - (n % 8 == 7)}", "run_period": "25", "dm_locations": "SRCF_FFB"}
    params |= {"slack_channels": f"#{name}", "analysis_queues": "milano"} if n % 3 else {"zoom_meeting_pwd": "s3cret"}
    if n % 10 == 9:
        params["PNR"] = "N/A"
    if n % 10 == 4:
        del params["PNR"]
    if n % 5 == 1:
        del params["run_period"]
    changes: dict[str, Any] = {"contact_info": _CONTACTS[n % len(_CONTACTS)]}
    if n % 11 == 10:
        changes |= {"description": None, "end_time": None, "is_locked": True}
    return str(logbook.add_experiment(name, params=params, changes=changes)["_id"])


def _moment(logbook: LogbookTruth, days: float, share: float) -> datetime:
    return logbook.now - timedelta(days=days * (1 - share))


def _runs(
    logbook: LogbookTruth,
    experiment: str,
    runs: int,
    parameters: int,
    *,
    odd: float,
    days: float,
    dice: random.Random,
    old: bool,
) -> None:
    settings = _settings(parameters, dice)
    for num in range(1, runs + 1):
        begin = _moment(logbook, days, num / (runs + 1))
        settings |= {name: value + 1 for name, value in _some(settings, dice) if type(value) is float}
        params = {**_production(begin, dice, old=old), **settings}
        if dice.random() < odd:
            params |= {f"MFX:ODD:{n:02d}": value for n, value in enumerate(_ODD_VALUES)}
        sample, kind = ("lysozyme", "water", None)[num % 3], "DARK" if num % 10 == 1 else "DATA"
        logbook.start_run(experiment, num, kind=kind, params=params, sample=sample, at=begin)
        if num < runs:
            logbook.end_run(experiment, num, at=begin + timedelta(minutes=5))
        if dice.random() < 0.1:
            logbook.set_editable(experiment, num, "comment", "good")


def _production(begin: datetime, dice: random.Random, *, old: bool) -> dict[str, Any]:
    """Return the parameters that the data acquisition and the analysis write; `_USUAL` says how many."""
    gap, events = "_" if old else " ", dice.randrange(100_000)
    return {
        f"DAQ{gap}Detectors/MfxEndstation-0|Epix10ka2M-0": True,
        f"DAQ{gap}Detectors/NoDetector-0|Evr-0": events % 2 == 0,
        f"DAQ{gap}Detector{gap}Totals/Events": events,
        f"DAQ{gap}Detector{gap}Totals/Damaged": dice.randrange(9),
        f"DAQ{gap}Detector{gap}Totals/Size": events / 7e3,
        "N dropped Shots": dice.randrange(50),
        "Prod_start": begin.strftime("%Y-%m-%d %H:%M:%S"),
        "Prod_end": (begin + timedelta(minutes=11)).strftime("%Y-%m-%d %H:%M:%S"),
        "Calibrations/dark": str(dice.randrange(1, 9)),
        "MFX:GON:TT．FLTPOS": 0.25,
        "＄HOST": "daq-node01",
        "beam on": True,
    }


def _settings(parameters: int, dice: random.Random) -> dict[str, Any]:
    """Return process variables of each type."""
    settings: dict[str, Any] = {}
    for n in range(max(parameters - _USUAL, 0)):
        value = dice.random()
        settings[f"MFX:DIA:MMS:{n:03d}"] = (f"{value:.4f}", value, int(value * 1e6), value < 0.5)[n % 4]
    return settings


def _some(settings: dict[str, Any], dice: random.Random) -> list[tuple[str, Any]]:
    return dice.sample(list(settings.items()), len(settings) // 5)


def _files(
    logbook: LogbookTruth, experiment: str, files: int, runs: int, *, odd: float, days: float, dice: random.Random
) -> None:
    for n in range(files):
        run, strange = 1 + n * runs // files, dice.random() < odd
        path = f"/{experiment[:3]}/{experiment}/xtc/{experiment}-r{run:04d}-s{n:03d}-c00.xtc2"
        size = dice.choice((None, 0, 1)) if strange else dice.randrange(7_000_000_000)
        logbook.register_file(
            experiment, path, run, size, at=_moment(logbook, days, run / (runs + 1)), old_times=strange and n % 2 == 0
        )


def _workflows(
    logbook: LogbookTruth, experiment: str, definitions: int, jobs: int, runs: int, *, dice: random.Random
) -> None:
    made = []
    for n in range(definitions):
        value = {"run_param_name": "Calibrations/dark", "run_param_value": "true"} if n % 2 else {}
        trigger = "RUN_PARAM_IS_VALUE" if value else "END_OF_RUN"
        made.append(logbook.define_workflow(experiment, f"#smd{n}", trigger=trigger, changes=value)["_id"])
    for n in range(jobs if made else 0):
        job = logbook.submit_job(experiment, made[n % len(made)], dice.randrange(1, runs + 1))
        counters = [{"key": "<b>Events</b>", "value": str(dice.randrange(99_999))}]
        status = dice.choice(("DONE", "RUNNING", "SUBMITTED", "OUT_OF_MEMORY"))
        logbook.alter_job(experiment, job["_id"], status=status, counters=counters)


def _questionnaire(logbook: LogbookTruth, experiment: str, fields: int, *, odd: float, dice: random.Random) -> None:
    if logbook.find(experiment).proposal is None:
        return
    for n in range(fields):
        value = dice.choice(_ODD_CONTENTS[:5]) if dice.random() < odd else dice.choice(("", "9.5", "yes", "Łódź"))
        logbook.set_field(experiment, f"{_CATEGORIES[n % len(_CATEGORIES)]}-item-{n}", value)


def _entries(
    logbook: LogbookTruth,
    experiment: str,
    entries: int,
    runs: int,
    *,
    odd: float,
    days: float,
    dice: random.Random,
    huge: bool,
) -> None:
    ids: list[str] = []
    n = 0
    if huge and entries:
        ids.append(logbook.post(experiment, "A" * _HUGE, title="huge", at=_moment(logbook, days, 0))["_id"])
        n = 1
    while n < entries:
        at, kind = _moment(logbook, days, n / entries), dice.random()
        content = dice.choice(_ODD_CONTENTS) if dice.random() < odd else _text(dice)
        n += 1
        if ids and kind < 0.2:
            ids.append(logbook.reply(experiment, dice.choice(ids), content, at=at)["_id"])
        elif ids and kind < 0.28:
            logbook.edit(experiment, dice.choice(ids), content, editor="editor", at=at)
        else:
            ids.append(_post(logbook, experiment, content, runs, dice, at)["_id"])
        if kind > 0.97:
            logbook.delete_entry(experiment, dice.choice(ids), at=at)


def _post(
    logbook: LogbookTruth, experiment: str, content: str, runs: int, dice: random.Random, at: datetime | None
) -> dict[str, Any]:
    pictures = [Attachment("snap.png", "image/png", b"\x89PNG" + dice.randbytes(60), b"\x89PNG small")]
    return logbook.post(
        experiment,
        content,
        author=dice.choice(("jdoe", "mfxopr", "zoë")),
        title=dice.choice((None, None, "Jet", "Étape 2")),
        tags=dice.sample(_TAGS, dice.randrange(3)),
        run_num=dice.randrange(1, runs + 1) if runs and dice.random() < 0.5 else None,
        attachments=pictures if dice.random() < 0.05 else (),
        at=at,
    )


def _text(dice: random.Random) -> str:
    text = " ".join(dice.choices(_WORDS, k=dice.randrange(3, 60)))
    return f"<p>{text}</p>" if dice.random() < 0.5 else text


def stir(logbook: LogbookTruth, changes: int = 20, *, seed: int = 0) -> None:
    """Let users change things at random, now: entries, runs, parameters, files, workflows, jobs, questionnaires.

    Experiments are neither added, renamed, closed nor removed.
    """
    dice = random.Random(f"stir {seed}")
    experiments = logbook.experiments
    for n in range(changes):
        dice.choice(_CHANGES)(logbook, dice.choice(experiments), f"{seed}.{n}", dice)


def _stir_post(logbook: LogbookTruth, experiment: str, name: str, dice: random.Random) -> None:
    content = dice.choice((*_ODD_CONTENTS, *(_text(dice) for _ in range(30))))
    _post(logbook, experiment, f"{content} {name}", len(logbook.find(experiment).runs), dice, None)


def _stir_entry(logbook: LogbookTruth, experiment: str, name: str, dice: random.Random) -> None:
    known, kind = list(logbook.find(experiment).entries), dice.randrange(4)
    if not known:
        _stir_post(logbook, experiment, name, dice)
    elif kind == 0:
        logbook.reply(experiment, dice.choice(known), f"reply {name}")
    elif kind == 1:
        logbook.edit(experiment, dice.choice(known), f"edited {name}", editor="editor", tags=["edited"])
    elif kind == 2:
        logbook.delete_entry(experiment, dice.choice(known), by="cleaner")
    else:
        logbook.cross_post(experiment, dice.choice(known), dice.choice(logbook.experiments))


def _stir_run(logbook: LogbookTruth, experiment: str, name: str, dice: random.Random) -> None:
    known = list(logbook.find(experiment).runs)
    kind, num = dice.randrange(4) if known else 0, dice.choice(known or [1])
    if kind == 0:
        logbook.start_run(experiment, params=_production(logbook.now, dice, old=False))
    elif kind == 1:
        logbook.end_run(experiment)
    elif kind == 2:
        logbook.set_params(experiment, num, {f"ana {name}": dice.choice(_ODD_VALUES), "beam on": None})
    else:
        logbook.set_editable(experiment, num, "comment", name)


def _stir_file(logbook: LogbookTruth, experiment: str, name: str, dice: random.Random) -> None:
    known = list(logbook.find(experiment).files)
    run, path = dice.choice(known) if known and dice.random() < 0.6 else (1, f"/x/{experiment}/{name}.h5")
    logbook.register_file(experiment, path, run, dice.choice((None, 0, 5, 2**33)))
    logbook.locate_file(experiment, path, run, "S3DF")


def _stir_workflow(logbook: LogbookTruth, experiment: str, name: str, dice: random.Random) -> None:
    held = logbook.find(experiment)
    known, jobs = list(held.definitions), list(held.jobs)
    kind = dice.randrange(4) if known else 0
    if kind == 0:
        logbook.define_workflow(experiment, f"flow {name}")
    elif kind == 1:
        logbook.alter_workflow(experiment, dice.choice(known), parameters=f"--run {name}")
    elif kind == 2 or not jobs:
        logbook.submit_job(experiment, dice.choice(known), 1)
    else:
        logbook.alter_job(experiment, dice.choice(jobs), status=f"STATUS {name}")


def _stir_field(logbook: LogbookTruth, experiment: str, name: str, dice: random.Random) -> None:
    if logbook.find(experiment).proposal is not None:
        field = dice.choice((f"xray-new-{name}", "personnel-item-0", "sample-item-4"))
        logbook.set_field(experiment, field, f"value {name}")


_CHANGES: Final[Sequence[Callable[[LogbookTruth, str, str, random.Random], None]]] = (
    _stir_post, _stir_post, _stir_entry, _stir_entry, _stir_entry, _stir_run, _stir_run, _stir_file, _stir_workflow,
    _stir_field,
)  # fmt: skip
