"""What a message says of its batch, checked: shapes, times, energies; nothing here opens or fetches anything."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from nightbeam.peaks.model import Window
from nightbeam.stream.model import END_OF_STREAM, BatchError, BatchHeader, Form, MessageDefaults, PadStyle

__all__ = [
    "EV_ANGSTROM",
    "check_arrays",
    "describe",
    "detector_images",
    "is_end",
    "message_metadata",
    "needs_arrays",
    "pad_window",
    "producer_of",
]

#: Energy in eV of a photon of 1 Å (h c / e, CODATA 2018).
EV_ANGSTROM: Final = 12398.41984

#: Shapes come from whoever can write to the queue. No detector or batch is larger than this.
_MOST_PIXELS_A_SIDE: Final = 1 << 16
_MOST_ROWS: Final = 1 << 20
_PAD_STYLES: Final[dict[str, PadStyle]] = {
    "bottom-right": "bottom-right",
    "bottom_right": "bottom-right",
    "center": "center",
    "centre": "center",
}
#: Above this a float cannot be seconds of a clock (the year 2242); below it, no packed LCLS time.
_MOST_CLOCK_S: Final = float(1 << 33)
_EXPERIMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_RUN = re.compile(r"r?([0-9]{1,9})")
_INCOMPLETE = "set detector.num_panels and detector.panel_shape, or let the producer send preprocessing_metadata"


# -- which message it is ------------------------------------------------------------------------------------------


def message_metadata(message: Any) -> Mapping[str, Any]:
    """Return the metadata of a message.

    Raises
    ------
    BatchError
        If it has none, or they are no mapping.
    """
    found = getattr(message, "metadata", None)
    if not isinstance(found, Mapping):
        raise BatchError(
            f"a {type(message).__name__} came out of the queue whose metadata are a {type(found).__name__}",
            fix="only messages like PipelineOutput belong into this queue",
        )
    return found


def producer_of(message: Any) -> str:
    """Return the name of the producer of a message; ``""`` where it does not say."""
    return _name(message_metadata(message).get("producer_id"))


def is_end(message: Any) -> str | None:
    """Return the producer that says with this message that it has no more, or None for any other message."""
    found = getattr(message, "metadata", None)
    if not isinstance(found, Mapping) or not _is_true(found.get(END_OF_STREAM)):
        return None
    return _name(found.get("producer_id"))


def _is_true(value: Any) -> bool:
    return isinstance(value, bool | np.bool_) and bool(value)


def _name(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return str(value) if isinstance(value, str | int | np.integer) and not isinstance(value, bool) else ""


# -- the header ---------------------------------------------------------------------------------------------------


def needs_arrays(message: Any) -> bool:
    """Return whether the shapes of a message are only known once its predictions have been fetched."""
    return getattr(message, "preprocessing_metadata", None) is None and _shape_at_hand(message) is None


def describe(
    message: Any, defaults: MessageDefaults, *, rows: int | None = None, shape: Sequence[int] | None = None
) -> BatchHeader:
    """Return all that a message says of its batch; no array is fetched.

    Parameters
    ----------
    message
        Anything with the attributes of `PipelineOutput`.
    defaults
        What is taken for granted where it does not say.
    rows
        Rows of the predictions, where they are known; only used without ``preprocessing_metadata``.
    shape
        Shape of the predictions, (rows, K, H, W), where it is known; only used without ``preprocessing_metadata``.
        Without it panels are taken for not padded.

    Raises
    ------
    BatchError
        ``reason`` is ``no shape``: nothing says how many panels an event has; ``no image``: there is none and one is
        wanted; ``short metadata``: a key has values for fewer events than there are; ``malformed``: all else.
    """
    metadata = message_metadata(message)
    batch_id = _batch_id(message, metadata)
    warnings: list[str] = []
    (n_events, n_panels), panel, network = _shapes(message, defaults, rows, shape)
    form = _form(metadata)
    _check_transport(message)
    kind = _image_kind(message, metadata, defaults)
    mean, std = _normalization(metadata, n_events * n_panels) if kind == "network_input" else (None, None)
    times, clock = _timestamps(metadata, n_events, warnings)
    return BatchHeader(
        batch_id=batch_id,
        producer=_name(metadata.get("producer_id")),
        sequence=_counter(metadata, "sequence", warnings),
        first_event=_counter(metadata, "event_index", warnings),
        run=_run(metadata, warnings),
        experiment=_experiment(metadata, warnings),
        n_events=n_events,
        n_panels=n_panels,
        panel_shape=panel,
        network_shape=network,
        window=pad_window(panel, network, _pad_style(metadata, defaults)),
        form=form,
        image_kind=kind,
        timestamps=times,
        wall_clock_s=clock,
        photon_energy_ev=_energies(metadata, n_events, defaults, warnings),
        clen_mm=_camera_length(metadata, n_events, defaults, warnings),
        mean=mean,
        std=std,
        copied=_copied(metadata, n_events, defaults.copy, warnings),
        warnings=tuple(warnings),
    )


def _batch_id(message: Any, metadata: Mapping[str, Any]) -> str:
    found = getattr(message, "batch_id", None) or metadata.get("batch_id", "")
    if not isinstance(found, str):
        raise BatchError(f"batch_id is a {type(found).__name__}, not a text")
    return found


def _check_transport(message: Any) -> None:
    given = [getattr(message, name, None) is not None for name in ("predictions", "predictions_ref")]
    if sum(given) != 1:
        both = "both" if all(given) else "neither"
        raise BatchError(f"{both} of predictions and predictions_ref are set", fix="the producer must set one of them")


def _form(metadata: Mapping[str, Any]) -> Form:
    found = metadata.get("prediction_form", "logits")
    if isinstance(found, str) and found in get_args(Form):
        return found  # type: ignore[return-value]
    raise BatchError(f"prediction_form is {found!r:.40}", fix=f"it is one of {', '.join(get_args(Form))}")


def _image_kind(message: Any, metadata: Mapping[str, Any], defaults: MessageDefaults) -> Any:
    if metadata.get("calibrated_image_ref") is not None:
        return "calibrated"
    if getattr(message, "original_image_ref", None) is not None:
        return "network_input"
    if defaults.images:
        raise BatchError(
            "the message has no image",
            reason="no image",
            fix="let the producer send original_image_ref, or write peaks alone with output.images: false",
        )
    return "none"


# -- shapes -------------------------------------------------------------------------------------------------------


def _shape_at_hand(message: Any) -> tuple[int, ...] | None:
    """Return the shape of predictions that came with the message itself."""
    for name in ("predictions", "predictions_ref"):
        shape = getattr(getattr(message, name, None), "shape", None)
        if isinstance(shape, tuple):
            return shape
    return None


def _shapes(
    message: Any, defaults: MessageDefaults, rows: int | None, shape: Sequence[int] | None
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    said = getattr(message, "preprocessing_metadata", None)
    if said is None:
        return _shapes_by_default(defaults, rows, shape if shape is not None else _shape_at_hand(message))
    b, c, *panel = _sizes(getattr(said, "original_shape", None), "original_shape", "(B, C, H0, W0)")
    n, one, *network = _sizes(getattr(said, "preprocessed_shape", None), "preprocessed_shape", "(B*C, 1, H, W)")
    if n != b * c or one != 1:
        raise BatchError(
            f"preprocessed_shape {(n, one, *network)} does not follow from original_shape {(b, c, *panel)}",
            reason="bad shape",
            fix=f"it must begin with {(b * c, 1)}",
        )
    return (b, c), _checked_sides(panel), _checked_sides(network)


def _shapes_by_default(
    defaults: MessageDefaults, rows: int | None, shape: Sequence[int] | None
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    panels = defaults.num_panels
    network = None
    if shape is not None:
        rows, _, *network = _sizes(shape, "the shape of the predictions", "(B*C, K, H, W)")
    panel = defaults.panel_shape if defaults.panel_shape is not None else network
    if panels is None or rows is None or panel is None:
        lack = "panels of an event" if panels is None else "rows" if rows is None else "the panel's shape"
        raise BatchError(
            f"nothing says how many {lack}" if panel else f"nothing says {lack}", reason="no shape", fix=_INCOMPLETE
        )
    if rows < 1 or rows % panels:
        raise BatchError(
            f"{rows} rows are no whole number of events of {panels} panels",
            reason="no shape",
            fix="check detector.num_panels",
        )
    return (rows // panels, panels), _checked_sides(panel), _checked_sides(network or panel)


def _sizes(found: Any, name: str, form: str) -> tuple[int, ...]:
    """Return a shape of four as ints; anything that is not one is the batch's fault."""
    if not isinstance(found, Sequence | np.ndarray) or isinstance(found, str | bytes) or len(found) != 4:
        raise BatchError(f"{name} is {_short(found)}", fix=f"it must be {form}")
    sizes = tuple(_integer(one) for one in found)
    if any(one is None or one < 1 for one in sizes) or sizes[0] > _MOST_ROWS:  # type: ignore[operator]
        raise BatchError(f"{name} is {_short(found)}", fix=f"it must be {form}, whole numbers above 0")
    return sizes  # type: ignore[return-value]


