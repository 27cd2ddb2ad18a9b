"""Geometry files as CrystFEL writes them: text to `Geometry` and back."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from nightbeam.core.errors import InputError, MissingError
from nightbeam.core.files import write_text
from nightbeam.geometry.compute import crystfel_complaints
from nightbeam.geometry.model import (
    MAX_PANELS,
    MAX_SLAB_PIXELS,
    BadRegion,
    Flag,
    Geometry,
    Mask,
    Panel,
    PeakListType,
    Quantity,
    QuantityName,
    Vector,
)

__all__ = ["format_geometry", "parse_geometry", "read_geometry", "write_geometry"]

T = TypeVar("T")

#: Bytes of a file at most; those of the largest detectors have less than one million.
_MAX_BYTES = 2**24
_MAX_BAD = 2**16
_MAX_AXES, _MAX_FLAGS = 16, 16
#: Beyond these a number is a mistake, and would overflow a map of pixels.
_MAX_PX, _MAX_STEP, _MAX_OFFSET_M, _RES_RANGE = 1e9, 1e3, 1e6, (1e-3, 1e12)

_BEGIN, _END = "----- Begin geometry file -----", "----- End geometry file -----"
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_BITS = re.compile(r"0[xX][0-9a-fA-F]{1,16}|\d{1,19}", re.ASCII)
_TERM = re.compile(r" ?([+-]?) ?(\d+(?:\.\d*)?|\.\d+)? ?([xyz]) ?", re.ASCII)
_DIM = re.compile(r"dim(\d{1,4})", re.ASCII)
_MASK = re.compile(r"mask([0-7])_(data|file|goodbits|badbits)")
_OLD_MASK = {"mask": (0, "data"), "mask_file": (0, "file"), "mask_good": (0, "goodbits"), "mask_bad": (0, "badbits")}
_MASK_PARTS = {"data": "data", "file": "file", "goodbits": "good", "badbits": "bad"}
_QUANTITIES = frozenset(get_args(QuantityName))
_REQUIRED = ("min_fs", "max_fs", "min_ss", "max_ss", "corner_x", "corner_y", "fs", "ss", "res")
_LAB = ("min_x", "max_x", "min_y", "max_y")
_RANGE = ("min_fs", "max_fs", "min_ss", "max_ss")


# -- reading ------------------------------------------------------------------------------------------------------


def read_geometry(path: Path) -> Geometry:
    """Read a CrystFEL geometry file, or the geometry in a stream file.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is no geometry file, makes no sense, or is larger than 16 MiB; naming the line.
    """
    path = Path(path)
    if not path.exists():
        raise MissingError(f"there is no geometry file {path}")
    if not path.is_file():
        raise InputError(f"{path} is no file")
    try:
        with path.open("rb") as source:
            data = source.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    # Comments may be in any encoding; what is used of a line must be UTF-8, see _lines.
    text = data.decode("utf-8", "surrogateescape")
    if len(data) > _MAX_BYTES and not (_BEGIN in text and _END in text):
        raise InputError(f"{path} is larger than {_MAX_BYTES >> 20} MiB: that is no geometry file")
    return parse_geometry(text, source=str(path))


def parse_geometry(text: str, *, source: str = "geometry") -> Geometry:
    """Read a geometry from text; lines end as they like, and the marks of stream files around it may be there.

    Parameters
    ----------
    text
        What is unknown is kept and warned about; so is what CrystFEL 0.12 would refuse though the layout is clear.
    source
        Its name, for messages.

    Raises
    ------
    InputError
        If a line cannot be understood (it is named), or panels, regions or groups make no sense.
    """
    reader = _Reader(source)
    for number, key, value in _lines(text, source):
        try:
            reader.take(key, value)
        except InputError as error:
            raise InputError(f"{source}, line {number}: {error.what}", fix=error.fix) from error
    try:
        return reader.geometry()
    except InputError as error:
        raise InputError(f"{source}: {error.what}", fix=error.fix) from error


def _lines(text: str, source: str) -> Iterator[tuple[int, str, str]]:
    lines = re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff"))
    first, last = _wrapped(lines, source)
    for number, line in enumerate(lines[first:last], first + 1):
        said = line.partition(";")[0].strip()
        if not said:
            continue
        if not said.isprintable() and any((c < " " and c != "\t") or "\udc80" <= c <= "\udcff" for c in said):
            raise InputError(f"{source}, line {number}: this is no text", fix="give a CrystFEL geometry file")
        key, sign, value = said.partition("=")
        if not sign:
            raise InputError(
                f"{source}, line {number}: {_short(said)} has no =", fix="write key = value, or ; before it"
            )
        yield number, key.strip(), value.strip()


def _wrapped(lines: list[str], source: str) -> tuple[int, int]:
    """Return first and last line of what stands between the marks; of all if there are none."""
    begin = next((n for n, line in enumerate(lines) if line.strip() == _BEGIN), None)
    if begin is None:
        return 0, len(lines)
    end = next((n for n, line in enumerate(lines[begin:], begin) if line.strip() == _END), None)
    if end is None:
        raise InputError(f"{source} is cut off: there is no line {_END!r}")
    return begin + 1, end


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


# -- values -------------------------------------------------------------------------------------------------------


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text) or not math.isfinite(value := float(text)):
        raise InputError(f"{_short(text)} is no finite number")
    return value


def _within(limit: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        if abs(value := _number(text)) > limit:
            raise InputError(f"{_short(text)} is beyond {limit:g}")
        return value

    return read


def _resolution(text: str) -> float:
    value = _number(text)
    if not _RES_RANGE[0] <= value <= _RES_RANGE[1]:
        raise InputError(f"{_short(text)} is no resolution", fix="give pixels per metre, e.g. 13333.3")
    return value


def _index(text: str) -> int:
    # min_fs = 0.0 is common.
    value = _number(text)
    if value != int(value) or not 0 <= value < MAX_SLAB_PIXELS:
        raise InputError(f"{_short(text)} is no whole number from 0 to {MAX_SLAB_PIXELS - 1}")
    return int(value)


def _bits(text: str) -> int:
    if not _BITS.fullmatch(text):
        raise InputError(f"{_short(text)} is no pattern of bits", fix="write a whole number, e.g. 0xffff")
    return int(text, 16 if text[:2] in ("0x", "0X") else 10)


def _truth(text: str) -> bool:
    if text in ("true", "false"):
        return text == "true"
    return _number(text) != 0


def _ceiling(text: str) -> float:
    return math.inf if text.lower() in ("inf", "+inf", "infinity") else _number(text)


def _text(text: str) -> str:
    if not text:
        raise InputError("there is nothing behind the =")
    return text


def _direction(text: str) -> Vector:
    text = " ".join(text.split())
    vector, at = {"x": 0.0, "y": 0.0, "z": 0.0}, 0
    while found := _TERM.match(text, at):
        if at and not found[1]:
            break  # 1.0x2.0y: a sign is missing
        vector[found[3]] += _within(_MAX_STEP)((found[1] or "+") + (found[2] or "1"))
        at = found.end()
    if at < len(text) or not text:
        raise InputError(f"{_short(text)} is no direction", fix="write for example +0.0048x -0.99y, without exponents")
    return vector["x"], vector["y"], vector["z"]


def _axis(text: str) -> str | int:
    return text if text in ("ss", "fs", "%") else _index(text)


def _members(text: str) -> tuple[str, ...]:
    members = tuple(part.strip() for part in text.split(","))
    if not all(members):
        raise InputError(f"{_short(text)} has an empty member", fix="write names with commas between them")
    if len(set(members)) < len(members):
        twice = Counter(members).most_common(1)[0][0]
        raise InputError(f"{_short(twice)} is a member twice")
    return members


#: Fields of a panel that are read by themselves: what they are called here, and how they are read.
_FIELDS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    **{name: (name, _index) for name in _RANGE},
    "corner_x": ("corner_x", _within(_MAX_PX)),
    "corner_y": ("corner_y", _within(_MAX_PX)),
    "fs": ("fs", _direction),
    "ss": ("ss", _direction),
    "res": ("res", _resolution),
    "coffset": ("coffset", _within(_MAX_OFFSET_M)),
    "data": ("data", _text),
    "saturation_map": ("saturation_map", _text),
    "saturation_map_file": ("saturation_map_file", _text),
    "max_adu": ("max_adu", _ceiling),
    "mask_edge_pixels": ("mask_edge_pixels", _index),
    "no_index": ("no_index", _truth),
}
_GAINS = {"adu_per_eV": "adu_per_ev", "adu_per_photon": "adu_per_photon"}
_FLAGS = ("flag_lessthan", "flag_morethan", "flag_equal")


# -- the state of reading -----------------------------------------------------------------------------------------


@dataclass
class _Draft:
    """A panel, or the defaults of panels, while lines are read."""

    values: dict[str, Any] = field(default_factory=dict)
    dims: dict[int, str | int] = field(default_factory=lambda: {0: "ss", 1: "fs"})
    masks: dict[int, Mask] = field(default_factory=dict)
    flags: list[Flag] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)

    def copy(self) -> _Draft:
        return _Draft(dict(self.values), dict(self.dims), dict(self.masks), list(self.flags), dict(self.extra))

    def take(self, name: str, text: str) -> bool:
        """Set a field; False if there is none of this name."""
        if name in _FIELDS:
            own, read = _FIELDS[name]
            self.values[own] = read(text)
        elif name in _GAINS:  # the later one wins
            self.values |= dict.fromkeys(_GAINS.values()) | {_GAINS[name]: _number(text)}
        elif name in _FLAGS:
            self._take_flag(name, text)
        elif found := _DIM.fullmatch(name):
            self._take_dim(int(found[1]), text)
        elif name in _OLD_MASK or _MASK.fullmatch(name):
            self._take_mask(name, text)
        elif name == "badrow_direction":
            self.extra[name] = text
        else:
            return False
        return True

    def _take_flag(self, name: str, text: str) -> None:
        if len(self.flags) == _MAX_FLAGS:
            raise InputError(f"more than {_MAX_FLAGS} flags of values")
        self.flags.append(Flag(cast(Any, name.removeprefix("flag_")), _number(text)))

    def _take_dim(self, number: int, text: str) -> None:
        if number >= _MAX_AXES:
            raise InputError(f"dim{number}: there are {_MAX_AXES} axes at most")
        self.dims[number] = _axis(text)

    def _take_mask(self, name: str, text: str) -> None:
        found = _MASK.fullmatch(name)
        number, part = (int(found[1]), found[2]) if found else _OLD_MASK[name]
        value = _bits(text) if part.endswith("bits") else _text(text)
        mask = self.masks.get(number, Mask(number))
        self.masks[number] = replace(mask, **{_MASK_PARTS[part]: cast(Any, value)})

    def panel(self, name: str) -> Panel:
        """Return the panel, or say what it lacks."""
        lacking = [n for n in _REQUIRED if n not in self.values]
        if lacking:
            raise InputError(f"panel {_short(name)} has no {', '.join(lacking)}")
        panel = Panel(
            name=name, **self.values, dims=self._axes(name), flags=tuple(self.flags), extra=self.extra,
            masks=tuple(self.masks[n] for n in sorted(self.masks)),
        )  # fmt: skip
        if min(panel.shape) < 1:
            place = f"fs {panel.min_fs} to {panel.max_fs}, ss {panel.min_ss} to {panel.max_ss}"
            raise InputError(f"panel {_short(name)} has no pixels: {place}")
        return panel

    def _axes(self, name: str) -> tuple[str | int, ...]:
        axes = [self.dims.get(n) for n in range(max(self.dims) + 1)]
        dims = tuple(a for a in axes if a is not None)
        if None in axes:
            raise InputError(f"panel {_short(name)} has dim{max(self.dims)} but no dim{axes.index(None)}")
        if dims.count("ss") != 1 or dims.count("fs") != 1 or dims.index("fs") < dims.index("ss"):
            raise InputError(f"panel {_short(name)} has the axes {dims}: ss and, behind it, fs are wanted, once each")
        return dims


class _Reader:
    """What has been read so far."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.defaults = _Draft()
        self.panels: dict[str, _Draft] = {}
        self.bad: dict[str, dict[str, Any]] = {}
        self.top: dict[str, Any] = {}
        self.extra: dict[str, str] = {}
        self.groups: dict[str, tuple[str, ...]] = {}
        self.rigid: dict[str, tuple[str, ...]] = {}
        self.collections: dict[str, tuple[str, ...]] = {}
        self.late: dict[str, None] = {}
        self.refused: list[str] = []
        self.unknown: Counter[str] = Counter()

    def take(self, key: str, value: str) -> None:
        name, slash, own = (part.strip() for part in key.partition("/"))
        if not name or (slash and not own):
            raise InputError(f"{_short(key)} is no key", fix="write key = value or panel/key = value")
        try:
            if not slash:
                self._take_top(name, value)
            elif name.startswith("bad"):
                self._take_bad(name, own, value)
            else:
                self._take_panel(name, own, value)
        except InputError as error:
            told = error.what if error.what.startswith(own or name) else f"{_short(key)}: {error.what}"
            raise InputError(told, fix=error.fix) from error

    # -- top level

    def _take_top(self, name: str, value: str) -> None:
        if name in _QUANTITIES:
            if name == "clen" and name in self.top:
                self.refused.append("clen is given twice")
            self.top[name] = Quantity.parse(cast(QuantityName, name), value)
        elif name == "bandwidth":
            self.top[name] = _number(value)
        elif name == "peak_list":
            self.top[name] = _text(value)
        elif name == "peak_list_type":
            self.top[name] = _peak_list_type(value)
        elif name.startswith(("group_", "rigid_group_")):
            self._take_group(name, _members(value))
        elif self.defaults.take(name, value):
            self.late[name] = None
        else:
            self.unknown[name] += 1
            self.extra[name] = value

    def _take_group(self, key: str, members: tuple[str, ...]) -> None:
        for prefix, groups in (
            ("rigid_group_collection_", self.collections),
            ("rigid_group_", self.rigid),
            ("group_", self.groups),
        ):
            if key.startswith(prefix):
                name = key.removeprefix(prefix)
                if not name:
                    raise InputError("the group has no name")
                if groups is self.groups and name in groups:
                    raise InputError("there is a group of this name already")
                groups[name] = members
                return

    # -- panels and bad regions

    def _take_panel(self, name: str, own: str, value: str) -> None:
        draft = self.panels.get(name)
        if draft is None:
            if len(self.panels) == MAX_PANELS:
                raise InputError(f"more than {MAX_PANELS} panels")
            draft = self.panels[name] = self.defaults.copy()
            self.late.clear()
        if own == "clen":
            draft.values["clen"] = Quantity.parse("clen", value)
        elif not draft.take(own, value):
            self.unknown[f"PANEL/{own}"] += 1
            draft.extra[own] = value

    def _take_bad(self, name: str, own: str, value: str) -> None:
        if name not in self.bad and len(self.bad) == _MAX_BAD:
            raise InputError(f"more than {_MAX_BAD} bad regions")
        region = self.bad.setdefault(name, {})
        if own in _LAB:
            region[own] = _number(value)
        elif own in _RANGE:
            region[own] = _index(value)
        elif own == "panel":
            region[own] = _text(value)
        else:
            self.unknown[f"BAD/{own}"] += 1
            region.setdefault("extra", {})[own] = value

    # -- the end

    def geometry(self) -> Geometry:
        """Return what the lines say together."""
        if not self.panels:
            raise InputError("no panel is described", fix="give a CrystFEL geometry file")
        panels = tuple(draft.panel(name) for name, draft in self.panels.items())
        notes: list[str] = []
        found = Geometry(
            panels=panels,
            bad=self._regions(panels, notes),
            groups=_checked_groups(self.groups, set(self.panels)),
            rigid_groups=self.rigid,
            rigid_group_collections=self.collections,
            extra=self.extra,
            refused=(*dict.fromkeys(self.refused), *self._late_defaults()),
            source=self.source,
            **self.top,
        )
        _require_slab(found)
        refusals = (f"CrystFEL 0.12 refuses: {text}" for text in crystfel_complaints(found))
        return replace(found, warnings=(*self._unknown(), *notes, *_rigid_notes(found), *refusals))

    def _late_defaults(self) -> Iterable[str]:
        return [f"defaults behind the last panel: {_listed(self.late)}"] if self.late else []

    def _unknown(self) -> Iterator[str]:
        unused = sum("badrow_direction" in draft.extra for draft in self.panels.values())
        if unused:
            yield f"badrow_direction is obsolete and not used ({unused} panels)"
        for name, times in list(self.unknown.items())[:20]:
            yield f"{_short(name)} is unknown and not used" + (f" ({times} times)" if times > 1 else "")
        if len(self.unknown) > 20:
            yield f"{len(self.unknown) - 20} other keys are unknown and not used"

    def _regions(self, panels: tuple[Panel, ...], notes: list[str]) -> tuple[BadRegion, ...]:
        by_name = {p.name: p for p in panels}
        return tuple(_region(name, given, by_name, notes) for name, given in self.bad.items())


