import pytest
import torch
from torch.utils.data import DataLoader

import fastdistill
from fastdistill.data.normalization import Normalization
from fastdistill.data.zca import fit_zca
from fastdistill.synthetic.distilled import Distilled, load


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
