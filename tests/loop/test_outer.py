import pytest
import torch

from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.arrays import from_arrays
from fastdistill.derivatives.plan import Path
from fastdistill.loop.descent import Momentum
from fastdistill.loop.descents import make_descent
from fastdistill.loop.guard import _WINDOW, Guard
from fastdistill.loop.outer import Best, State, Step, outer_step, outer_steps
from fastdistill.loop.plan import make_plan
from fastdistill.loop.setup import initial_state, make_method
from fastdistill.method_configs import matching_recipe
from fastdistill.methods.outer_gradient import OuterGradient
from fastdistill.students.ensemble import Students


class Quadratic:
    """A method whose loss is half the squared distance to a target, for students that count their steps."""

    def __init__(self, target, loop):
        self.target, self.loop, self.calls = target, loop, []

    def fresh(self, step):
        self.calls.append(("fresh", step))
        return Students(indices=torch.arange(2), weights=torch.zeros(2, 1), buffers={})

    def prepare(self, learned, students, step):
        return students

    def gradient(self, learned, students, step):
        images = learned["images"]
        self.calls.append(("gradient", step, float(students.weights[0, 0])))
        loss = ((images - self.target) ** 2).sum() / 2
        return OuterGradient(
            gradients={"images": images - self.target},
            loss=torch.stack([loss, 3 * loss]),
            finite=torch.ones(2, dtype=torch.bool),
        )

    def advance(self, learned, students, step):
        if (step + 1) % self.loop == 0:
            return None
        return Students(indices=students.indices, weights=students.weights + 1, buffers={})


def starting(images, step=0):
    return State(step=step, learned={"images": images}, moments={"images.velocity": torch.zeros_like(images)})