def _peak_list_type(text: str) -> PeakListType:
    if text not in get_args(PeakListType):
        raise InputError(f"peak_list_type is {_short(text)}", fix="give auto, cxi or list3")
    return cast(PeakListType, text)


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def _checked_groups(groups: dict[str, tuple[str, ...]], panels: set[str]) -> dict[str, tuple[str, ...]]:
    """Return the groups, each of panels and groups before it: so none holds itself."""
    known = set(panels)
    for name, members in groups.items():
        if name in panels:
            raise InputError(f"group_{name}: a panel has this name")
        lost = [m for m in members if m not in known]
        if lost:
            raise InputError(
                f"group_{name}: {_short(lost[0])} is no panel and no group before it",
                fix="list groups from the bottom up",
            )
        known.add(name)
    return groups


def _rigid_notes(geometry: Geometry) -> Iterator[str]:
    known = {p.name for p in geometry.panels}
    for kind, groups in (("group", geometry.rigid_groups), ("group_collection", geometry.rigid_group_collections)):
        lost = [name for name, members in groups.items() if not known.issuperset(members)]
        if lost:
            yield f"rigid_{kind}_{lost[0]} has members that there are not"
        known = set(geometry.rigid_groups)


def _require_slab(geometry: Geometry) -> None:
    rows, columns = geometry.slab_shape
    if rows * columns > MAX_SLAB_PIXELS:
        raise InputError(
            f"a slab of {rows} x {columns} has more than {MAX_SLAB_PIXELS} pixels", fix="correct max_ss and max_fs"
        )


