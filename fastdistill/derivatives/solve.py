"""Linear solvers of implicit differentiation, batched over students.

Implicit differentiation needs ``p ≈ H⁻¹ b`` per student, ``H = ∇²θθ L`` at the student's weights and ``b = ∇θ L_val``.
Every solver is a pure function of an operator ``apply``, ``[S, P] → [S, P]`` (row s of the result depends on row s of
the argument alone, symmetric per student), and right-hand sides ``b [S, P]``, float32 or float64. Loops have a fixed
length and masks freeze students, so nothing waits for the device: `steps` products are always computed, and what one
student does never changes another's bits.

Hessians of real students are indefinite: after 3000 training steps the smallest eigenvalue is still negative. There
the Neumann series does not converge for any ``α``; cut off after a few terms it is a preconditioner, not an inverse.
Conjugate gradients stop at a direction of negative curvature; damping or the Gauss-Newton product avoids one.

`curvature` makes operators of the primitive. Shapes: ``S`` students, ``P`` parameters with padding (zero in every
vector).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What a solver found for each student.

    Attributes:
        solution: ``[S, P]``.
        residual: ``|b − A p| / |b|`` as the solver's recursion has it ``[S]``, zero for ``b = 0``.
        steps: terms or steps that went into the solution ``[S]``, int64.
        negative_curvature: whether a direction ``v`` with ``⟨v, A v⟩`` negative was met ``[S]``; conjugate gradients
            stopped there (at zero too), the Neumann series only reports it.
        finite: whether all numbers stayed finite ``[S]``; where False the solution is the last one before they did not.
    """

    solution: Tensor
    residual: Tensor
    steps: Tensor
    negative_curvature: Tensor
    finite: Tensor


@dataclass(frozen=True, kw_only=True)
class Eigenvalue:
    """Estimate of each student's eigenvalue of largest magnitude.

    Attributes:
        value: Rayleigh quotient ``⟨v, H v⟩`` of the unit vector ``v`` ``[S]``, with its sign.
        magnitude: ``|H v|`` ``[S]``, at least ``|value|`` and at most the true largest magnitude.
        residual: ``|H v − value·v| / |H v|`` ``[S]``; some eigenvalue lies within ``residual · magnitude`` of `value`.
        vector: the next unit vector ``[S, P]``, a start for a later estimate.
    """

    value: Tensor
    magnitude: Tensor
    residual: Tensor
    vector: Tensor


def neumann(
    apply: Operator,
    b: Tensor,
    steps: int,
    alpha: float | Tensor,
    *,
    scaled: bool = True,
    exact_residual: bool = True,
) -> Solution:
    """Truncated Neumann series ``p = α Σ_{j=0}^{K} (I − αH)^j b`` with ``K = steps`` (Lorraine et al. 2020).

    It tends to ``H⁻¹ b`` where every eigenvalue lies in ``(0, 2/α)``. Beyond ``2/λ_max`` it diverges, see
    `largest_eigenvalue`; along a negative eigenvalue it grows by ``1 + α|λ|`` per term, whatever ``α`` is.

    Args:
        apply: ``H``, ``[S, P] → [S, P]``.
        b: right-hand sides ``[S, P]``.
        steps: ``K``, at least 0; as many products, and one more for `exact_residual`.
        alpha: ``α``, a positive number or a tensor ``[]`` or ``[S]`` (whose values are not looked at).
        scaled: False leaves out the factor ``α`` in front, as AuxiLearn (Navon et al. 2021) does: then ``p`` tends to
            ``(αH)⁻¹ b``, too large by ``1/α``, and the residual is that of ``αH p = b``.
        exact_residual: the residual is ``(I − αH)^{K+1} b``, whose last product is computed for it alone; False saves
            that product and reports ``|(I − αH)^K b| / |b|``, the residual of the sum one term shorter.

    Raises:
        ValueError: for shapes, dtypes or numbers outside these.
    """
    _check(b, steps)
    scale = _factor("alpha", alpha, b, zero=False)
    term, total = b, b
    start = square = _dot(b, b)
    finite = square.isfinite()
    taken, negative = torch.zeros_like(finite, dtype=torch.int64), torch.zeros_like(finite)
    for step in range(steps + exact_residual):
        product = apply(term)
        curvature = _dot(term, product)
        term = term - scale * product
        length = _dot(term, term)
        finite = finite & length.isfinite()
        negative = negative | (finite & (curvature < 0))
        square = torch.where(finite, length, square)
        if step < steps:
            total = torch.where(finite[:, None], total + term, total)
            taken = taken + finite
    return _solution(scale * total if scaled else total.clone(), square, start, taken, negative, finite)