def test_images_move_by_sgd_with_momentum():
    start = torch.randn(1, 2, 1, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.ones_like(start)
    method = Quadratic(target, 1)
    state, descent = starting(start), Momentum(rates={"images": 0.1}, momentum=0.5)
    expected = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([expected], lr=0.1, momentum=0.5)
    for found, step in outer_steps(method, descent, state, 6):
        loss = ((expected - target) ** 2).sum() / 2
        assert torch.allclose(step.values["outer/loss"], 2 * loss)
        assert torch.allclose(step.values["outer/loss_std"], loss)
        assert torch.allclose(step.values["outer/grad_norm"], (expected - target).norm())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.allclose(found.images, expected, rtol=1e-12)


def test_the_best_images_are_chosen_for_every_run_by_itself():
    def at(step):
        learned = {"images": torch.full((3, 1, 1, 1, 2, 2), float(step)), "rates": torch.full((3, 4), float(step))}
        return State(step=step, learned=learned, moments={})

    best = Best.choose(None, at(1), (0.5, 0.5, 0.5))
    best = Best.choose(best, at(2), (0.6, 0.4, 0.5))
    assert best.accuracy == (0.6, 0.5, 0.5)
    assert best.step == (2, 1, 1)
    assert best.learned["images"][:, 0, 0, 0, 0, 0].tolist() == [2.0, 1.0, 1.0]
    assert best.learned["rates"][:, 3].tolist() == [2.0, 1.0, 1.0]


def test_students_live_for_the_outer_loop():
    start = torch.zeros(1, 1, 1, 1, 1, 1)
    method = Quadratic(start, 3)
    descent = Momentum(rates={"images": 0.1}, momentum=0.5)
    states = [found for found, _ in outer_steps(method, descent, starting(start), 5)]
    assert [call for call in method.calls if call[0] == "fresh"] == [("fresh", 0), ("fresh", 3)]
    assert [call[2] for call in method.calls if call[0] == "gradient"] == [0, 1, 2, 0, 1]
    assert [found.students is None for found in states] == [False, False, True, False, False]


class Fixed:
    """A method whose students say what they are told to say."""

    def __init__(self, gradients, loss, finite):
        self.found = OuterGradient(gradients=gradients, loss=loss, finite=finite)

    def fresh(self, step):
        return Students(indices=torch.arange(4), weights=torch.zeros(4, 1), buffers={})

    def prepare(self, learned, students, step):
        return students

    def gradient(self, learned, students, step):
        return self.found

    def advance(self, learned, students, step):
        return None


def step_with(finite, gradient=1.0, share=0.25, device="cpu", rates=1.0):
    images = torch.ones(1, 2, 1, 1, 1, 1, device=device)
    loss = torch.tensor([1.0, 2.0, 3.0, torch.nan], device=device)
    learned = {"images": images, "rates": torch.ones(1, 2, device=device)}
    gradients = {"images": torch.full_like(images, gradient), "rates": torch.full((1, 2), rates, device=device)}
    method = Fixed(gradients, loss, torch.tensor(finite, device=device))
    descent = Momentum(rates={"images": 0.5, "rates": 0.5}, momentum=0.5)
    state = State(step=3, learned=learned, moments=descent.start(learned))
    return outer_step(method, descent, state, masked_share=share)


def test_masked_students_count_for_nothing_in_the_metrics():
    state, step = step_with([True, True, True, False])
    assert bool(step.sound)
    assert float(step.values["outer/loss"]) == 2.0
    assert float(step.values["outer/loss_std"]) == pytest.approx((2 / 3) ** 0.5)
    assert int(step.values["outer/masked"]) == 1
    assert (state.images == 0.5).all()


@pytest.mark.parametrize(
    ("finite", "gradient", "share", "rates"),
    [
        ([True, True, False, False], 1.0, 0.25, 1.0),
        ([True, True, True, False], 1.0, 0.0, 1.0),
        ([True] * 4, torch.inf, 1.0, 1.0),
        ([True] * 4, 1.0, 1.0, torch.inf),
    ],
)
def test_a_step_that_is_not_sound_moves_nothing(finite, gradient, share, rates):
    state, step = step_with(finite, gradient, share, rates=rates)
    assert not bool(step.sound)
    assert all((value == 1).all() for value in state.learned.values())
    assert all((value == 0).all() for value in state.moments.values())
    assert len(state.learned) == len(state.moments) == 2


def test_a_step_never_waits_for_the_device():
    """On the meta device any look at a value raises."""
    state, step = step_with([True, True, True, False], device="meta")
    assert state.images.is_meta
    assert step.sound.is_meta


def test_the_guard_waits_for_the_device_only_when_it_looks():
    images = torch.zeros(1, 1, 1, 1, 1, 1, device="meta")
    before = State(step=0, learned={"images": images}, moments={})
    guard = Guard(None, print)
    flag = torch.ones(2, dtype=torch.bool, device="meta")
    for _ in range(_WINDOW - 1):
        guard.watch(before, Step(values={}, finite=flag, sound=flag[0]))
    with pytest.raises(NotImplementedError):  # values of the meta device
        guard.look()


def test_dual_layers_and_torch_func_distil_the_same_images_step_by_step():
    def course(derivatives):
        config = RunConfig(
            students=2,
            student=StudentConfig(width=8, depth=2, activation="softplus"),
            method=matching_recipe("dc", 1, real_batch=8, outer_loop=2, inner_loop=2),
            evaluation=EvaluationConfig(protocol="default"),
            device="cpu",
            derivatives=derivatives,
            compile="never",
        )
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (200, 1, 8, 8), dtype=torch.uint8, generator=generator)
        train = from_arrays(pixels, torch.arange(200) % 10)
        plan = make_plan(config, train.shape, train.num_classes)
        assert (plan.synthetic.path is Path.DUAL) == (derivatives == "auto")
        descent = make_descent(config.method)
        return outer_steps(make_method(config, plan, train), descent, initial_state(config, plan, train), 50)

    count = 0
    for (dual, _), (functional, _) in zip(course("auto"), course("functional"), strict=True):
        assert (dual.images - functional.images).norm() <= 1e-4 * functional.images.norm()
        count += 1
    assert count == 50
