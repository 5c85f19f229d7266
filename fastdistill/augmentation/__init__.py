"""Augmentations: batched, keyed, for real and synthetic images alike; ordinary differentiable torch code."""
