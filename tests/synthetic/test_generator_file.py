"""Generators in files: what is written is read again, and nothing else is."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdistill.generator_config import GeneratorConfig
from fastdistill.synthetic.generator import Generator
from fastdistill.synthetic.generator_file import FILE, load_generator, save_generator


@pytest.fixture
def written(tmp_path):
    config = GeneratorConfig(architecture="upsampling", width=8, noise_size=5)
    generator = Generator(config=config, shape=(1, 8, 8), classes=3, ipc=4, runs=2, seed=7)
    learned = generator.initial(dtype=torch.float64, device=torch.device("cpu"))
    save_generator(tmp_path / FILE, generator, {**learned, "rates": torch.zeros(2, 3)})
    return tmp_path, generator, learned


def test_it_is_read_as_it_was_written(written):
    folder, generator, learned = written
    found, tensors = load_generator(folder)
    assert found == generator and tensors.keys() == learned.keys()
    assert all(torch.equal(tensors[name], value.float()) for name, value in learned.items())
    before = (folder / FILE).read_bytes()
    save_generator(folder / FILE, found, tensors)
    assert (folder / FILE).read_bytes() == before


def test_a_run_without_one_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected the folder of a finished run with a generator, got .*: finish the"):
        load_generator(tmp_path)


def test_every_truncation_is_refused(written):
    folder, *_ = written
    content = (folder / FILE).read_bytes()
    for length in [0, 7, 8, 100, *range(0, len(content), len(content) // 20), len(content) - 1]:
        (folder / FILE).write_bytes(content[:length])
        with pytest.raises(
            ValueError, match=r"expected a generator in .*, got a file that is damaged or of another kind"
        ):
            load_generator(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("noise"), "noise is nothing instead of"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "more is .* instead of nothing"),
        (
            lambda tensors: tensors.update(noise=torch.zeros(2, 3, 4, 6)),
            r"noise is \(2, 3, 4, 6\) instead of \(2, 3, 4,",
        ),
        (lambda tensors: tensors["noise"].fill_(torch.nan), "noise is not finite"),
    ],
)
def test_tensors_that_do_not_belong_are_refused(written, change, message):
    folder, *_ = written
    from safetensors import safe_open

    with safe_open(folder / FILE, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE, metadata)
    with pytest.raises(ValueError, match=f"damaged or of another kind \\(.*{message}"):
        load_generator(folder)
    save_file(tensors, folder / FILE, {"fastdistill": "[]"})
    with pytest.raises(ValueError, match="damaged or of another kind"):
        load_generator(folder)
