"""Generators trained by every method against plain autograd through the whole program, in float64."""

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy, softplus

from bench.naive.distribution import distribution_loss
from bench.naive.implicit import implicit_gradient, neumann
from bench.naive.matching import matching_loss
from bench.naive.unrolled import Sgd, Training, unrolled_loss
from fastdistill.derivatives.memory import Ledger
from fastdistill.generator_config import GeneratorConfig
from fastdistill.loop.decoded import Decoded, Shown, belongs, images_and_pull
from fastdistill.method_configs import DistributionConfig, ImplicitConfig, MatchingConfig, UnrolledConfig
from fastdistill.methods.unrolled import batch_order
from fastdistill.synthetic.generator import Generator
from tests import gtn
from tests.methods import test_distribution as distribution
from tests.methods import test_implicit as implicit
from tests.methods import test_matching as matching
from tests.methods import test_unrolled as unrolled

CLASSES, IPC, SHAPE = 3, 2, (1, 8, 8)
CPU = torch.device("cpu")
KINDS = [("upsampling", "learned", 1), ("full", "fresh", 1), ("upsampling", "fixed", 2)]


def generators(kind, runs=1):
    architecture, noise, blocks = kind
    config = GeneratorConfig(architecture=architecture, noise=noise, blocks=blocks, width=8, noise_size=5)
    generator = Generator(config=config, shape=SHAPE, classes=CLASSES, ipc=IPC, runs=runs, seed=3)
    return generator, generator.initial(dtype=torch.float64, device=CPU)


def mean_gradient(generator, learned, step, losses):
    """Derivatives of the mean of students' losses, each a function of the images ``[C, M, D, H, W]`` of its run."""
    leaves = {name: value.clone().requires_grad_() for name, value in learned.items()}
    images = generator.images(leaves, step)
    total = sum(loss(images[0]) for loss in losses) / len(losses)
    return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


