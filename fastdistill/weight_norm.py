"""Weight norm as generative teaching networks have it, in generators and students alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear


class WeightNormed(nn.Module):
    """A linear layer or a convolution whose output, bias included, is multiplied by ``gain / ‖weight‖`` a unit.

    That is how the code of Such et al. ("Generative teaching networks", ICML 2020) has it; Salimans and Kingma (2016)
    leave the bias alone.

    Args:
        *shape: of the weight, ``[out, in]`` or ``[out, in, k, k]``.
        padding: zeros around the maps of a convolution.
        bias: whether there is one.
    """

    def __init__(self, *shape: int, padding: int = 0, bias: bool = False) -> None:
        super().__init__()
        self._flat, self._padding = len(shape) == 2, padding
        self.weight = nn.Parameter(torch.empty(shape))
        self.gain = nn.Parameter(torch.empty(shape[0]))
        self.bias = nn.Parameter(torch.empty(shape[0])) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts as Such et al. do: Kaiming-normal weights, gains equal to their norms, biases 0."""
        nn.init.kaiming_normal_(self.weight)
        with torch.no_grad():
            self.gain.copy_(self._norms())
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps ``[n, in]`` to ``[n, out]``, or maps ``[n, in, h, w]`` to ``[n, out, h', w']``."""
        scale = self.gain / self._norms()
        if self._flat:
            return linear(inputs, self.weight, self.bias) * scale
        return conv2d(inputs, self.weight, self.bias, padding=self._padding) * scale.view(-1, 1, 1)

    def _norms(self) -> Tensor:
        """Length of every unit's weights, ``[out]``."""
        norms: Tensor = torch.linalg.vector_norm(self.weight.flatten(1), dim=1)
        return norms