def _region(name: str, given: dict[str, Any], panels: dict[str, Panel], notes: list[str]) -> BadRegion:
    lab, own = [n for n in _LAB if n in given], [n for n in _RANGE if n in given]
    if lab and own:
        raise InputError(f"{_short(name)} has limits of two kinds, {lab[0]} and {own[0]}", fix="make two regions of it")
    if not lab and not own:
        raise InputError(f"{_short(name)} has no limits")
    region = BadRegion(name, **given)
    if own:
        return _in_panel(region, panels, notes)
    if len(lab) < 4:
        notes.append(f"{_short(name)} has no {', '.join(n for n in _LAB if n not in given)} and marks nothing")
    return region


def _in_panel(region: BadRegion, panels: dict[str, Panel], notes: list[str]) -> BadRegion:
    """Return a region of slab pixels with its panel, inside of it."""
    shown = _short(region.name)
    lacking = [n for n in _RANGE if getattr(region, n) is None]
    if lacking:
        raise InputError(f"{shown} has no {', '.join(lacking)}")
    if region.panel is None:
        if len(panels) != 1:
            raise InputError(f"{shown} names no panel", fix=f"add {region.name}/panel = NAME")
        region = replace(region, panel=next(iter(panels)))
        notes.append(f"{shown} names no panel: that must be {region.panel}")
    panel = panels.get(str(region.panel))
    if panel is None:
        raise InputError(f"{shown} names the panel {_short(str(region.panel))}, which is not there")
    for axis in ("fs", "ss"):
        first, last = getattr(region, f"min_{axis}"), getattr(region, f"max_{axis}")
        begin, end = getattr(panel, f"min_{axis}"), getattr(panel, f"max_{axis}")
        if min(first, last) < begin or max(first, last) > end:
            raise InputError(f"{shown}: {axis} {first} to {last} is outside of {panel.name}, {begin} to {end}")
        if first > last:
            notes.append(f"{shown}: {axis} {first} to {last} marks nothing")
    return region


