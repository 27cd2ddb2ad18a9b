"""The matched filter finds what is there; model files are loaded, and what is none is not run."""

from __future__ import annotations

import io
import math
import os
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
from scipy import ndimage

from nightbeam.core.errors import ConfigError, InputError, MissingError, ToolError
from nightbeam.frames.compute import simulate_frames
from nightbeam.frames.model import FramePlan
from nightbeam.replay.compute import mask_of, normalize, pad
from nightbeam.replay.model import MatchedFilter
from nightbeam.replay.network import Network, export_network, load_network


def score(plan: FramePlan, n: int, network: Network, *, prepare=lambda frames: pad(frames, frames.shape[2:])[0]):
    """Return recall, precision and errors of position, by scipy's labels: a peak is found within 2 px."""
    frames, truth = simulate_frames(plan, 0, n)
    mask = mask_of(network.logits(prepare(frames)))
    right, components, errors = 0, 0, []
    for row, one in enumerate(mask):
        labels, count = ndimage.label(one, np.ones((3, 3)))
        found = np.array(ndimage.center_of_mass(one, labels, range(1, count + 1))).reshape(-1, 2)
        here = (truth.event == row // plan.shape[0]) & (truth.panel == row % plan.shape[0])
        true = np.column_stack([truth.y, truth.x])[here]
        components += count
        if count and len(true):
            away = np.hypot(*(true[:, None] - found[None]).transpose(2, 0, 1)).min(1)
            right += int((away < 2).sum())
            errors += away[away < 2].tolist()
    return right / max(1, len(truth)), right / max(1, components), errors


@pytest.mark.slow
def test_the_matched_filter_finds_the_peaks_of_the_demo_and_nothing_else():
    recall, precision, errors = score(FramePlan(), 30, load_network(device="cpu"))
    assert recall > 0.98
    assert precision > 0.98
    assert np.sqrt(np.mean(np.square(errors))) < 0.3


def test_it_finds_nothing_where_nothing_is():
    frames, _ = simulate_frames(FramePlan(hit_rate=0), 0, 30)
    assert mask_of(load_network(device="cpu").logits(pad(frames, (128, 128))[0])).sum() <= 3


@pytest.mark.parametrize("style", ["bottom-right", "center"])
def test_a_pad_and_a_normalisation_change_nothing_of_what_it_finds(style):
    def prepare(frames):
        return pad(normalize(frames)[0], (152, 160), style)[0]

    plan = FramePlan(shape=(2, 121, 131), n_peaks=(8, 12), margin_px=0, seed=3)
    network = load_network(device="cpu")

    def crop(x):
        top, left = (15, 14) if style == "center" else (0, 0)
        return network.logits(x)[:, :, top : top + 121, left : left + 131]

    class Cropping:
        logits = staticmethod(crop)

    frames, _ = simulate_frames(plan, 0, 10)
    plain, padded = mask_of(network.logits(pad(frames, (121, 131))[0])), mask_of(crop(prepare(frames)))
    assert np.mean(plain != padded) < 0.002
    recall, precision, _ = score(plan, 10, Cropping(), prepare=prepare)
    assert recall > 0.95
    assert precision > 0.95
    whole = mask_of(network.logits(prepare(frames)))
    assert whole.sum() == pytest.approx(padded.sum(), abs=0.02 * padded.sum())  # the pad itself has no peaks


def test_the_difference_of_the_logits_is_the_signal_to_noise_ratio_above_the_threshold():
    rng = np.random.default_rng(0)
    frame = rng.normal(0, 3.0, (1, 1, 128, 128)).astype(np.float32)
    y, x = np.indices((128, 128)) - 60
    shape = np.exp(-(y**2 + x**2) / (2 * 1.2**2))
    frame[0, 0] += 500 * shape
    logits = load_network(device="cpu", settings=MatchedFilter(threshold=5.0, slope=2.0)).logits(frame)
    ratio = (logits[0, 1] - logits[0, 0]).numpy() / 2.0 + 5.0
    # A matched filter's ratio is the amplitude times the norm of the shape over the noise.
    assert ratio[60, 60] == pytest.approx(500 * np.sqrt((shape**2).sum()) / 3.0, rel=0.1)
    far = np.hypot(y, x) > 25
    assert ratio[far].std() == pytest.approx(1.0, rel=0.1)
    assert ratio[far].mean() == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 5, 9), (2, 1, 8, 8), (2, 1, 33, 47), (0, 1, 8, 8)])
def test_it_takes_panels_of_any_size(shape):
    logits = load_network(device="cpu").logits(torch.rand(shape))
    assert logits.shape == (shape[0], 2, *shape[2:])
    assert bool(torch.isfinite(logits).all())


def test_pixels_that_are_no_numbers_and_dead_panels_are_background():
    frames, _ = simulate_frames(FramePlan(hit_rate=0), 0, 1)
    frames[0, 0, 10:20, 10:20] = np.nan
    frames[0, 1, 5, 5] = np.inf
    frames[0, 2] = 0
    frames[0, 3] = 77
    logits = load_network(device="cpu").logits(pad(frames, (128, 128))[0])
    assert bool(torch.isfinite(logits).all())
    assert not mask_of(logits)[2:].any()


def test_rows_do_not_depend_on_what_else_is_in_the_batch():
    frames, _ = simulate_frames(FramePlan(shape=(3, 400, 500)), 0, 2)
    rows = pad(frames, (400, 500))[0]
    network = load_network(device="cpu")
    assert torch.equal(network.logits(rows)[4:5], network.logits(rows[4:5]))