def agree(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # what a norm behind it cancels has no derivative but rounding
        assert (found[name] - gradient).norm() <= 1e-8 * gradient.norm() + 1e-13, name
    assert sum(float(gradient.norm()) for gradient in expected.values()) > 1e-4


def test_each_inner_step_sees_the_images_of_exactly_one_block():
    steps, each = 3, 2
    config = GeneratorConfig(architecture="upsampling", blocks=steps, width=8, noise_size=5)
    generator = Generator(config=config, shape=SHAPE, classes=CLASSES, ipc=steps * each, runs=1, seed=3)
    learned = generator.initial(dtype=torch.float64, device=CPU)
    images = generator.images(learned, 0)[0].flatten(0, 1)
    parameters = {name.removeprefix("generator."): value[0] for name, value in learned.items() if name != "noise"}
    order = batch_order(UnrolledConfig(batches=steps, epochs=1), CLASSES, steps * each)
    assert order.shape == (steps, CLASSES * each)
    for step, members in enumerate(order):
        block = generator.block(parameters, learned["noise"][0, :, step * each : (step + 1) * each])
        assert torch.equal(images[members], block.flatten(0, 1))


@pytest.mark.parametrize("noise", ["learned", "fresh"])
def test_blocks_are_pulled_back_one_by_one_to_the_same(noise):
    generator, learned = generators(("upsampling", noise, 2), runs=2)
    images, pull = images_and_pull(generator, learned, 4)
    cotangent = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole, back = torch.func.vjp(lambda learned: generator.images(learned, 4), learned)
    assert torch.equal(images, whole)
    agree(pull(cotangent), back(cotangent)[0])
    assert ("noise" in pull(cotangent)) == (noise == "learned")


def test_a_pull_back_holds_the_activations_of_one_block():
    def held(blocks):
        config = GeneratorConfig(architecture="upsampling", blocks=blocks, width=32, noise_size=5)
        generator = Generator(config=config, shape=SHAPE, classes=CLASSES, ipc=64, runs=1, seed=3)
        learned = generator.initial(dtype=torch.float32, device=torch.device("meta"))
        with Ledger() as ledger:
            images, pull = images_and_pull(generator, learned, 0)
            pull(torch.ones_like(images))
            return ledger.footprint.peak

    assert held(16) < held(1) / 4


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_gradient_matching(kind):
    generator, learned = generators(kind)
    plain, sample, layout = matching.make(MatchingConfig(real_batch=6), students=2, ipc=IPC, device="cpu")
    method = Decoded(method=plain, generator=generator)
    drawn = method.fresh(4)
    found = method.gradient(learned, drawn, 4)

    def loss(student):
        network = matching.textbook_network(layout, drawn.weights[student])
        real = list(sample(None, 4, drawn.indices[student : student + 1], 6).images[0])
        return lambda images: matching_loss(network, real, images)

    agree(found.gradients, mean_gradient(generator, learned, 4, [loss(0), loss(1)]))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_distribution_matching(kind):
    generator, learned = generators(kind)
    config = DistributionConfig(real_batch=6, augmentation="none")
    plain, sample, layout = distribution.make(config, students=2, ipc=IPC, device="cpu")
    method = Decoded(method=plain, generator=generator)
    drawn = method.fresh(4)
    found = method.gradient(learned, drawn, 4)

    def loss(student):
        network = matching.textbook_network(layout, drawn.weights[student])
        real = list(sample(None, 4, drawn.indices[student : student + 1], 6).images[0])
        return lambda images: distribution_loss(network, real, images)

    agree(found.gradients, mean_gradient(generator, learned, 4, [loss(0), loss(1)]))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_unrolled_training(kind):
    """With a curriculum: one block of images for each inner step, and rates that are learned beside the generator."""
    generator, learned = generators(kind)
    config = unrolled.recipe(batches=2, epochs=2)
    plain, pixels, ensemble, layout = unrolled.make(config, students=2, ipc=IPC)
    learned |= {"rates": pixels["rates"]}
    method = Decoded(method=plain, generator=generator)
    drawn = method.fresh(4)
    found = method.gradient(learned, drawn, 4)
    order = unrolled.batch_order(config, CLASSES, IPC)
    leaves = {name: value.clone().requires_grad_() for name, value in learned.items()}
    images, total = generator.images(leaves, 4)[0].flatten(0, 1), 0.0
    for student in range(2):
        real, labels = unrolled.real(4, drawn.indices[student : student + 1])
        total = total + unrolled_loss(
            Training(net=ensemble.module, inner=Sgd(), batches=list(order)),
            {name: view.clone() for name, view in layout.views(drawn.weights[student]).items()},
            images,
            torch.arange(CLASSES).repeat_interleave(IPC),
            softplus(leaves["rates"][0]),
            real[0],
            labels[0],
        )
    agree(found.gradients, dict(zip(leaves, torch.autograd.grad(total / 2, list(leaves.values())), strict=True)))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_a_generative_teaching_network(kind, monkeypatch):
    """A generator for students with weight norm and means, a further outer loss in the middle: Such et al. 2020."""
    gtn.narrow(monkeypatch)
    generator, learned = generators(kind)
    config = unrolled.recipe("momentum", batches=2, epochs=2, intermediate_every=2)
    plain, pixels, _, layout = unrolled.make(config, students=2, ipc=IPC, architecture="gtn")
    learned |= {"rates": pixels["rates"], "momenta": pixels["momenta"]}
    method = Decoded(method=plain, generator=generator)
    drawn = method.fresh(4)
    found = method.gradient(learned, drawn, 4)
    order, labels = unrolled.batch_order(config, CLASSES, IPC), torch.arange(CLASSES).repeat_interleave(IPC)
    leaves = {name: value.clone().requires_grad_() for name, value in learned.items()}
    images, total = generator.images(leaves, 4)[0].flatten(0, 1), 0.0
    for student in range(2):
        real, answers = unrolled.real(4, drawn.indices[student : student + 1])
        total = total + gtn.unrolled_loss(
            {name: view.clone() for name, view in layout.views(drawn.weights[student]).items()},
            [(images[members], labels[members]) for members in order],
            softplus(leaves["rates"][0]),
            leaves["momenta"][0].sigmoid(),
            (real[0], answers[0]),
            2,
        )
    agree(found.gradients, dict(zip(leaves, torch.autograd.grad(total / 2, list(leaves.values())), strict=True)))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_implicit_differentiation(kind):
    generator, learned = generators(kind)
    config = ImplicitConfig(inner_steps=4, inner_learning_rate=0.1, terms=5, alpha=0.1, real_batch=7)
    plain, _, ensemble, _ = implicit.make(config, students=2)
    method = Decoded(method=plain, generator=generator)
    trained = method.prepare(learned, method.fresh(4), 4)
    found = method.gradient(learned, trained, 4)
    names, total = list(learned), {name: torch.zeros_like(value) for name, value in learned.items()}
    for student in range(2):
        own = implicit.named(plain._primitives.real, trained.weights[student])
        real, labels = implicit.real(4, trained.indices[student : student + 1])

        def predicted(values, images, own=own):
            return functional_call(ensemble.module, dict(zip(own, values, strict=True)), (images,))

        def training_loss(values, hyper, predicted=predicted):
            images = generator.images(dict(zip(names, hyper, strict=True)), 4)[0].flatten(0, 1)
            return cross_entropy(predicted(values, images), implicit.HARD)

        def validation_loss(values, hyper, predicted=predicted, real=real, labels=labels):
            return cross_entropy(predicted(values, real[0]), labels[0])

        _, slopes = implicit_gradient(
            training_loss,
            validation_loss,
            list(own.values()),
            list(learned.values()),
            lambda product, b: neumann(product, b, 5, 0.1),
        )
        for name, slope in zip(names, slopes, strict=True):
            total[name] += slope / 2
    agree(found.gradients, total)
    # the students were trained on the very images of the step
    other = method.prepare(learned, method.fresh(4), 5)
    if kind[1] == "fresh":
        assert not torch.equal(other.weights, trained.weights)


def test_runs_at_once_equal_runs_alone():
    generator, learned = generators(KINDS[0], runs=2)
    config = MatchingConfig(real_batch=6)
    together = Decoded(method=matching.make(config, students=2, runs=2, ipc=IPC, device="cpu")[0], generator=generator)
    drawn = together.fresh(0)
    both = together.gradient(learned, drawn, 0).gradients
    single, _ = generators(KINDS[0])
    for run in range(2):
        own = {name: value[run : run + 1] for name, value in learned.items()}
        alone = Decoded(method=matching.make(config, students=2, ipc=IPC, device="cpu")[0], generator=single)
        found = alone.gradient(own, drawn.some(slice(2 * run, 2 * run + 2)), 0).gradients
        for name, gradient in found.items():
            assert (both[name][run : run + 1] - gradient).norm() <= 1e-10 * gradient.norm() + 1e-13


def test_images_are_made_when_they_are_asked_for(monkeypatch):
    generator, learned = generators(KINDS[0])
    asked = []
    monkeypatch.setattr(Generator, "images", lambda self, own, step: asked.append(step) or torch.zeros(1))
    shown = Shown(generator, {**learned, "rates": torch.ones(1, 2)}, 3)
    assert list(shown) == ["images", "rates"] and len(shown) == 2 and "rates" in shown and asked == []
    assert shown["images"] is shown["images"] and asked == [3]
    with pytest.raises(KeyError):
        shown["noise"]
    assert [name for name in ("images", "rates", "noise", "generator.first.weight") if belongs(name)] == [
        "noise",
        "generator.first.weight",
    ]


def test_a_student_that_is_not_finite_is_located():
    generator, learned = generators(KINDS[0])
    plain, *_ = matching.make(MatchingConfig(real_batch=6), students=2, ipc=IPC, device="cpu")
    method = Decoded(method=plain, generator=generator)
    drawn = method.fresh(0)
    drawn.weights[1] = torch.nan
    found = method.gradient(learned, drawn, 0)
    assert found.finite.tolist() == [True, False]
    assert all(bool(gradient.isfinite().all()) for gradient in found.gradients.values())
    assert method.locate(learned, drawn, 0, 1) and not method.locate(learned, drawn, 0, 0)


def test_what_a_method_says_of_its_figures_is_said():
    generator, _ = generators(KINDS[0])
    config = ImplicitConfig(inner_steps=1, terms=1, alpha=0.5, real_batch=7)
    method = Decoded(method=implicit.make(config, students=1)[0], generator=generator)
    figures = {"implicit/eigenvalue_max": 8.0, "implicit/eigenvalue_min": 1.0}
    assert "the series diverges" in method.warning(figures)
    plain, *_ = matching.make(MatchingConfig(real_batch=6), students=2, ipc=IPC, device="cpu")
    assert Decoded(method=plain, generator=generator).warning(figures) is None