# -- writing ------------------------------------------------------------------------------------------------------


def write_geometry(geometry: Geometry, path: Path) -> None:
    """Write a CrystFEL geometry file, whole or not at all.

    Raises
    ------
    InputError
        If a name or path in it cannot be written.
    StorageError
        If the disk is full or read-only.
    """
    write_text(Path(path), format_geometry(geometry))


def format_geometry(geometry: Geometry) -> str:
    """Return the text of a geometry file; `parse_geometry` makes the same geometry of it.

    What all panels share stands once, before the first.

    Raises
    ------
    InputError
        If a name or path cannot be written, because it holds a semicolon or a line break, or no text.
    """
    shared = _shared(geometry.panels)
    lines = [f"; {geometry.source}".translate(_NO_BREAKS), *_top(geometry), *(f"{n} = {v}" for n, v in shared.items())]
    for panel in geometry.panels:
        own = {n: v for n, v in _panel_lines(panel) if n not in shared}
        lines += ["", *(f"{panel.name}/{n} = {v}" for n, v in own.items())]
        lines += [f"{panel.name}/flag_{f.kind} = {f.value!r}" for f in panel.flags]
    for region in geometry.bad:
        lines += ["", *_region_lines(region)]
    lines += ["", *_group_lines(geometry)]
    _require_writable(geometry, lines[1:])
    return "\n".join(lines) + "\n"


