import pytest
import torch

from fastdistill.data.normalization import Normalization
from fastdistill.data.torchvision_sets import NORMALIZATIONS
from fastdistill.synthetic.load import load

IMAGES = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize("names", [("images.pt", "labels.pt"), ("images_best.pt", "labels_best.pt")])
@pytest.mark.parametrize("labels", [LABELS, LABELS.int()])
def test_a_folder_of_two_tensors_is_loaded(tmp_path, names, labels):
    for name, tensor in zip(names, (IMAGES, labels), strict=True):
        torch.save(tensor, tmp_path / name)
    torch.save(torch.tensor(0.01), tmp_path / "lr_best.pt")
    found = load(tmp_path, dataset="cifar10")
    assert torch.equal(found.images, IMAGES[None])
    assert torch.equal(found.labels, LABELS)
    assert found.normalization is NORMALIZATIONS["cifar10"]
    assert (found.dataset, found.class_names, found.schedule) == ("cifar10", ("0", "1"), None)


def test_results_of_gradient_matching_are_loaded(tmp_path):
    pairs = [[IMAGES.clone(), LABELS], [IMAGES + 1, LABELS]]
    torch.save({"data": pairs, "accs_all_exps": {"ConvNet": [0.5]}}, tmp_path / "res_DC_X_ConvNet_2ipc.pt")
    for path in (tmp_path, tmp_path / "res_DC_X_ConvNet_2ipc.pt"):
        found = load(path, normalization=Normalization(mean=(0.0,) * 3, std=(1.0,) * 3))
        assert torch.equal(found.images, torch.stack([IMAGES, IMAGES + 1]))
        assert found.dataset == "own"


def test_a_normalisation_is_never_assumed(tmp_path):
    torch.save(IMAGES, tmp_path / "images.pt")
    torch.save(LABELS, tmp_path / "labels.pt")
    for given in ({}, {"dataset": "imagenet"}):
        with pytest.raises(ValueError, match=r"the files do not say: give load a dataset among mnist, .*normalization"):
            load(tmp_path, **given)
    with pytest.raises(ValueError, match="1 channels"):
        load(tmp_path, dataset="mnist")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, torch.rand(4, 10), "not one class number per image"),
        (IMAGES, LABELS.float(), "not one class number per image"),
        (IMAGES, LABELS.bool(), "not one class number per image"),
        (IMAGES, LABELS[:3], "give every image one label"),
        (IMAGES, torch.tensor([0, 0, 1, 10**9]), "its labels reach 1000000000, but there are 4 images"),
        (IMAGES, -LABELS, "expected int64 labels"),
        (IMAGES, LABELS[:0], "give every image one label"),
        (IMAGES.int(), LABELS, "not normalised floating-point"),
        (IMAGES[0], LABELS, "give every image one label"),
        ({"images": IMAGES}, LABELS, "dense tensor"),
    ],
)
def test_odd_tensors_are_refused(tmp_path, images, labels, message):
    torch.save(images, tmp_path / "images.pt")
    torch.save(labels, tmp_path / "labels.pt")
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path, dataset="cifar10")
    assert str(caught.value).startswith("expected images and hard labels that another program saved in")
    assert "\n" not in str(caught.value)


def test_several_results_need_a_choice(tmp_path):
    for name in ("res_a.pt", "res_b.pt"):
        torch.save({"data": [[IMAGES, LABELS]]}, tmp_path / name)
    with pytest.raises(ValueError, match="name one of them"):
        load(tmp_path, dataset="cifar10")
    assert load(tmp_path / "res_a.pt", dataset="cifar10").runs == 1


def test_code_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "touched"), "w")

    torch.save({"data": [[Payload(), LABELS]]}, tmp_path / "res_a.pt")
    with pytest.raises(ValueError, match="such as code"):
        load(tmp_path / "res_a.pt", dataset="cifar10")
    assert not (tmp_path / "touched").exists()