def conjugate_gradients(
    apply: Operator,
    b: Tensor,
    steps: int,
    *,
    damping: float | Tensor = 0.0,
    tolerance: float = 0.0,
    start: Tensor | None = None,
) -> Solution:
    """Conjugate gradients on ``(H + δI) p = b``, each student with its own step lengths and its own end.

    A student is frozen, bit for bit, when its residual is small enough, when a direction ``d`` with
    ``⟨d, (H + δI) d⟩ ≤ 0`` is met (the solution is the iterate before: the start when it is the first direction), or
    when its numbers stop being finite (the iterate before).

    Args:
        apply: ``H``, ``[S, P] → [S, P]``.
        b: right-hand sides ``[S, P]``.
        steps: most steps, at least 0; as many products, and one more with `start`.
        damping: ``δ``, a number of at least 0 or a tensor ``[]`` or ``[S]`` (whose values are not looked at).
        tolerance: relative residual at which a student has converged; below the dtype's rounding it counts as that,
            because the recursion's residual means nothing there. Norms are squared: in float32 a ``b`` shorter than
            about 1e-12 should be scaled up first.
        start: warm start ``[S, P]``, by default zero; for ``b = 0`` the solution is zero whatever the start.

    Raises:
        ValueError: for shapes, dtypes or numbers outside these.
    """
    _check(b, steps)
    delta = _factor("damping", damping, b)
    if not 0 <= tolerance < inf:
        raise ValueError(
            f"expected a finite tolerance of at least 0, got {tolerance}: 0 goes on to the dtype's rounding"
        )
    if start is not None and start.shape != b.shape:
        raise ValueError(
            f"expected a start {tuple(b.shape)} like b, got {tuple(start.shape)}: leave it out to start at 0"
        )

    scale = _dot(b, b)
    if start is None:
        iterate, residual = torch.zeros_like(b), b
    else:
        iterate = torch.where((scale > 0)[:, None], start, 0.0)
        residual = b - (apply(iterate) + delta * iterate)
    direction, square = residual, _dot(residual, residual)
    target = max(tolerance, torch.finfo(b.dtype).eps) ** 2 * scale
    finite = square.isfinite() & scale.isfinite()
    active = finite & (square > target)
    taken, negative = torch.zeros_like(finite, dtype=torch.int64), torch.zeros_like(finite)
    for _ in range(steps):
        product = apply(direction) + delta * direction
        curvature = _dot(direction, product)
        length = (square / curvature)[:, None]
        residual = residual - length * product
        smaller = _dot(residual, residual)
        known = curvature.isfinite()
        curved = active & known & (curvature <= 0)
        sound = active & known & ~curved & smaller.isfinite()
        negative = negative | curved
        finite = finite & (~active | curved | sound)
        # of a frozen student only what is reported needs a mask: its direction is never used again
        iterate = torch.where(sound[:, None], iterate + length * direction, iterate)
        direction = residual + (smaller / square)[:, None] * direction
        square = torch.where(sound, smaller, square)
        taken = taken + sound
        active = sound & (square > target)
    return _solution(iterate, square, scale, taken, negative, finite)


def relative_residual(apply: Operator, solution: Tensor, b: Tensor, *, damping: float | Tensor = 0.0) -> Tensor:
    """True ``|b − (H + δI) p| / |b|`` per student ``[S]`` by one more product; zero where both norms are.

    Args:
        apply: ``H``, ``[S, P] → [S, P]``.
        solution: ``p`` ``[S, P]``.
        b: right-hand sides ``[S, P]``.
        damping: ``δ``, as in `conjugate_gradients`.

    Raises:
        ValueError: for a damping outside these.
    """
    rest = b - (apply(solution) + _factor("damping", damping, b) * solution)
    return _ratio(_dot(rest, rest), _dot(b, b))


