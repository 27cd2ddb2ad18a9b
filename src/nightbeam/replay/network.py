"""Networks: the one that is shipped, and those that users bring as files.

A model file is a program: who loads one lets it run. Load none that you would not run.
"""

from __future__ import annotations

import io
import logging
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import ConfigError, InputError, MissingError, ToolError, UnavailableError
from nightbeam.core.files import write_bytes
from nightbeam.replay.matched import matched_filter_class
from nightbeam.replay.model import MatchedFilter

if TYPE_CHECKING:
    import torch

__all__ = ["Network", "export_network", "load_network"]

#: Of the panels that the exported matched filter takes: with one block, torch would compile another program.
_LEAST_SIDE: Final = 9
#: Pixels that go through a network at once on a CPU: what is between its layers shall fit into the cache.
_CPU_PIXELS: Final = 1 << 18
#: And on a GPU.
_GPU_PIXELS: Final = 1 << 25


class Network:
    """A torch module that tells pixels of peaks from background.

    Attributes
    ----------
    name
        For people: the file, or ``matched filter``.
    device
        Where it runs.
    """

    def __init__(self, module: Any, *, name: str, device: str, rows_at_once: int | None = None) -> None:
        self.name, self.device = name, device
        self._module, self._rows = module, rows_at_once

    def logits(self, images: NDArray[np.float32] | torch.Tensor) -> torch.Tensor:
        """Return what the network makes of panels.

        Parameters
        ----------
        images : (rows, 1, H, W), float32

        Returns
        -------
        (rows, 2, H, W), floating point, on the network's device
            Logits of background and of peak.

        Raises
        ------
        InputError
            If the images are of another rank or kind.
        ToolError
            If the network fails on them, or returns something else.
        """
        import torch

        batch = torch.as_tensor(images)
        if batch.ndim != 4 or batch.shape[1] != 1 or batch.dtype != torch.float32:
            what = f"images are {batch.dtype} of shape {tuple(batch.shape)}"
            raise InputError(what, fix="give float32 of (rows, 1, H, W)")
        if not len(batch):
            return torch.empty((0, 2, *batch.shape[2:]), device=self.device)
        parts = [self._checked(part) for part in torch.split(batch, self._rows or _rows_at_once(batch, self.device))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _checked(self, images: torch.Tensor) -> torch.Tensor:
        import torch

        try:
            with torch.inference_mode():
                result = self._module(images.to(self.device))
        except Exception as error:
            said = " ".join(str(error).split())[:300]
            shape = tuple(images.shape)
            fix = f"it must take float32 of {shape}: export it with free sizes, or pad to the size that it was made for"
            raise ToolError(f"{self.name} failed: {said}", fix=fix) from error
        wanted = (images.shape[0], 2, *images.shape[2:])
        if not isinstance(result, torch.Tensor):
            raise ToolError(f"{self.name} returned {type(result).__name__}", fix="it must return one tensor of logits")
        if tuple(result.shape) != wanted or not result.is_floating_point():
            what = f"{self.name} returned {result.dtype} of shape {tuple(result.shape)} for {tuple(images.shape)}"
            raise ToolError(what, fix=f"it must return floating-point logits of {wanted}: background, peak")
        return result


def _rows_at_once(batch: torch.Tensor, device: str) -> int:
    most = _CPU_PIXELS if device == "cpu" else _GPU_PIXELS
    return max(1, most // max(1, batch.shape[2] * batch.shape[3]))


# -- loading ------------------------------------------------------------------------------------------------------


def load_network(
    path: Path | None = None,
    device: str = "auto",
    *,
    settings: MatchedFilter | None = None,
    threads: int | None = None,
) -> Network:
    """Return a network that is ready to run.

    A model file is a program: this runs what its maker put into it. Load none that you would not run.

    Parameters
    ----------
    path
        A file that `torch.jit.save` or `torch.export.save` wrote; None: the matched filter that is shipped. It must
        take (rows, 1, H, W) float32 and return logits (rows, 2, H, W).
    device
        ``auto``: a GPU where there is one; else what torch calls it: ``cpu``, ``cuda``, ``cuda:1``.
    settings
        Of the matched filter.
    threads
        That torch may use, in the whole process.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is neither; it has not been unpickled then.
    ConfigError
        If there is no such device.
    UnavailableError
        If torch is not installed.
    """
    torch = _torch()
    where = _device(torch, device)
    if threads is not None:
        if threads < 1:
            raise ConfigError(f"{threads} threads", fix="give 1 or more")
        torch.set_num_threads(threads)
    if path is None:
        module = _matched_filter(settings or MatchedFilter())
        return Network(module.to(where), name="matched filter", device=where)
    load = {"TorchScript": _load_script, "export": _load_export}[_kind_of(path)]
    module, rows = load(torch, path, where)
    return Network(module, name=str(path), device=where, rows_at_once=rows)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise UnavailableError("torch is not installed", fix="pip install 'nightbeam[facility]'") from error
    return torch


def _device(torch: Any, name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = str(error).partition("\n")[0]
        raise ConfigError(f"no device {name!r}: {said}", fix="give auto, cpu or cuda") from error
    return name


def _kind_of(path: Path) -> Literal["TorchScript", "export"]:
    """Say what a file is by the names in its archive; nothing of it is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except FileNotFoundError as error:
        raise MissingError(
            f"no model {path}", fix="correct the path, or leave it out for the matched filter"
        ) from error
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no model: {error}", fix=_HOW_TO_SAVE) from error
    if "archive_format" in names:
        return "export"
    if {"constants.pkl", "data.pkl"} <= names:
        return "TorchScript"
    what = "holds weights without their program" if "data.pkl" in names else "is an archive of something else"
    raise InputError(f"{path} {what}", fix=_HOW_TO_SAVE)


_HOW_TO_SAVE = "write the whole model with torch.export.save or torch.jit.save"


@contextmanager
def _loading(path: Path) -> Iterator[None]:
    """Turn all that torch says of a bad file, on several ways, into one error."""
    logger = logging.getLogger("torch.export")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # TorchScript has been called deprecated since torch 2.10; users have such files.
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
            yield
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(f"cannot load {path}: {said}", fix=_HOW_TO_SAVE) from error
    finally:
        logger.setLevel(before)


def _load_script(torch: Any, path: Path, device: str) -> tuple[Any, int | None]:
    with _loading(path):
        module = torch.jit.load(str(path), map_location=device)
        module.eval()
    return module, None


def _load_export(torch: Any, path: Path, device: str) -> tuple[Any, int | None]:
    with _loading(path):
        with path.open("rb") as file:  # by name it would have to end in .pt2
            program = torch.export.load(file)
        if device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        return program.module(), _fixed_rows(program)


def _fixed_rows(program: Any) -> int | None:
    """Return the number of rows that a program was exported for; None where it takes any."""
    given = program.graph_signature.user_inputs
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in given:
            rows = node.meta["val"].shape[0]
            return rows if isinstance(rows, int) else None
    return None


# -- the network that is shipped ----------------------------------------------------------------------------------


def _matched_filter(settings: MatchedFilter) -> Any:
    radius = max(1, round(2.5 * settings.sigma_px))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / settings.sigma_px) ** 2)
    # Scaled so that white noise of variance 1 leaves both passes with variance 1.
    taps /= np.sqrt((taps**2).sum())
    return matched_filter_class()(taps[: radius + 1].tolist(), settings.threshold, settings.slope).eval()


def export_network(
    path: Path, *, settings: MatchedFilter | None = None, form: Literal["export", "script"] | None = None
) -> None:
    """Write the matched filter as a model file, for other programs or as a pattern for one's own.

    Parameters
    ----------
    path
        Of the file; by default one that ends in .pt2 is written by `torch.export`, any other as TorchScript.
    settings
        Of the matched filter. What `torch.export` makes of it takes panels of 9 px a side or more.
    form
        ``export`` or ``script``, whatever the name.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    torch = _torch()
    module = _matched_filter(settings or MatchedFilter())
    form = form or ("export" if path.suffix == ".pt2" else "script")
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
        if form == "script":
            torch.jit.save(torch.jit.script(module), out)
        else:
            dim = torch.export.Dim
            free = {0: dim("rows"), 2: dim("height", min=_LEAST_SIDE), 3: dim("width", min=_LEAST_SIDE)}
            program = torch.export.export(module, (torch.rand(3, 1, 40, 56),), dynamic_shapes=(free,))
            torch.export.save(program, out)
    write_bytes(path, out.getvalue())
