"""The child process that asks CASA's model of the atmosphere (ATM): one JSON job, one file of layers.

Run as ``python -P -m nightbeam.casa.air_child JOB.json``. The model lets other threads of Python run while it counts
and then mixes up their atmospheres, and it hangs for ever on some numbers: so it has a process to itself, with a
time limit, and what it is asked has been looked at before.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main(job_file: str) -> int:
    """Write the layers of every band of the job; 0 when that is done."""
    job = json.loads(Path(job_file).read_text())
    del sys.argv[1:]  # casaconfig parses the command line and would execute what --config names
    import numpy as np
    from casatools import atmosphere

    model = atmosphere()
    _set_up(model, job)
    found: dict[str, Any] = {}
    for number in range(len(job["bands"])):
        for name, values in _layers(model, number).items():
            found[f"{name}_{number}"] = values
    answer = Path(job["answer"])
    part = answer.with_suffix(".part.npz")
    np.savez(part, **found)
    part.replace(answer)
    return 0


def _quantity(value: Any, unit: str) -> dict[str, Any]:
    return {"value": value, "unit": unit}


def _set_up(model: Any, job: dict[str, Any]) -> None:
    weather = job["weather"]
    model.initAtmProfile(
        altitude=_quantity(weather["altitude_m"], "m"),
        temperature=_quantity(weather["temperature_k"], "K"),
        pressure=_quantity(weather["pressure_hpa"], "mbar"),
        maxAltitude=_quantity(48.0, "km"),
        humidity=weather["humidity_pct"],
        dTem_dh=_quantity(job["lapse_k_km"], "K/km"),
        dP=_quantity(10.0, "mbar"),
        dPm=1.2,
        h0=_quantity(job["scale_height_km"], "km"),
        atmType=job["kind"],
    )
    centres, widths, steps = ([band[key] for band in job["bands"]] for key in ("centre_ghz", "width_ghz", "step_ghz"))
    model.initSpectralWindow(len(centres), _quantity(centres, "GHz"), _quantity(widths, "GHz"), _quantity(steps, "GHz"))


def _layers(model: Any, band: int) -> dict[str, Any]:
    import numpy as np

    freq_hz = np.asarray(model.getSpectralWindow(band)["value"], float)
    thickness, temperature = (np.asarray(one["value"], float) for one in model.getProfile()[1:3])
    layers, column_mm = int(model.getNumLayers()), float(np.ravel(model.getGroundWH2O()["value"])[0])

    def opacity(ask: Any) -> Any:
        per_m = [
            [float(np.ravel(ask(layer, c, band)["value"])[0]) for c in range(freq_hz.size)] for layer in range(layers)
        ]
        return np.array(per_m) * thickness[:layers, None]

    return {
        "freq_ghz": freq_hz / 1e9,
        "temperature_k": temperature[:layers],
        "tau_dry": opacity(model.getAbsTotalDry),
        "tau_wet_per_mm": opacity(model.getAbsTotalWet) / column_mm,
    }


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stdout.flush()
    os._exit(code)  # CASA's own exit handlers have crashed after the work was done