def largest_eigenvalue(apply: Operator, start: Tensor, steps: int) -> Eigenvalue:
    """Power iteration: each student's eigenvalue of largest *magnitude*, which may be a negative one.

    The estimates come from below, and are slow where the two largest magnitudes are close; the residual says how far
    to trust them. ``α < 2 / magnitude`` is enough for the Neumann series' positive eigenvalues, see `alpha_warning`.

    Args:
        apply: ``H``, symmetric, ``[S, P] → [S, P]``.
        start: random vectors ``[S, P]`` of any length, no row of them zero.
        steps: products, at least 1.

    Raises:
        ValueError: for shapes, dtypes or numbers outside these.
    """
    _check(start, steps, least=1)
    vector = product = start
    for _ in range(steps):
        vector = _unit(product)
        product = apply(vector)
    value, magnitude = _dot(vector, product), _dot(product, product).sqrt()
    rest = product - value[:, None] * vector
    residual = _ratio(_dot(rest, rest), _dot(product, product))
    return Eigenvalue(value=value, magnitude=magnitude, residual=residual, vector=_unit(product))


def alpha_warning(alpha: float, eigenvalues: Sequence[float]) -> str | None:
    """What to choose when ``α`` is too large for a Neumann series, as one sentence; None when nothing is wrong.

    Args:
        alpha: ``α``.
        eigenvalues: each student's eigenvalue of largest magnitude, with its sign (`Eigenvalue.value` on the host).
    """
    known = [value for value in eigenvalues if isfinite(value)]
    largest, smallest = max(known, default=0.0), min(known, default=0.0)
    if largest > 0 and alpha * largest >= 2:
        return (
            f"expected a Neumann alpha below 2 / largest eigenvalue = {2 / largest:.3g}, got {alpha:.3g}, with which "
            f"the series diverges: choose {1 / largest:.3g} or less, since the estimate {largest:.3g} is from below"
        )
    if smallest < 0:
        return (
            f"expected a positive eigenvalue to be the largest, got {smallest:.3g}, along which the Neumann series "
            f"grows by {1 + alpha * -smallest:.3g} per term: use the Gauss-Newton product or damped conjugate gradients"
        )
    return None


def _dot(left: Tensor, right: Tensor) -> Tensor:
    # not a matrix product: that may run in TF32, and its bits may depend on the number of students
    return (left * right).sum(-1)


def _unit(rows: Tensor) -> Tensor:
    return rows / _dot(rows, rows).sqrt().clamp_min(torch.finfo(rows.dtype).tiny)[:, None]


def _ratio(square: Tensor, scale: Tensor) -> Tensor:
    return torch.where(square == 0, 0.0, square.sqrt() / scale.sqrt())


def _solution(solution: Tensor, square: Tensor, scale: Tensor, steps: Tensor, curved: Tensor, ok: Tensor) -> Solution:
    return Solution(
        solution=solution,
        residual=_ratio(square, scale),
        steps=steps,
        negative_curvature=curved,
        finite=ok & solution.isfinite().all(-1),
    )


def _factor(name: str, value: float | Tensor, b: Tensor, *, zero: bool = True) -> float | Tensor:
    """A number checked, or a tensor made to multiply ``[S, P]``."""
    if isinstance(value, Tensor):
        if value.shape not in ((), b.shape[:1]):
            raise ValueError(f"expected {name} [] or [{b.shape[0]}], got {tuple(value.shape)}: one number per student")
        return value[:, None] if value.ndim else value
    if not 0 <= value < inf or (value == 0 and not zero):
        bound = "of at least 0" if zero else "above 0"
        raise ValueError(f"expected a finite {name} {bound}, got {value}: choose one in that range")
    return value


def _check(rows: Tensor, steps: int, *, least: int = 0) -> None:
    if rows.ndim != 2 or rows.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"expected vectors [S, P] in float32 or float64, got {tuple(rows.shape)} in {rows.dtype}: "
            "give each student one row"
        )
    if steps < least:
        raise ValueError(f"expected at least {least} steps, got {steps}: raise them")
