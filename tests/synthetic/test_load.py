import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastdistill
from fastdistill.synthetic.formats import hf, png, pt
from fastdistill.synthetic.formats.eight_bit import eight_bit
from fastdistill.synthetic.load import load


def test_every_form_is_recognised(build, difference, tmp_path):
    distilled = build(runs=2, scheduled=True)
    for target, module in {"png": png, "pt": pt, "hf": hf}.items():
        (tmp_path / target).mkdir()
        module.write(distilled, tmp_path / target, "card")
        expected = eight_bit(distilled) if target == "png" else distilled
        assert difference(fastdistill.load(str(tmp_path / target)), expected) == []
    distilled.save(tmp_path / "distilled.safetensors")
    for path in (tmp_path, tmp_path / "distilled.safetensors"):
        assert difference(load(path), distilled) == []


def test_files_of_any_name_are_read(build, difference, tmp_path):
    build().save(tmp_path / "mine")
    assert difference(load(tmp_path / "mine"), build()) == []


def test_what_holds_no_images_is_named(build, tmp_path):
    for path in (tmp_path, tmp_path / "none", tmp_path / "none.pt"):
        with pytest.raises(
            ValueError, match=r"expected a run folder, a distilled\.safetensors file, an export"
        ) as caught:
            load(path)
        assert "\n" not in str(caught.value)
    (tmp_path / "distilled.json").write_text(json.dumps({"target": "jpeg"}))
    with pytest.raises(ValueError, match="expected a run folder"):
        load(tmp_path)
    (tmp_path / "distilled.json").write_text("")
    with pytest.raises(ValueError, match="damaged or of another kind"):
        load(tmp_path)


def test_an_own_form_takes_no_foreign_statistics(build, tmp_path):
    pt.write(build(), tmp_path, "card")
    with pytest.raises(ValueError, match="which says its own: leave it out"):
        load(tmp_path, dataset="cifar10")
    with pytest.raises(ValueError, match="which says its own: leave it out"):
        load(tmp_path, normalization=build().normalization)


def test_an_export_without_its_description_is_foreign(build, tmp_path):
    pt.write(build(), tmp_path, "card")
    (tmp_path / "distilled.json").unlink()
    found = load(tmp_path, dataset="cifar10")
    assert torch.equal(found.images, build().images)


@st.composite
def changed(draw, whole):
    """A damaged file: cut, longer, or with other bytes."""
    kind = draw(st.sampled_from(["cut", "bytes", "longer"]))
    if kind == "cut":
        return whole[: draw(st.integers(0, len(whole) - 1))]
    if kind == "longer":
        place = draw(st.integers(0, len(whole)))
        return whole[:place] + draw(st.binary(min_size=1, max_size=9)) + whole[place:]
    content = bytearray(whole)
    for place in draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        content[place] = draw(st.integers(0, 255) | st.sampled_from(b'0123456789-"[]{}'))
    return bytes(content)


@pytest.mark.parametrize("soft", [None, (18, 9), (2, 18, 9)], ids=["hard", "soft", "own soft"])
@pytest.mark.parametrize("target", ["png", "pt", "hf", "safetensors"])
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damage_never_raises_anything_but_value_error(build, tmp_path_factory, target, soft, data):
    folder = tmp_path_factory.mktemp(target)
    distilled = build(runs=2, channels=1, scheduled=True, soft=soft)
    if target == "safetensors":
        distilled.save(folder / "distilled.safetensors")
    else:
        {"png": png, "pt": pt, "hf": hf}[target].write(distilled, folder, "card")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = data.draw(st.sampled_from(files[-8:]))
    file.write_bytes(data.draw(changed(file.read_bytes())))
    try:
        found = load(folder)
    except ValueError as error:
        assert "\n" not in str(error)
        assert str(error).startswith("expected ")
    else:
        assert found.pixels().shape == found.images.shape
