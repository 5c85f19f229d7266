"""Generators against their layers written out, their noise, and their derivatives by finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastdistill.generator_config import GeneratorConfig
from fastdistill.synthetic.generator import Generator, build_generator, initial_parameters

CLASSES, IPC, RUNS, SHAPE = 3, 4, 2, (1, 8, 8)
CPU = torch.device("cpu")


def make(architecture="upsampling", *, shape=SHAPE, ipc=IPC, runs=RUNS, **changes):
    settings = {"width": 8, "noise_size": 5, **changes}
    config = GeneratorConfig(architecture=architecture, **settings)
    return Generator(config=config, shape=shape, classes=CLASSES, ipc=ipc, runs=runs, seed=7)


def start(generator):
    return generator.initial(dtype=torch.float64, device=CPU)


def of_run(learned, run):
    return {name.removeprefix("generator."): value[run] for name, value in learned.items()}


def normed(inputs, weight, bias):
    """Batch norm by hand."""
    axes = [axis for axis in range(inputs.ndim) if axis != 1]
    mean, variance = inputs.mean(axes, keepdim=True), inputs.var(axes, correction=0, keepdim=True)
    shape = [1, -1] + [1] * (inputs.ndim - 2)
    return (inputs - mean) / (variance + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)


def scale(weight, gain):
    return gain / weight.flatten(1).square().sum(1).sqrt()


def upsampling_by_hand(p, inputs):
    def weighted(name, x):
        y = x @ p[f"{name}.weight"].T
        return y * scale(p[f"{name}.weight"], p[f"{name}.gain"])

    def convolved(name, x, bias=None):
        x = F.pad(x.repeat_interleave(2, -1).repeat_interleave(2, -2), (1, 1, 1, 1), mode="reflect")
        y = F.conv2d(x, p[f"{name}.weight"], bias)
        return y * scale(p[f"{name}.weight"], p[f"{name}.gain"])[:, None, None]

    def rectified(x):
        return torch.where(x > 0, x, 0.1 * x)

    def norm(name, x):
        return normed(x, p[f"{name}.weight"], p[f"{name}.bias"])

    x = rectified(norm("first_norm", weighted("first", inputs)))
    x = rectified(norm("second_norm", weighted("second", x))).view(-1, 8, 2, 2)
    x = rectified(norm("third_norm", convolved("third", x)))
    return 2 * convolved("last", x, p["last.bias"]).tanh()


def full_by_hand(p, inputs):
    def rectified(x):
        return torch.where(x > 0, x, 0.1 * x)

    def norm(name, x):
        return normed(x, p[f"{name}.weight"], p[f"{name}.bias"])

    x = norm("first_norm", rectified(inputs @ p["first.weight"].T + p["first.bias"]))
    x = rectified(x @ p["second.weight"].T + p["second.bias"]).view(-1, 4, 8, 8)
    x = norm("second_norm", x)
    x = rectified(norm("third_norm", F.conv2d(x, p["third.weight"], p["third.bias"], padding=1)))
    return rectified(norm("last_norm", F.conv2d(x, p["last.weight"], p["last.bias"], padding=1))).tanh()


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(
    ("architecture", "by_hand"),
    [("upsampling", upsampling_by_hand), ("full", full_by_hand)],
    ids=["upsampling", "full"],
)
def test_images_are_those_of_the_layers_written_out(architecture, by_hand, blocks):
    generator = make(architecture, blocks=blocks)
    learned = start(generator)
    learned = {
        name: value + 0.1 * torch.sin(torch.arange(value.numel())).view_as(value) for name, value in learned.items()
    }
    found = generator.images(learned, 0)
    assert found.shape == (RUNS, CLASSES, IPC, *SHAPE)
    for run in range(RUNS):
        parameters = of_run(learned, run)
        for block, noise in enumerate(learned["noise"][run].chunk(blocks, dim=1)):
            rows = [
                torch.cat([noise[label, image], torch.eye(CLASSES, dtype=torch.float64)[label]])
                for label in range(CLASSES)
                for image in range(noise.shape[1])
            ]
            expected = by_hand(parameters, torch.stack(rows)).view(CLASSES, -1, *SHAPE)
            part = found[run, :, block * noise.shape[1] : (block + 1) * noise.shape[1]]
            assert (part - expected).abs().max() <= 1e-12


def test_a_batch_is_normed_by_itself():
    """Images of one block do not depend on those of another."""
    generator = make(blocks=2)
    learned = start(generator)
    before = generator.images(learned, 0)
    learned["noise"][:, :, IPC // 2 :] *= torch.linspace(-1, 2, 5, dtype=torch.float64)
    after = generator.images(learned, 0)
    assert torch.equal(before[:, :, : IPC // 2], after[:, :, : IPC // 2])
    assert not torch.allclose(before[:, :, IPC // 2 :], after[:, :, IPC // 2 :])


@pytest.mark.parametrize("architecture", ["upsampling", "full"])
def test_runs_are_generators_of_their_own(architecture):
    generator = make(architecture)
    learned = start(generator)
    images = generator.images(learned, 0)
    assert not torch.allclose(images[0], images[1])
    alone = make(architecture, runs=1)
    assert torch.equal(images[:1], alone.images(start(alone), 0))


def test_noise_is_fixed_fresh_or_learned():
    learned = start(make(noise="learned"))
    assert learned["noise"].shape == (RUNS, CLASSES, IPC, 5)
    for noise in ("fixed", "fresh"):
        generator = make(noise=noise)
        own = start(generator)
        assert "noise" not in own
        first, second = generator.images(own, 0), generator.images(own, 1)
        assert torch.equal(first, second) == (noise == "fixed")
        assert torch.equal(first, generator.images(own, 0))
    fixed = make(noise="fixed")
    assert torch.equal(fixed.images(start(fixed), 3), make().images(learned, 3))
    drawn = start(make(distribution="uniform"))["noise"]
    assert 0 <= float(drawn.min()) < 0.2 and 0.8 < float(drawn.max()) < 1
    assert float(learned["noise"].std()) == pytest.approx(1, abs=0.3)


def test_weight_normed_layers_begin_as_plain_ones():
    module = build_generator(make().config, SHAPE, CLASSES)
    drawn = initial_parameters(module, seed=0, runs=1, device=CPU)
    assert torch.allclose(drawn["first.gain"][0], drawn["first.weight"][0].norm(dim=1))
    assert torch.allclose(drawn["third.gain"][0], drawn["third.weight"][0].flatten(1).norm(dim=1))
    wide = build_generator(GeneratorConfig(architecture="upsampling", width=64), SHAPE, CLASSES)
    weight = initial_parameters(wide, seed=0, runs=1, device=CPU)["second.weight"]
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / 512), rel=0.02)
    assert not drawn["last.bias"].any() and drawn["first_norm.weight"].eq(1).all()
    plain = initial_parameters(build_generator(make("full").config, SHAPE, CLASSES), seed=0, runs=2, device=CPU)
    assert float(plain["second.weight"].abs().max()) <= 1 / math.sqrt(8)
    assert plain["second.bias"].any()


@pytest.mark.parametrize("noise", ["learned", "fresh"])
@pytest.mark.parametrize("architecture", ["upsampling", "full"])
def test_derivatives_by_finite_differences(architecture, noise):
    generator = make(architecture, noise=noise)
    learned = start(generator)
    draw = torch.Generator().manual_seed(1)
    way = {name: torch.randn(value.shape, generator=draw, dtype=torch.float64) for name, value in learned.items()}
    against = torch.randn(RUNS, CLASSES, IPC, *SHAPE, generator=draw, dtype=torch.float64)

    def value(length):
        return (generator.images({name: learned[name] + length * way[name] for name in learned}, 2) * against).sum()

    leaves = {name: tensor.clone().requires_grad_() for name, tensor in learned.items()}
    gradients = torch.autograd.grad((generator.images(leaves, 2) * against).sum(), list(leaves.values()))
    slope = sum(float((gradient * way[name]).sum()) for name, gradient in zip(leaves, gradients, strict=True))
    # short enough to cross no kink of a rectifier
    assert float(value(1e-8) - value(-1e-8)) / 2e-8 == pytest.approx(slope, rel=1e-5)


def test_what_cannot_be_generated_is_named():
    with pytest.raises(
        ValueError, match=r"expected sides that are multiples of 4 .*, got 10 x 8: use the generator full"
    ):
        make(shape=(1, 10, 8))
    assert make("full", shape=(3, 10, 7)).images(start(make("full", shape=(3, 10, 7))), 0).shape[-3:] == (3, 10, 7)
    with pytest.raises(ValueError, match=r"expected ipc to be a multiple of the generator's 3 blocks, got 4: change"):
        make(blocks=3)


@pytest.mark.parametrize("noise", ["learned", "fixed", "fresh"])
def test_samples_are_those_it_was_trained_on_and_then_new_ones(noise):
    generator = make(noise=noise, blocks=2)
    learned = start(generator)
    few, many = generator.sample(learned, 7, seed=1), generator.sample(learned, 40, seed=1)
    assert few.shape == (RUNS, 7, *SHAPE) and many.shape == (RUNS, 40, *SHAPE)
    assert torch.equal(few, many[:, :7])
    trained = generator.images(learned, 0).transpose(1, 2).flatten(1, 2)  # class after class in turn
    assert torch.equal(few, trained[:, :7]) == (noise != "fresh")
    assert len({tuple(image.flatten().tolist()) for image in many[0]}) == 40
    again, other = generator.sample(learned, 40, seed=1), generator.sample(learned, 40, seed=2)
    assert torch.equal(many, again) and not torch.equal(many[:, -1], other[:, -1])