_NO_BREAKS = dict.fromkeys((*range(32), *range(0xD800, 0xE000)), " ")


def _top(geometry: Geometry) -> Iterator[str]:
    for name in sorted(_QUANTITIES):
        quantity = getattr(geometry, name)
        if quantity is not None:
            yield f"{name} = {quantity.written(name)}"
    for name in ("bandwidth", "peak_list", "peak_list_type"):
        value = getattr(geometry, name)
        if value is not None:
            yield f"{name} = {value}"
    for name, text in geometry.extra.items():
        yield f"{name} = {text}"


def _shared(panels: tuple[Panel, ...]) -> dict[str, str]:
    """Return the fields that all panels have alike."""
    first, *others = (dict(_panel_lines(panel)) for panel in panels)
    common = {n: v for n, v in first.items() if all(other.get(n) == v for other in others)}
    # The first panel keeps something of its own, and axes and unknown fields are not divided between two places.
    kept = {*_RANGE, "corner_x", "corner_y", "fs", "ss", "clen", *(n for p in panels for n in p.extra)}
    if len({p.dims for p in panels}) > 1:
        kept |= {f"dim{n}" for n in range(_MAX_AXES)}
    return {n: v for n, v in common.items() if n not in kept}


def _panel_lines(panel: Panel) -> Iterator[tuple[str, str]]:
    for name in _RANGE:
        yield name, str(getattr(panel, name))
    for name in ("corner_x", "corner_y"):
        yield name, repr(getattr(panel, name))
    yield "fs", _vector(panel.fs)
    yield "ss", _vector(panel.ss)
    for name in ("res", "coffset"):
        yield name, repr(getattr(panel, name))
    yield "data", panel.data
    for number, axis in enumerate(panel.dims):
        yield f"dim{number}", str(axis)
    for name, own in _GAINS.items():
        if getattr(panel, own) is not None:
            yield name, repr(getattr(panel, own))
    for mask in panel.masks:
        yield from _mask_lines(mask)
    yield from _optional_lines(panel)
    yield from panel.extra.items()