# -- files --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("form", ["script", "export"])
def test_the_exported_network_answers_as_the_shipped_one(tmp_path, form, exported):
    path = exported
    if form == "script":
        export_network(path := tmp_path / "odd.name")
    loaded, ours = load_network(path, "cpu"), load_network(device="cpu")
    assert (loaded.device, loaded.name) == ("cpu", str(path))
    for shape in ((4, 1, 128, 128), (1, 1, 9, 11), (2, 1, 65, 40)):
        images = torch.rand(shape)
        assert torch.allclose(loaded.logits(images), ours.logits(images), atol=1e-4)


@pytest.mark.slow
def test_an_exported_program_is_known_whatever_its_name(tmp_path, exported):
    (tmp_path / "model.bin").write_bytes(exported.read_bytes())
    assert load_network(tmp_path / "model.bin", "cpu").logits(torch.rand(1, 1, 16, 16)).shape == (1, 2, 16, 16)


def test_settings_go_into_the_file(tmp_path):
    export_network(tmp_path / "m.pt", settings=MatchedFilter(threshold=9.0))
    images = torch.rand(1, 1, 32, 32)
    other = load_network(tmp_path / "m.pt", "cpu").logits(images)
    assert torch.allclose(other[:, 1], load_network(device="cpu").logits(images)[:, 1] - 1.5, atol=1e-4)


class Two(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, -x), 1)


@pytest.mark.slow
def test_a_program_for_a_fixed_number_of_rows_gets_as_many(tmp_path):
    torch.export.save(torch.export.export(Two(), (torch.rand(3, 1, 8, 8),)), tmp_path / "m.pt2")
    network = load_network(tmp_path / "m.pt2", "cpu")
    images = torch.rand(6, 1, 8, 8)
    assert torch.equal(network.logits(images)[:, 0], images[:, 0])
    with pytest.raises(ToolError, match="failed") as error:
        network.logits(torch.rand(4, 1, 8, 8))
    assert "free sizes" in error.value.fix


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def bombs(tmp_path):
    bomb = Bomb(str(tmp_path / "went-off"))
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(bomb))
    torch.save(bomb, tmp_path / "saved.pt")
    torch.save({"w": torch.zeros(3)}, tmp_path / "weights.pt")
    for name, inside in (("script.pt", ("data.pkl", "constants.pkl")), ("half.pt2", ("archive_format",))):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for one in inside:
                archive.writestr(f"m/{one}", pickle.dumps(bomb))
    (tmp_path / "text.pt").write_bytes(b"hello " * 30)
    (tmp_path / "empty.pt").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a.txt", "b")


@pytest.mark.parametrize(
    "name", ["pickle.pt", "saved.pt", "weights.pt", "script.pt", "half.pt2", "text.pt", "empty.pt", "zip.pt"]
)
def test_a_file_that_is_no_model_is_refused_and_not_run(tmp_path, name, caplog, capfd):
    bombs(tmp_path)
    with pytest.raises(InputError, match=name.replace(".", r"\.")) as error:
        load_network(tmp_path / name, "cpu")
    assert "torch.export.save" in error.value.fix
    assert not (tmp_path / "went-off").exists()
    assert not caplog.records
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_truncated_model_is_refused(tmp_path, exported):
    export_network(tmp_path / "a.pt")
    for whole in (exported, tmp_path / "a.pt"):
        cut = tmp_path / f"cut{whole.suffix}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(InputError, match="is no model"):
            load_network(cut, "cpu")


def test_no_file_and_no_such_device_are_said(tmp_path):
    with pytest.raises(MissingError, match="no model"):
        load_network(tmp_path / "none.pt")
    with pytest.raises(ConfigError, match="no device 'tpu9'"):
        load_network(device="tpu9")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no device 'cuda'"):
            load_network(device="cuda")
        assert load_network().device == "cpu"
    with pytest.raises(ConfigError, match="0 threads"):
        load_network(threads=0)


def test_the_threads_of_torch_can_be_given():
    before = torch.get_num_threads()
    try:
        load_network(device="cpu", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def _as_script(tmp_path, module):
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(module, torch.rand(2, 1, 8, 8)), out)
    (tmp_path / "m.pt").write_bytes(out.getvalue())
    return load_network(tmp_path / "m.pt", "cpu")


class Wrong(torch.nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x):
        answers = {
            "three classes": lambda: torch.cat((x, x, x), 1),
            "smaller": lambda: torch.cat((x, x), 1)[:, :, 1:],
            "flat": lambda: x[:, 0],
            "integers": lambda: torch.cat((x, x), 1).long(),
            "a pair": lambda: (x, x),
        }
        return answers[self.how]()


@pytest.mark.parametrize("how", ["three classes", "smaller", "flat", "integers", "a pair"])
def test_a_model_that_answers_something_else_is_refused_with_what_it_answered(tmp_path, how):
    with pytest.raises(ToolError, match=r"m\.pt returned"):
        _as_script(tmp_path, Wrong(how)).logits(torch.rand(2, 1, 8, 8))


def test_half_precision_is_fine(tmp_path):
    class Half(torch.nn.Module):
        def forward(self, x):
            return torch.cat((x, x), 1).to(torch.bfloat16)

    assert _as_script(tmp_path, Half()).logits(torch.rand(2, 1, 8, 8)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "images", [np.zeros((2, 8, 8), np.float32), np.zeros((2, 1, 8, 8)), np.zeros((2, 3, 8, 8), np.float32)]
)
def test_images_of_another_kind_are_refused(images):
    with pytest.raises(InputError, match="images are"):
        load_network(device="cpu").logits(images)


@pytest.mark.parametrize("wrong", [{"sigma_px": 0.0}, {"threshold": math.nan}, {"slope": -1.0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError):
        MatchedFilter(**wrong)
