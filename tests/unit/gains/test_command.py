"""``nightbeam gains``, as it is typed."""

from __future__ import annotations

import json

import pytest

from nightbeam.cli import main


@pytest.fixture
def plan(made, capsys):
    """Return what ``gains solve`` would do with the Measurement Set, and its exit code."""

    def run(*words: str):
        with pytest.raises(SystemExit) as caught:
            main(["gains", "solve", str(made.path), *words, "--dry-run", "--json"])
        out = capsys.readouterr().out
        return int(caught.value.code or 0), json.loads(out) if out else None

    return run


def test_a_calibrator_that_no_list_has_is_named_by_place_and_flux(plan, sky):
    ra, dec = map(str, sky.offset)
    code, told = plan("--cal-ra-deg", ra, "--cal-dec-deg", dec, "--cal-flux-jy", "5.0", "--calibrator", "mine")
    assert code == 0
    source = told["calibrator"]
    assert (source["name"], source["ra_deg"], source["dec_deg"], source["flux_jy"]) == ("mine", *sky.offset, 5.0)


@pytest.mark.parametrize(
    "words",
    [
        ("--cal-ra-deg", "150.0"),
        ("--cal-ra-deg", "150.0", "--cal-dec-deg", "33.0"),
        ("--cal-ra-deg", "150.0", "--cal-dec-deg", "93.0", "--flux", "1.0"),
        ("--cal-ra-deg", "150.0", "--cal-dec-deg", "33.0", "--flux", "nan"),
    ],
)
def test_half_a_place_or_an_impossible_one_is_a_usage_error(plan, words):
    assert plan(*words) == (64, None)