def _mask_lines(mask: Mask) -> Iterator[tuple[str, str]]:
    # The first mask by its old names, which older readers know as well.
    names = {part: name for name, (_, part) in _OLD_MASK.items()}
    for part, own in _MASK_PARTS.items():
        value = getattr(mask, own)
        if value is not None:
            name = names[part] if mask.number == 0 else f"mask{mask.number}_{part}"
            yield name, f"0x{value:04x}" if isinstance(value, int) else value


def _optional_lines(panel: Panel) -> Iterator[tuple[str, str]]:
    if panel.saturation_map is not None:
        yield "saturation_map", panel.saturation_map
    if panel.saturation_map_file is not None:
        yield "saturation_map_file", panel.saturation_map_file
    if panel.max_adu != math.inf:
        yield "max_adu", repr(panel.max_adu)
    if panel.mask_edge_pixels:
        yield "mask_edge_pixels", str(panel.mask_edge_pixels)
    if panel.no_index:
        yield "no_index", "1"
    if panel.clen is not None:
        yield "clen", panel.clen.written("clen")


def _vector(vector: Vector) -> str:
    # Decimal writes all digits without an exponent.
    terms = [f"{Decimal(repr(v)):+f}{axis}" for v, axis in zip(vector, "xyz", strict=True) if v]
    return " ".join(terms) or "+0.0x"


