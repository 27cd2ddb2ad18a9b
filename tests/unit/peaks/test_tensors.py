"""What comes through the door for torch."""

import subprocess
import sys

import numpy as np
import pytest

from nightbeam.core.errors import InputError
from nightbeam.peaks.tensors import is_tensor, logits_array

torch = pytest.importorskip("torch")


def test_float32_in_memory_is_not_copied():
    tensor = torch.arange(16, dtype=torch.float32).reshape(1, 2, 2, 4)
    array = logits_array(tensor)
    tensor[0, 0, 0, 0] = 7
    assert array[0, 0, 0, 0] == 7
    own = np.zeros((1, 2, 2, 2), np.float32)
    assert np.shares_memory(logits_array(own), own)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [(torch.bfloat16, np.float32), (torch.float16, np.float32), (torch.float32, np.float32),
     (torch.float64, np.float64)],
    ids=str,
)  # fmt: skip
def test_reals_keep_their_values(kind, wanted):
    values = [1.0, -2.5, float("inf"), 3.0]  # all of them are bfloat16, too
    array = logits_array(torch.tensor(values, dtype=kind).reshape(1, 2, 1, 2))
    assert array.dtype == wanted
    assert array.ravel().tolist() == values


def test_half_precision_of_numpy_becomes_single():
    array = logits_array(np.ones((1, 2, 1, 1), np.float16))
    assert array.dtype == np.float32


def test_gaps_gradients_and_subclasses_are_no_obstacle():
    tensor = torch.nn.Parameter(torch.arange(32.0).reshape(1, 2, 4, 4))
    array = logits_array(tensor.permute(0, 1, 3, 2)[..., ::2])
    assert array.flags.c_contiguous
    assert array[0, 0].tolist() == [[0, 8], [1, 9], [2, 10], [3, 11]]
    assert is_tensor(tensor)
    assert not is_tensor(np.zeros(3))


def test_numbers_that_wait_to_be_negated_are():
    tensor = torch.complex(torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1)).conj().imag
    assert tensor.is_neg()
    assert logits_array(tensor).ravel().tolist() == [-1, -1]


@pytest.mark.parametrize(
    "thing",
    [
        torch.zeros(1, 2, 2, 2, dtype=torch.int32), torch.zeros(1, 2, 2, 2, dtype=torch.complex64),
        torch.zeros(1, 2, 2, 2, dtype=torch.bool), torch.zeros(2, 2, 2), torch.zeros(1, 1, 2, 2, 2),
        torch.zeros(1, 2, 2, 2).to_sparse(), torch.zeros(1, 2, 2, 2, device="meta"),
        np.zeros((2, 2, 2), np.float32), np.zeros((1, 2, 2, 2), int), np.zeros((1, 2, 2, 2), complex),
        np.zeros((1, 2, 2, 2), np.longdouble), np.zeros((1, 2, 2, 2), object), [[1.0]], None, "tensor",
    ],
    ids=lambda one: f"{type(one).__name__} {getattr(one, 'dtype', '')} {tuple(getattr(one, 'shape', ()))}",
)  # fmt: skip
def test_what_are_no_logits_is_refused(thing):
    with pytest.raises(InputError, match="logits"):
        logits_array(thing)


def test_torch_is_not_imported_for_an_array():
    code = (
        "import sys, numpy as np; from nightbeam.peaks.tensors import logits_array;"
        "logits_array(np.zeros((1, 2, 1, 1), np.float32)); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
