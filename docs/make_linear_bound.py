"""How few synthetic pairs can bring linear regression to its optimum in one gradient step (Wang et al. 2018, §3.3).

One step ``θ_1 = θ_0 − η ∇L(θ_0)`` on ``M`` pairs moves the weights within the span of ``M`` inputs. With ``D`` features
and ``M < D`` pairs something of ``θ_* − θ_0`` is left for almost every ``θ_0``; with ``M = D`` nothing is. The figure
shows both on scikit-learn's diabetes set: pairs learned by gradient descent through the step, on the textbook of
`bench.naive.unrolled`, beside the least that any pairs can leave.

Run ``python -m docs.make_linear_bound``; it writes ``docs/figures/linear-bound.png``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from bench.naive.unrolled import Training, linear_distillation, trajectory

FIGURE = Path(__file__).parent / "figures" / "linear-bound.png"
# blue and vermillion of Okabe and Ito, whose palette readers with any colour vision can tell apart
_LEARNED, _BOUND = "#0072B2", "#D55E00"
_RATE = 1.0  # of the step; another one only rescales the pairs


@dataclass(frozen=True, kw_only=True, eq=False)
class Regression:
    """Real data, float64; weights are columns ``[D, K]``, one for each initialisation.

    Attributes:
        inputs: ``[n, D]``.
        targets: ``[n, 1]``.
    """

    inputs: Tensor
    targets: Tensor

    @property
    def optimum(self) -> Tensor:
        """``θ_*`` ``[D, 1]``."""
        found: Tensor = torch.linalg.lstsq(self.inputs, self.targets, driver="gelsd").solution
        return found

    @property
    def root(self) -> Tensor:
        """``U`` ``[D, D]`` with ``½ |U (θ − θ_*)|²`` the loss of weights less that of the optimum."""
        upper: Tensor = torch.linalg.qr(self.inputs, mode="r").R
        return upper / math.sqrt(len(self.inputs))

    def excess(self, weights: Tensor) -> Tensor:
        """Loss of weights ``[D, K]``, the mean of half the squared errors, less that of the optimum, ``[K]``."""
        return 0.5 * (self.root @ (weights - self.optimum)).square().sum(0)

    def least_excess(self, pairs: int) -> float:
        """What no ``M`` pairs can go below, averaged over standard normal initial weights.

        The weights move within a space of ``M`` dimensions. So of ``w = U (θ_* − θ_0)`` at least the part outside some
        ``M`` dimensions is left, on average the ``D − M`` smallest eigenvalues of ``E w wᵀ = U (1 + θ_* θ_*ᵀ) Uᵀ``.
        """
        dimension, optimum = self.inputs.shape[1], self.optimum
        second_moment = torch.eye(dimension, dtype=optimum.dtype) + optimum @ optimum.T
        eigenvalues = torch.linalg.eigvalsh(self.root @ second_moment @ self.root.T)
        return 0.5 * float(eigenvalues[: max(dimension - pairs, 0)].sum())


def diabetes() -> Regression:
    """The ten features of 442 patients and their disease a year later, each of mean 0 and variance 1."""
    columns = [torch.from_numpy(array).view(442, -1) for array in load_diabetes(return_X_y=True)]
    inputs, targets = ((column - column.mean(0)) / column.std(0, correction=0) for column in columns)
    return Regression(inputs=inputs, targets=targets)


def one_step(starts: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """Weights ``[D, K]`` after one step from ``K`` initial ones on pairs ``[M, D]`` and ``[M, 1]``."""
    dimension, count = starts.shape
    net = nn.Linear(dimension, count, bias=False, dtype=starts.dtype)  # an output for each of them

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        return (outputs - wanted).square().sum() / (2 * len(wanted))

    training = Training(net=net, batches=[slice(None)], loss=loss)
    (after,) = trajectory(training, {"weight": starts.T}, inputs, targets, starts.new_tensor(_RATE))
    return after["weight"].T


def learned_pairs(data: Regression, pairs: int, tries: int = 3) -> tuple[Tensor, Tensor]:
    """The best of some searches for ``M`` pairs, by L-BFGS on the gradient through the step.

    The mean over ``±√D e_i`` is that over standard normal weights, since the excess is quadratic in them.
    """
    dimension = data.inputs.shape[1]
    axes = math.sqrt(dimension) * torch.eye(dimension, dtype=data.inputs.dtype)
    starts, found = torch.cat([axes, -axes], dim=1), []
    for seed in range(tries):
        generator = torch.Generator().manual_seed(seed)
        learned = [
            torch.randn(pairs, size, generator=generator, dtype=starts.dtype).requires_grad_()
            for size in (dimension, 1)
        ]
        search = torch.optim.LBFGS(
            learned,
            max_iter=2000,
            tolerance_grad=1e-16,
            tolerance_change=1e-32,
            history_size=50,
            line_search_fn="strong_wolfe",
        )

        def mean_excess(learned: list[Tensor] = learned, search: torch.optim.Optimizer = search) -> float:
            search.zero_grad()
            value = data.excess(one_step(starts, learned[0], learned[1])).mean()
            torch.autograd.backward(value)
            return value.item()

        search.step(mean_excess)
        found.append((mean_excess(), learned[0].detach(), learned[1].detach()))
    _, inputs, targets = min(found, key=lambda entry: entry[0])
    return inputs, targets


def draw(data: Regression, counts: Sequence[int], starts: Tensor) -> Figure:
    """Mean excess loss after one step from fresh initial weights ``[D, K]`` against the number of pairs."""
    dimension = data.inputs.shape[1]
    pairs = [learned_pairs(data, count) for count in counts]
    left = [data.excess(one_step(starts, *pair)).mean().item() for pair in pairs]
    closed = linear_distillation(data.inputs, data.targets, _RATE)
    below = [count for count in counts if count < dimension]
    least = [data.least_excess(count) for count in below]
    at_closed = data.excess(one_step(starts, *closed)).mean().item()

    figure = Figure(figsize=(7, 4.2), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.set_yscale("log")
    axes.axvline(dimension, color="0.6", linestyle="--", linewidth=1)
    said = f"M = D = {dimension} features"
    axes.text(dimension - 0.15, 1e-14, said, rotation=90, ha="right", va="center", color="0.35")
    axes.text(dimension + 1.5, 1e-27, "rounding error", ha="center", va="center", color="0.35")
    axes.plot(below, least, "-", color=_BOUND, label="least that any M pairs can leave")
    axes.plot(counts, left, "o", color=_LEARNED, label="M pairs learned through the step")
    axes.scatter(
        [len(closed[0])], [at_closed], s=90, marker="D", facecolors="none", edgecolors="black", label="closed form"
    )
    axes.set(
        xlabel="synthetic pairs M",
        ylabel="loss above the optimum after one step",
        title=f"Linear regression, {dimension} features: mean over {starts.shape[1]} random initial weights",
        xticks=list(counts),
        ylim=(1e-33, 100),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure


def main() -> None:
    """Makes the figure."""
    data = diabetes()
    dimension = data.inputs.shape[1]
    generator = torch.Generator().manual_seed(1)
    starts = torch.randn(dimension, 1000, generator=generator, dtype=torch.float64)
    FIGURE.parent.mkdir(exist_ok=True)
    draw(data, range(1, dimension + 3), starts).savefig(FIGURE)


if __name__ == "__main__":
    main()
