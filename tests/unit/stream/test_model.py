import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from nightbeam.stream.model import BatchError, LostError, PipelineOutput


def test_a_message_has_predictions_or_a_reference():
    assert PipelineOutput(predictions=torch.zeros(1)).predictions_ref is None
    assert PipelineOutput(predictions_ref=np.zeros(1)).predictions is None


@pytest.mark.parametrize("both", [{}, {"predictions": torch.zeros(1), "predictions_ref": np.zeros(1)}])
def test_both_or_neither_are_refused(both):
    with pytest.raises(ValueError, match="give one of them"):
        PipelineOutput(**both)


def test_an_end_marker_needs_no_predictions():
    assert PipelineOutput(metadata={"end_of_stream": True}).predictions is None


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"predictions": np.zeros(1)}, "no|not a torch tensor"),
        ({"predictions_ref": 1, "metadata": [1]}, "metadata is a list"),
        ({"predictions_ref": 1, "batch_id": 7}, "batch_id is a int"),
    ],
)
def test_a_message_of_other_types_is_refused(wrong, word):
    with pytest.raises(TypeError, match=word):
        PipelineOutput(**wrong)


def test_where_torch_is_not_loaded_nothing_is_a_tensor_and_it_stays_so():
    code = (
        "import sys; from nightbeam.stream.model import PipelineOutput\n"
        "try: PipelineOutput(predictions=[1])\n"
        "except TypeError: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_predictions_come_as_an_array_or_a_tensor():
    message = PipelineOutput(predictions=torch.tensor([1.5, 2.0], dtype=torch.bfloat16))
    assert message.get_numpy_array().tolist() == [1.5, 2.0]
    assert message.get_torch_tensor("cpu").dtype == torch.bfloat16


def test_an_array_that_travelled_inside_the_message_comes_as_a_tensor():
    array = np.arange(3.0)
    array.flags.writeable = False
    assert PipelineOutput(predictions_ref=array).get_torch_tensor().tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("error", [BatchError("what", reason="no shape", fix="how"), LostError("what", fix="how")])
def test_errors_come_whole_through_pickle(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.what, again.reason, again.fix) == (type(error), error.what, error.reason, error.fix)
