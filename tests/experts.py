"""Experts in memory, in place of a folder of them."""

import torch


class HeldExperts:
    """Weights ``[E, K+1, P]``, handed out as `methods.trajectory.Experts` wants it."""

    def __init__(self, weights):
        self.weights, self.read = weights, 0

    identity = "0123456789abcdef"

    @property
    def count(self):
        return self.weights.shape[0]

    @property
    def epochs(self):
        return self.weights.shape[1] - 1

    def at(self, experts, epochs, *, dtype, device):
        assert experts.device.type == epochs.device.type == "cpu"  # nothing is asked of the device
        self.read += len(experts)
        return self.weights[experts, epochs].to(device, dtype)


def wandering_experts(layout, *, experts, epochs, seed, dtype=torch.float64):
    """Random weights that move a little every epoch; padding zero."""
    generator = torch.Generator().manual_seed(seed)

    def rows(scale):
        tensors = {
            name: scale * torch.randn(experts, *shape, generator=generator, dtype=dtype)
            for name, shape in layout.shapes.items()
        }
        return layout.flatten(tensors)

    return HeldExperts(torch.stack([rows(0.2)] + [rows(0.05) for _ in range(epochs)], dim=1).cumsum(1))
