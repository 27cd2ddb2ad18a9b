import pickle

import pytest

from nightbeam.core import errors
from nightbeam.core.errors import NightbeamError, UnavailableError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, NightbeamError)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_the_way_to_another_process(kind):
    again = pickle.loads(pickle.dumps(kind("no such run", fix="name another")))
    assert type(again) is kind
    assert (again.what, again.fix) == ("no such run", "name another")


def test_every_error_has_its_own_exit_code():
    codes = [kind.exit_code for kind in KINDS]
    assert len(set(codes)) == len(codes)


def test_the_message_ends_with_how_to_mend_it():
    assert str(NightbeamError("the disk is full", fix="free some space")) == "the disk is full\n  fix: free some space"


def test_a_caller_can_catch_the_builtin_it_expects():
    with pytest.raises(ConnectionError):
        raise UnavailableError("the server is away")


def test_only_what_may_heal_by_itself_asks_for_a_retry():
    assert {kind.__name__ for kind in KINDS if kind.retry} == {
        "UnavailableError",
        "BusyError",
        "StorageError",
        "ResourceError",
    }
