"""What convolutions ask of a machine; the rules of counting are those of `fastdistill_kernels.convolution`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastdistill_kernels.cost import Cost
from fastdistill_kernels.reference.convolution import output_size

_FLOAT32 = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of one convolution: the letters of this module, and the stride and padding."""

    students: int
    groups: int
    images: int
    channels: int
    features: int
    height: int
    width: int
    kernel: int
    stride: int = 1
    padding: int = 0

    @property
    def x(self) -> int:
        """Elements of x."""
        return self.students * self.groups * self.images * self.channels * self.height * self.width

    @property
    def y(self) -> int:
        """Elements of y."""
        high, wide = (output_size(side, self.kernel, self.stride, self.padding) for side in (self.height, self.width))
        return self.students * self.groups * self.images * self.features * high * wide

    @property
    def weight(self) -> int:
        """Elements of w."""
        return self.students * self.features * self.channels * self.kernel**2

    @property
    def product(self) -> int:
        """Operations of one product."""
        return 2 * self.y * self.channels * self.kernel**2


def cost_convolution(sizes: Sizes, itemsize: int, *, bias: bool = False) -> Cost:
    """Of `convolution`."""
    moved = sizes.x + sizes.weight + sizes.y + bias * sizes.students * sizes.features
    return Cost(flops=sizes.product + bias * sizes.y, bytes=moved * itemsize, products=sizes.product)


def cost_dual_convolution(
    sizes: Sizes, itemsize: int, *, dx: bool = True, bias: bool = False, dbias: bool = False, shared: bool = False
) -> Cost:
    """Of `dual_convolution`; ``shared`` weight tangents have no group axis."""
    pairs = 1 if shared else sizes.groups
    moved = (1 + dx) * sizes.x + (1 + pairs) * sizes.weight + 2 * sizes.y
    moved += (bias + pairs * dbias) * sizes.students * sizes.features
    products = (2 + dx) * sizes.product
    return Cost(flops=products + (bias + dbias) * sizes.y, bytes=moved * itemsize, products=products)


def cost_convolution_input_gradient(sizes: Sizes, itemsize: int) -> Cost:
    """Of `convolution_input_gradient`."""
    return cost_convolution(sizes, itemsize)


def cost_dual_convolution_input_gradient(
    sizes: Sizes, itemsize: int, *, value: bool = True, shared: bool = False
) -> Cost:
    """Of `dual_convolution_input_gradient`; ``shared`` weight tangents have no group axis."""
    moved = (1 + value) * sizes.x + (1 + (1 if shared else sizes.groups)) * sizes.weight + 2 * sizes.y
    products = (2 + value) * sizes.product
    return Cost(flops=products, bytes=moved * itemsize, products=products)


def cost_convolution_weight_gradient(sizes: Sizes, itemsize: int, *, bias: bool = False) -> Cost:
    """Of `convolution_weight_gradient`."""
    made = sizes.groups * (sizes.weight + bias * sizes.students * sizes.features) * max(itemsize, _FLOAT32)
    return Cost(
        flops=sizes.product + bias * sizes.y, bytes=(sizes.x + sizes.y) * itemsize + made, products=sizes.product
    )


def cost_dual_convolution_weight_gradient(
    sizes: Sizes, itemsize: int, *, dx: bool = True, bias: bool = False, value: bool = True
) -> Cost:
    """Of `dual_convolution_weight_gradient`."""
    made = sizes.groups * (sizes.weight + bias * sizes.students * sizes.features) * max(itemsize, _FLOAT32)
    products = (1 + dx + value) * sizes.product
    return Cost(
        flops=products + (1 + value) * bias * sizes.y,
        bytes=((1 + dx) * sizes.x + 2 * sizes.y) * itemsize + (1 + value) * made,
        products=products,
    )


def sizes_of(x: Sequence[int], weight: Sequence[int], stride: int, padding: int) -> Sizes:
    """From the shapes of x and of a weight ``[..., O, I, k, k]``."""
    return Sizes(
        students=x[0],
        groups=x[1],
        images=x[2],
        channels=x[3],
        features=weight[-4],
        height=x[4],
        width=x[5],
        kernel=weight[-1],
        stride=stride,
        padding=padding,
    )
