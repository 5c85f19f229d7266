"""Settings of generators: what makes the synthetic images where they are not learned pixel by pixel.

Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastdistill.checks import at_least, at_most, one_of, positive


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """A generative teaching network: noise and a class go in, an image comes out.

    Attributes:
        architecture: none (images are learned pixel by pixel), upsampling (Such et al. 2020: weight norm, two
            upsamplings, twice tanh) or full (the full resolution from the second layer on, tanh).
        width: channels that the sizes of the layers follow: 128 of upsampling's first maps; k of full.
        noise: learned with the generator, fixed, or fresh in every step.
        distribution: of the noise: normal or uniform (in [0, 1)).
        noise_size: numbers of noise an image.
        blocks: batches that are generated one by one (a curriculum has one for each inner step); ipc is a multiple.
        learning_rate: of Adam on the generator and on learned noise.
        beta1: of that Adam.
        beta2: of that Adam.
        epsilon: of that Adam, added to the root of its mean squares.
        final_share: share of the learning rate that half a cosine over the run's steps ends at; 1 keeps the rate.
        clip_norm: longest gradient of them all together; 0 for any.
    """

    architecture: str = "none"
    width: int = 128
    noise: str = "learned"
    distribution: str = "normal"
    noise_size: int = 128
    blocks: int = 1
    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    final_share: float = 1.0
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        one_of("architecture", self.architecture, ("none", "upsampling", "full"))
        one_of("noise", self.noise, ("learned", "fixed", "fresh"))
        one_of("distribution", self.distribution, ("normal", "uniform"))
        at_least(1, width=self.width, noise_size=self.noise_size, blocks=self.blocks)
        at_least(0, clip_norm=self.clip_norm)
        positive(learning_rate=self.learning_rate, epsilon=self.epsilon, final_share=self.final_share)
        at_most(1, final_share=self.final_share)
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= value < 1:
                raise ValueError(f"expected {name} in [0, 1), got {value}: averages diverge from 1 on")
        if self.width % 4:
            raise ValueError(f"expected a width that is a multiple of 4, got {self.width}: later layers have a quarter")

    @property
    def learned(self) -> bool:
        """Whether images come from a generator."""
        return self.architecture != "none"
