"""What an operator asks of a machine: its arithmetic and the bytes it must move at least."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Of one call, or of several added up.

    Attributes:
        flops: floating-point operations; a multiplication and an addition are two.
        bytes: read and written, every operand once.
        products: those of ``flops`` that tensor cores do.
    """

    flops: int
    bytes: int
    products: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes, self.products + other.products)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.flops * times, self.bytes * times, self.products * times)

    def seconds(self, *, products_per_s: float, bytes_per_s: float) -> float:
        """The roofline's floor: the larger of the products' time and the traffic's.

        Args:
            products_per_s: peak of the tensor cores in the precision at hand.
            bytes_per_s: bandwidth of a copy.
        """
        return max(self.products / products_per_s, self.bytes / bytes_per_s)
