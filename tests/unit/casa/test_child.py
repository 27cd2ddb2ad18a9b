"""What CASA returns crosses to us as JSON."""

import json
import subprocess
import sys

import numpy as np

from nightbeam.casa.child import to_plain


def test_arrays_complex_numbers_and_keys_become_json():
    value = {1: np.array([[1.5, 2.0]]), "gain": 1 + 2j, "ok": np.bool_(True), "n": np.int64(3), "none": None}
    plain = to_plain(value)
    assert plain == {"1": [[1.5, 2.0]], "gain": {"re": 1.0, "im": 2.0}, "ok": True, "n": 3, "none": None}
    json.dumps(plain)


def test_the_package_loads_neither_casa_nor_casacore():
    code = "import nightbeam.casa, sys; print([m for m in sys.modules if m.split('.')[0].startswith('casa')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
