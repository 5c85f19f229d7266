import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader

import fastdistill
from fastdistill.data.normalization import Normalization
from fastdistill.data.zca import Whitening, fit_zca
from fastdistill.synthetic.distilled import Distilled
from fastdistill.synthetic.distilled import load_file as load


def make(runs=1, whitening=None, channels=2):
    images = torch.randn(runs, 6, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = (0.2, 0.4)[:channels], (0.5, 0.25)[:channels]
    if whitening is not None:
        mean, std = (0.0,) * channels, (1.0,) * channels
    return Distilled(
        images=images,
        labels=torch.arange(3).repeat_interleave(2),
        class_names=("a", "b", "ç"),
        normalization=Normalization(mean=mean, std=std, whitening=whitening),
        dataset="own",
        augmentation="color_crop",
        config_hash="abc",
        details={"name": "x"},
    )


@pytest.mark.parametrize("runs", [1, 3])
def test_what_is_saved_is_loaded(tmp_path, runs):
    distilled = make(runs)
    distilled.save(tmp_path / "distilled.safetensors")
    for path in (tmp_path, tmp_path / "distilled.safetensors", str(tmp_path)):
        found = fastdistill.load(path)
        assert torch.equal(found.images, distilled.images)
        assert torch.equal(found.labels, distilled.labels)
        assert found.class_names == distilled.class_names
        assert (found.normalization.mean, found.normalization.std) == ((0.2, 0.4), (0.5, 0.25))
        assert (found.dataset, found.augmentation, found.config_hash) == ("own", "color_crop", "abc")
        assert found.details == {"name": "x"}
    assert list(tmp_path.iterdir()) == [tmp_path / "distilled.safetensors"]  # no temporary left


def test_whitening_travels_with_the_images(tmp_path):
    data = torch.rand(40, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    distilled = make(whitening=fit_zca(data))
    distilled.save(tmp_path / "d.safetensors")
    found = load(tmp_path / "d.safetensors")
    assert torch.equal(found.normalization.whitening.matrix, distilled.normalization.whitening.matrix)
    assert torch.equal(found.pixels(), distilled.pixels())


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("a", "b"):
        make().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_it_is_a_torch_data_set():
    distilled = make()
    batches = list(DataLoader(distilled, batch_size=4))
    assert len(distilled) == 6
    assert torch.equal(torch.cat([images for images, _ in batches]), distilled.images[0])
    assert torch.equal(torch.cat([labels for _, labels in batches]), distilled.labels)


def test_pixels_undo_the_normalisation():
    distilled = make()
    expected = distilled.images[:, :, 1] * 0.25 + 0.4
    assert torch.allclose(distilled.pixels()[:, :, 1], expected)


def test_a_run_of_several_is_selected():
    distilled = make(3)
    assert distilled.runs == 3
    assert torch.equal(distilled.run(2).images[0], distilled.images[2])


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="found none at"):
        load(tmp_path)
    (tmp_path / "distilled.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(ValueError, match="damaged or of another kind"):
        load(tmp_path)
    make().save(tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for cut in (4, 40, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:cut])
        with pytest.raises(ValueError, match="damaged or of another kind"):
            load(tmp_path / "cut")
    with pytest.raises(ValueError, match="give every image one label"):
        Distilled(
            images=torch.zeros(6, 1, 2, 2),
            labels=torch.zeros(6),
            class_names=("a",),
            normalization=Normalization(mean=(0.0,), std=(1.0,)),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.tensor([0, 0, 1, 1, 2, 3])}, "expected int64 labels in 0 to 2"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, -1])}, "expected int64 labels in 0 to 2"),
        ({"labels": torch.zeros(6, dtype=torch.int32)}, r"got torch\.int32"),
        ({"labels": torch.zeros(6)}, r"got torch\.float32"),
        ({"images": torch.zeros(1, 6, 3, 4, 4)}, r"normalisation's 2 channels .*, got \(3, 4, 4\)"),
        ({"images": torch.zeros(1, 6, 2, 4, 4, dtype=torch.int32)}, r"floating-point images .*got torch\.int32"),
        ({"images": torch.zeros(1, 6, 2, 4, 4).to(torch.float8_e4m3fn)}, r"16, 32 or 64 bits, got torch\.float8"),
        ({"images": torch.zeros(1, 6, 2, 4, 4).index_fill(1, torch.tensor([1, 4]), torch.nan)}, "finite .* in 2 of 6"),
        ({"images": torch.full((2, 6, 2, 4, 4), -torch.inf)}, "got NaN or infinity in 12 of 12"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    distilled = make()
    fields = {name: getattr(distilled, name) for name in ("images", "labels", "class_names", "normalization")}
    with pytest.raises(ValueError, match=message):
        Distilled(**(fields | changes))


@pytest.mark.parametrize(
    "images", [torch.full((1, 6, 2, 4, 4), torch.nan), torch.zeros(1, 6, 2, 4, 4).to(torch.float8_e5m2)]
)
def test_images_that_are_no_numbers_are_not_loaded(tmp_path, images):
    make().save(tmp_path / "whole")
    with safe_open(tmp_path / "whole", framework="pt") as opened:
        metadata, labels = opened.metadata(), opened.get_tensor("labels")
    save_file({"images": images, "labels": labels}, tmp_path / "odd", metadata)
    with pytest.raises(ValueError, match=r"damaged or of another kind \(expected (finite|floating-point) images"):
        load(tmp_path / "odd")


@pytest.mark.parametrize(
    ("rate", "found"),
    [
        (torch.tensor(0.1), r"got torch\.float32 \(\)"),
        (torch.ones(3), r"got torch\.float32 \(3,\)"),
        (torch.ones(2, dtype=torch.int64), r"got torch\.int64 \(2,\)"),
        (torch.tensor([0.1, torch.nan]), "got NaN or infinity"),
    ],
)
def test_what_is_no_learning_rate_of_every_run_is_refused(build, rate, found):
    with pytest.raises(ValueError, match=f"floating-point learning rate of each of 2 runs, {found}: give those"):
        build(runs=2, learning_rate=rate)


def test_learning_rates_are_those_of_the_runs_and_are_said(build):
    distilled = build(runs=2, learning_rate=torch.tensor([0.01, 0.025]))
    assert torch.equal(distilled.run(1).learning_rate, torch.tensor([0.025]))
    assert "train with learning rate 0.01, 0.025, run by run, which was learned" in distilled.note
    assert "train with learning rate 0.025, which was learned" in distilled.run(1).note
    many = build(runs=7, channels=1, learning_rate=torch.full((7,), 0.5))
    assert "rate 0.5, 0.5, 0.5, 0.5, 0.5 and 2 more, run by run" in many.note
    both = build(scheduled=True, learning_rate=torch.tensor([0.5]))
    assert "only by replaying them" in both.note and "; train with learning rate 0.5" in both.note
    assert build().note == ""


def test_a_whitening_of_another_size_is_refused():
    whitening = Whitening(mean=torch.zeros(8), matrix=torch.eye(8), inverse=torch.eye(8))
    with pytest.raises(ValueError, match=r"2 channels and 8 values, got \(2, 4, 4\)"):
        make(whitening=whitening)


@pytest.mark.parametrize(
    "changes",
    [
        None,
        [1],
        "text",
        {"format": None},
        {"class_names": None},
        {"class_names": "abc"},
        {"class_names": [1, 2, 3]},
        {"class_names": ["a", "b"]},
        {"mean": 0.5},
        {"mean": ["x", "0"]},
        {"mean": [0.0]},
        {"mean": [10**400, 0]},
        {"mean": [0.0] * 3, "std": [1.0] * 3},
        {"std": [0.0, 1.0]},
        {"std": {"a": 1, "b": 1}},
        {"dataset": 3},
        {"augmentation": None},
        {"config_hash": []},
        {"details": [1]},
        {"details": {"a": 1}},
    ],
)
def test_odd_metadata_is_a_damaged_file(tmp_path, changes):
    make().save(tmp_path / "whole")
    with safe_open(tmp_path / "whole", framework="pt") as opened:
        metadata = json.loads(opened.metadata()["fastdistill"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    text = json.dumps(metadata | changes if isinstance(changes, dict) else changes)
    save_file(tensors, tmp_path / "odd", {"fastdistill": text})
    with pytest.raises(ValueError, match="damaged or of another kind"):
        load(tmp_path / "odd")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 10_000, "", "NaN"])
def test_metadata_that_json_cannot_read_is_a_damaged_file(tmp_path, text):
    save_file({"images": torch.zeros(1)}, tmp_path / "odd", {"fastdistill": text})
    with pytest.raises(ValueError, match="damaged or of another kind"):
        load(tmp_path / "odd")


@st.composite
def damaged(draw, whole):
    kind = draw(st.sampled_from(["random", "cut", "flip"]))
    if kind == "random":
        return draw(st.binary(max_size=200))
    if kind == "cut":
        return whole[: draw(st.integers(0, len(whole) - 1))]
    content = bytearray(whole)
    header = 8 + int.from_bytes(whole[:8], "little")
    # mostly in the header, where a changed byte means something
    where = st.integers(0, header - 1) | st.integers(0, len(whole) - 1)
    for place in draw(st.lists(where, min_size=1, max_size=4)):
        content[place] ^= draw(st.integers(1, 255))
    return bytes(content)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_never_raises_anything_but_value_error(tmp_path, data):
    make().save(tmp_path / "whole")
    (tmp_path / "damaged").write_bytes(data.draw(damaged((tmp_path / "whole").read_bytes())))
    try:
        found = load(tmp_path / "damaged")
    except ValueError as error:
        assert "damaged or of another kind" in str(error)
    else:
        assert found.pixels().shape == found.images.shape