def _checked_sides(found: Sequence[int]) -> tuple[int, int]:
    height, width = (int(one) for one in found)
    if not (1 <= height <= _MOST_PIXELS_A_SIDE and 1 <= width <= _MOST_PIXELS_A_SIDE):
        raise BatchError(f"a panel of {height} x {width} pixels", fix=f"at most {_MOST_PIXELS_A_SIDE} a side")
    return height, width


def _integer(value: Any) -> int | None:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_) else None


def _short(value: Any) -> str:
    """Return what may be shown of a stranger's value."""
    known = isinstance(value, str | bytes | int | float | tuple | list | np.ndarray | None)
    text = repr(value) if known else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def _pad_style(metadata: Mapping[str, Any], defaults: MessageDefaults) -> PadStyle:
    found = metadata.get("pad_style", defaults.pad_style)
    if isinstance(found, str) and found in _PAD_STYLES:
        return _PAD_STYLES[found]
    raise BatchError(f"pad_style is {_short(found)}", fix="it is bottom-right or center")


def pad_window(panel: tuple[int, int], network: tuple[int, int], style: PadStyle) -> Window:
    """Return where the detector's pixels are in the padded panel.

    Parameters
    ----------
    panel, network
        (H0, W0) and (H, W).
    style
        ``bottom-right``: padded there alone; ``center``: on all sides, an odd pixel at the bottom or the right.

    Raises
    ------
    BatchError
        If the network's panel is the smaller one.
    """
    (height, width), spare = panel, (network[0] - panel[0], network[1] - panel[1])
    if min(spare) < 0:
        raise BatchError(
            f"the network's panel {network} is smaller than the detector's {panel}",
            reason="bad shape",
            fix="the producer must pad panels, not crop them",
        )
    top, left = (spare[0] // 2, spare[1] // 2) if style == "center" else (0, 0)
    return Window(top=top, left=left, height=height, width=width)


# -- one value for each event -------------------------------------------------------------------------------------


def _array(metadata: Mapping[str, Any], key: str, kinds: str, warnings: list[str]) -> NDArray[Any] | None:
    """Return a value as an array of one of the kinds of dtype; what is none is left out, with a warning."""
    value = metadata.get(key)
    if value is None:
        return None
    try:
        found = np.asarray(value)
        if found.dtype.kind == "O" and "f" in kinds:
            found = found.astype(np.float64)  # None among numbers becomes NaN
    except Exception:  # a stranger's object may raise anything when it is asked for an array
        found = np.empty(0, object)
    if found.dtype.kind in kinds:
        return found
    warnings.append(f"{key} is no number")
    return None


def _spread(found: NDArray[Any], n_events: int, key: str) -> NDArray[Any]:
    """Return one value for each event, of a scalar or of as many as there are events."""
    if found.ndim == 0:
        return np.full(n_events, found[()])
    if found.size == n_events:
        return found.reshape(n_events)
    short = found.size < n_events
    raise BatchError(
        f"{key} has {found.size} values for {n_events} events",
        reason="short metadata" if short else "malformed",
        fix=f"the producer must give one for each event, or one number: {key} of shape ({n_events},)",
    )


def _numbers(metadata: Mapping[str, Any], key: str, n_events: int, warnings: list[str]) -> NDArray[np.float64] | None:
    found = _array(metadata, key, "iuf", warnings)
    return None if found is None else _spread(found, n_events, key).astype(np.float64)


def _timestamps(
    metadata: Mapping[str, Any], n_events: int, warnings: list[str]
) -> tuple[NDArray[np.uint64], float | None]:
    value, unknown = metadata.get("timestamp"), np.zeros(n_events, np.uint64)
    found = _packed(value)
    if found is None:
        found = _array(metadata, "timestamp", "iuf", warnings)
    if found is None:
        return unknown, None
    if found.dtype.kind == "f" and found.ndim == 0:
        return unknown, float(found) if np.isfinite(found) else None
    each = _spread(found, n_events, "timestamp")
    if each.dtype.kind == "f":
        return _of_floats(each, warnings)
    if each.dtype.kind == "i" and (each < 0).any():
        warnings.append("a timestamp is below 0")
        each = np.where(each < 0, 0, each)
    return each.astype(np.uint64), None


def _packed(value: Any) -> NDArray[np.uint64] | None:
    """Return Python's ints as 64 bits; through numpy's own choice of a type the lowest ones could be lost."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not is_int and not (isinstance(value, list | tuple) and value and all(type(one) is int for one in value)):
        return None
    try:
        return np.asarray(value, dtype=np.uint64)
    except OverflowError:
        return None


def _of_floats(each: NDArray[np.float64], warnings: list[str]) -> tuple[NDArray[np.uint64], float | None]:
    """Return what floats can still say: packed times short of their last nanoseconds, or the clock of the first."""
    seen = np.nan_to_num(each.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    if (seen < _MOST_CLOCK_S).all():
        warnings.append("timestamps are seconds of a clock, not LCLS times")
        return np.zeros(len(seen), np.uint64), float(seen[0]) if seen[0] > 0 else None
    warnings.append("timestamps came as floats: the last microsecond is lost")
    fits = (seen >= 0) & (seen < 2.0**64)
    return np.where(fits, seen, 0.0).astype(np.uint64), None


def _energies(
    metadata: Mapping[str, Any], n_events: int, defaults: MessageDefaults, warnings: list[str]
) -> NDArray[np.float64]:
    wavelength = _numbers(metadata, "photon_wavelength", n_events, warnings)
    if wavelength is not None:
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            return _positive(EV_ANGSTROM / wavelength, "photon_wavelength", warnings)
    for key in ("photon_energy", "photon_energies"):
        energy = _numbers(metadata, key, n_events, warnings)
        if energy is not None:
            return _positive(energy, key, warnings)
    return np.full(n_events, defaults.photon_energy_ev or 0.0)


def _positive(energy_ev: NDArray[np.float64], key: str, warnings: list[str]) -> NDArray[np.float64]:
    known = np.isfinite(energy_ev) & (energy_ev > 0)
    if not known.all():
        warnings.append(f"{key} is no energy of a photon in {np.count_nonzero(~known)} events; written as 0")
    return np.where(known, energy_ev, 0.0)


def _camera_length(
    metadata: Mapping[str, Any], n_events: int, defaults: MessageDefaults, warnings: list[str]
) -> NDArray[np.float64]:
    otherwise = np.nan if defaults.clen_mm is None else defaults.clen_mm
    found = _numbers(metadata, "encoder_value", n_events, warnings)
    if found is None:
        return np.full(n_events, otherwise)
    known = np.isfinite(found) & (found > 0)
    if not known.all():
        instead = "unknown" if defaults.clen_mm is None else f"taken as {defaults.clen_mm:g} mm"
        warnings.append(f"encoder_value is no camera length in {np.count_nonzero(~known)} events; {instead}")
    return np.where(known, found, otherwise)


def _copied(
    metadata: Mapping[str, Any], n_events: int, keys: tuple[str, ...], warnings: list[str]
) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for key in keys:
        value = _array(metadata, key, "iufbUS", warnings)
        if value is None:
            continue
        if value.ndim == 0:
            value = np.full(n_events, value[()])
        elif value.shape[0] != n_events and value.size == n_events:
            value = value.reshape(n_events)
        if value.shape[0] == n_events:
            found[key] = value
        else:
            warnings.append(f"{key} has not one value for each event; left out")
    return found


# -- one value for the batch --------------------------------------------------------------------------------------


def _counter(metadata: Mapping[str, Any], key: str, warnings: list[str]) -> int | None:
    value = metadata.get(key)
    if value is None:
        return None
    found = _integer(value)
    if found is None or not 0 <= found < 1 << 62:
        warnings.append(f"{key} is {_short(value)}, no running number")
        return None
    return found


def _run(metadata: Mapping[str, Any], warnings: list[str]) -> int | None:
    value = metadata.get("run", metadata.get("run_number"))
    if value is None:
        return None
    number = _integer(value)
    found = _RUN.fullmatch(value if isinstance(value, str) else str(number))
    if found is None:
        warnings.append(f"run is {_short(value)}, no number of a run")
        return None
    return int(found[1])


def _experiment(metadata: Mapping[str, Any], warnings: list[str]) -> str | None:
    value = metadata.get("experiment")
    if value is None:
        return None
    if not isinstance(value, str) or not _EXPERIMENT.fullmatch(value):
        warnings.append(f"experiment is {_short(value)}, no name of one")  # it becomes part of a path
        return None
    return value


def _normalization(
    metadata: Mapping[str, Any], rows: int
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    said = metadata.get("normalization")
    if said is None:
        return None, None
    if not isinstance(said, Mapping) or not {"mean", "std"} <= set(said):
        raise BatchError(f"normalization is {_short(said)}", fix="give {mean: ..., std: ...}, one number for each row")
    return _for_rows(said["mean"], rows, "mean"), _for_rows(said["std"], rows, "std")


def _for_rows(value: Any, rows: int, name: str) -> NDArray[np.float64]:
    found = _array({name: value}, name, "iuf", [])
    if found is None or not np.isfinite(found).all():
        raise BatchError(f"normalization.{name} is {_short(value)}", fix="give one finite number for each row")
    if found.ndim and found.size != rows:
        raise BatchError(
            f"normalization.{name} has {found.size} values for {rows} rows",
            reason="short metadata" if found.size < rows else "malformed",
            fix="give one for each row of the batch (event * panels + panel)",
        )
    return (np.full(rows, found[()]) if found.ndim == 0 else found.reshape(rows)).astype(np.float64)


# -- the arrays ---------------------------------------------------------------------------------------------------


def check_arrays(
    header: BatchHeader, predictions_shape: Sequence[int], images_shape: Sequence[int] | None = None
) -> None:
    """Check that the arrays are what the header says.

    Parameters
    ----------
    header
        Of the batch.
    predictions_shape
        Of the array in the header's form: ``logits`` (B*C, 2, H, W), ``bits`` (B*C, H, ceil(W / 8)), ``pixels`` (n, 3).
    images_shape
        (B*C, 1, H, W) or (B*C, H, W); calibrated images also (B, C, H0, W0), (B*C, H0, W0) or (B*C, 1, H0, W0).

    Raises
    ------
    BatchError
        ``reason`` is ``bad shape``, or ``no image`` where the header announced one.
    """
    rows, (height, width) = header.n_events * header.n_panels, header.network_shape
    found = tuple(predictions_shape)
    wanted = {"logits": (rows, 2, height, width), "bits": (rows, height, -(-width // 8)), "pixels": (*found[:1], 3)}
    if found != wanted[header.form]:
        raise BatchError(
            f"predictions ({header.form}) of shape {found}, announced were {wanted[header.form]}", reason="bad shape"
        )
    if images_shape is None:
        if header.image_kind != "none":
            raise BatchError("the image that was announced is not there", reason="no image")
        return
    if tuple(images_shape) not in _image_shapes(header):
        forms = " or ".join(map(str, _image_shapes(header)))
        raise BatchError(f"image of shape {tuple(images_shape)}, announced was {forms}", reason="bad shape")


def _image_shapes(header: BatchHeader) -> list[tuple[int, ...]]:
    rows = header.n_events * header.n_panels
    found = [(rows, 1, *header.network_shape), (rows, *header.network_shape)]
    if header.image_kind == "calibrated":
        own = header.panel_shape
        found += [(header.n_events, header.n_panels, *own), (rows, *own), (rows, 1, *own)]
    return found


def detector_images(header: BatchHeader, images: NDArray[Any]) -> NDArray[Any]:
    """Return the detector's pixels of the images, without the padding and without the network's normalisation.

    Parameters
    ----------
    header
        Of the batch.
    images
        Of a shape that `check_arrays` accepts.

    Returns
    -------
    (B*C, H0, W0)
        A view where nothing is to be undone; what was undone is float32, or float64 if the images are.

    Raises
    ------
    BatchError
        If the shape is none of those.
    """
    if tuple(images.shape) not in _image_shapes(header):
        raise BatchError(f"image of shape {tuple(images.shape)}", reason="bad shape")
    window, rows = header.window, header.n_events * header.n_panels
    panels = images.reshape(rows, *images.shape[-2:])
    if panels.shape[1:] != header.panel_shape:
        panels = panels[:, window.top : window.top + window.height, window.left : window.left + window.width]
    if header.mean is None or header.std is None:
        return panels
    # Half floats hold the network's small numbers, not the detector's large ones.
    kind = np.result_type(panels.dtype, np.float32) if panels.dtype.kind == "f" else np.dtype(np.float32)
    std, mean = (one.astype(kind)[:, None, None] for one in (header.std, header.mean))
    undone: NDArray[Any] = panels * std + mean
    return undone