def _region_lines(region: BadRegion) -> Iterator[str]:
    for one in fields(region):
        value = getattr(region, one.name)
        if one.name not in ("name", "extra") and value is not None:
            yield f"{region.name}/{one.name} = {value}"
    for name, text in region.extra.items():
        yield f"{region.name}/{name} = {text}"


def _group_lines(geometry: Geometry) -> Iterator[str]:
    for prefix, groups in (
        ("rigid_group_", geometry.rigid_groups),
        ("rigid_group_collection_", geometry.rigid_group_collections),
        ("group_", geometry.groups),
    ):
        for name, members in groups.items():
            yield f"{prefix}{name} = {','.join(members)}"


def _require_writable(geometry: Geometry, lines: list[str]) -> None:
    names = [p.name for p in geometry.panels if p.name.startswith("bad")]
    names += [r.name for r in geometry.bad if not r.name.startswith("bad")]
    everyone = [p.name for p in geometry.panels] + [r.name for r in geometry.bad]
    names += [name for name in everyone if not name.strip() or set(name) & set("/=")]
    if names:
        raise InputError(f"{geometry.source}: {_short(names[0])} cannot be the name of a panel or bad region")
    for line in lines:
        if any(c in ";\r\n" or "\ud800" <= c <= "\udfff" for c in line):
            raise InputError(f"{geometry.source}: {_short(line)} cannot be written in a geometry file")
