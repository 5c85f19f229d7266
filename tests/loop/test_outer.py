import torch

from fastdistill.config import MatchingConfig
from fastdistill.loop.outer import Best, State, outer_steps
from fastdistill.methods.image_gradient import ImageGradient
from fastdistill.students.ensemble import Students


class Quadratic:
    """A method whose loss is half the squared distance to a target, for students that count their steps."""

    def __init__(self, target, loop):
        self.target, self.loop, self.calls = target, loop, []

    def fresh(self, step):
        self.calls.append(("fresh", step))
        return Students(indices=torch.arange(2), weights=torch.zeros(2, 1), buffers={})

    def prepare(self, students, step):
        return students

    def gradient(self, images, students, step):
        self.calls.append(("gradient", step, float(students.weights[0, 0])))
        loss = ((images - self.target) ** 2).sum() / 2
        return ImageGradient(
            gradient=images - self.target, loss=torch.stack([loss, 3 * loss]), finite=torch.ones(2, dtype=torch.bool)
        )

    def advance(self, images, students, step):
        if (step + 1) % self.loop == 0:
            return None
        return Students(indices=students.indices, weights=students.weights + 1, buffers={})


def test_images_move_by_sgd_with_momentum():
    start = torch.randn(1, 2, 1, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.ones_like(start)
    method = Quadratic(target, 1)
    state = State(step=0, images=start, velocity=torch.zeros_like(start))
    config = MatchingConfig(image_learning_rate=0.1, image_momentum=0.5)
    expected = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([expected], lr=0.1, momentum=0.5)
    for found, step in outer_steps(method, state, config, 6):
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
        images = torch.full((3, 1, 1, 1, 2, 2), float(step))
        return State(step=step, images=images, velocity=images)

    best = Best.choose(None, at(1), (0.5, 0.5, 0.5))
    best = Best.choose(best, at(2), (0.6, 0.4, 0.5))
    assert best.accuracy == (0.6, 0.5, 0.5)
    assert best.step == (2, 1, 1)
    assert best.images[:, 0, 0, 0, 0, 0].tolist() == [2.0, 1.0, 1.0]


def test_students_live_for_the_outer_loop():
    start = torch.zeros(1, 1, 1, 1, 1, 1)
    method = Quadratic(start, 3)
    state = State(step=0, images=start, velocity=start)
    states = [found for found, _ in outer_steps(method, state, MatchingConfig(), 5)]
    assert [call for call in method.calls if call[0] == "fresh"] == [("fresh", 0), ("fresh", 3)]
    assert [call[2] for call in method.calls if call[0] == "gradient"] == [0, 1, 2, 0, 1]
    assert [found.students is None for found in states] == [False, False, True, False, False]
