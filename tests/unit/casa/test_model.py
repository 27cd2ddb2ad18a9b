"""Only what we use may be asked of CASA, in types that survive the way to another process."""

from pathlib import Path

import numpy as np
import pytest

from nightbeam.casa.model import CasaCall
from nightbeam.core.errors import UsageError


def test_a_task_that_is_not_on_the_list_is_refused():
    with pytest.raises(UsageError, match="'rmtables' is not a CASA task"):
        CasaCall("rmtables").to_json()


def test_paths_and_arrays_become_json_types():
    call = CasaCall("setjy", {"vis": Path("/a/b.ms"), "fluxdensity": np.array([1.5, 0.0]), "spix": np.float64(-0.7)})
    assert call.to_json()["kwargs"] == {"vis": "/a/b.ms", "fluxdensity": [1.5, 0.0], "spix": -0.7}


@pytest.mark.parametrize("name", ["vis", "caltable", "imagename", "outputvis"])
def test_a_relative_file_is_refused_because_the_child_stands_elsewhere(name):
    with pytest.raises(UsageError, match="relative path"):
        CasaCall("split", {name: "b.ms"}).to_json()


def test_a_mask_may_be_a_region():
    assert CasaCall("tclean", {"mask": "circle[[10pix,10pix],3pix]"}).to_json()["kwargs"]["mask"].startswith("circle")


def test_an_object_that_is_no_json_type_is_refused():
    with pytest.raises(UsageError, match="cannot be handed"):
        CasaCall("split", {"width": object()}).to_json()
