"""How CASA is told to stay on this machine: a site configuration, a home and an environment of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from nightbeam.core.errors import MissingError
from nightbeam.core.files import write_text

__all__ = ["child_environment", "measures_directory", "site_config"]

#: Threads of every numeric library that CASA or numpy may carry.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def measures_directory() -> Path:
    """Return the folder of measures tables (Earth rotation, leap seconds, observatories).

    It comes with the python-casacore wheel; the package is located, not imported.

    Raises
    ------
    MissingError
        If the wheel is not installed or was built without the tables (Debian's own package is).
    """
    spec = find_spec("casacore")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place).absolute() / "data"
        if (folder / "geodetic" / "Observatories").is_dir():
            return folder
    raise MissingError(
        "there are no measures tables: python-casacore is not installed, or not from its wheel",
        fix="pip install --only-binary :all: python-casacore",
    )


def site_config(*, measures: Path, log: Path | None = None, flux_standards: Path | None = None) -> str:
    """Return the text of a CASA site configuration file that reaches for nothing.

    Parameters
    ----------
    measures
        From `measures_directory`.
    log
        CASA appends its log there; None: nowhere.
    flux_standards
        A folder that holds ``nrao/VLA/standards``, for setjy's named flux standards.

    Raises
    ------
    MissingError
        If ``flux_standards`` holds no ``nrao/VLA/standards``.
    """
    data = [str(measures.absolute())]
    if flux_standards is not None:
        if not (flux_standards / "nrao" / "VLA" / "standards").is_dir():
            raise MissingError(f"{flux_standards} holds no nrao/VLA/standards", fix="name the folder above nrao/")
        data.append(str(flux_standards.absolute()))
    lines = {
        "measurespath": data[0],
        "datapath": data,
        "measures_auto_update": False,
        "data_auto_update": False,
        "skipnetworkcheck": True,
        "nogui": True,
        "nologger": True,
        "agg": True,
        # nologfile alone still leaves a casa-<date>.log where we stand
        "logfile": "/dev/null" if log is None else str(log.absolute()),
        "telemetry_enabled": False,
        "crashreporter_enabled": False,
        "casaconfig_verbose": 0,
    }
    return "".join(f"{name} = {value!r}\n" for name, value in lines.items())


def child_environment(
    directory: Path,
    *,
    threads: int,
    log: Path | None = None,
    flux_standards: Path | None = None,
    inherit: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write a configuration and a home below ``directory`` and return the environment that uses them.

    Parameters
    ----------
    directory
        Scratch; gets ``casasiteconfig.py``, ``home``, ``tmp``.
    threads
        For OpenMP and the like.
    log
        As for `site_config`.
    inherit
        The environment to build on; `os.environ` by default.
    """
    directory = directory.absolute()  # a relative CASASITECONFIG is ignored with one line of warning
    home, tmp, config = directory / "home", directory / "tmp", directory / "casasiteconfig.py"
    home.mkdir(parents=True, exist_ok=True)
    tmp.mkdir(exist_ok=True)
    write_text(config, site_config(measures=measures_directory(), log=log, flux_standards=flux_standards))
    env = dict(os.environ if inherit is None else inherit)
    for name in ("CASARCFILES", "CASAPATH", "DISPLAY", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "PYTHONSTARTUP"):
        env.pop(name, None)
    env.update(dict.fromkeys(_THREADS, str(max(1, threads))))
    env.update(
        HOME=str(home),  # ~/.casa/config.py is read after the site file and could undo it
        TMPDIR=str(tmp),
        MPLCONFIGDIR=str(home),
        MPLBACKEND="Agg",
        # Threads that wait by spinning starve each other as soon as the machine has other work.
        OMP_WAIT_POLICY="PASSIVE",
        CASASITECONFIG=str(config),
        HDF5_USE_FILE_LOCKING="FALSE",
        PYTHONNOUSERSITE="1",
        PYTHONUNBUFFERED="1",
    )
    return env
