"""Coresets: real images of one class, or simple summaries of them, chosen without any distillation.

Every function looks at one class of ``n`` images and gives ``M`` positions among them, or ``M`` new images. Features
``[n, F]`` are those of `joined_features`; only distances between them matter.
"""

from __future__ import annotations

import math
import warnings

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from fastdistill.draws import Purpose, uniform


def joined_features(features: Tensor) -> Tensor:
    """The features of several networks as one vector an image, in whose distances all networks count alike.

    The units of two networks do not correspond, so their averages mean nothing. What can be averaged is the squared
    distance between two images, and concatenated features divided by ``√S`` have that average. Each network is first
    scaled to a root mean square distance of 1 between these images and their mean, lest the one with the largest
    features decide alone. A scale for every image instead would change which image is nearest a mean, so that one
    network would no longer give the published selections; a scale for the network changes nothing there.

    Args:
        features: ``[S, n, F]``, of the same images by ``S`` networks.

    Returns:
        ``[n, S·F]``.
    """
    spread = (features - features.mean(1, keepdim=True)).square().sum(2).mean(1).sqrt()
    # a network that maps all these images to one point says nothing of them
    scale = torch.where(spread > 0, spread, torch.ones_like(spread)) * math.sqrt(features.shape[0])
    scaled = features / scale[:, None, None]
    return scaled.transpose(0, 1).flatten(1)


def herding(features: Tensor, count: int) -> Tensor:
    """Herding (Welling 2009): every pick brings the mean of the picked as near the mean of all as one pick can.

    As in the published code of gradient matching and IDC, no image is picked twice.

    Args:
        features: ``[n, F]``.
        count: ``M``.

    Returns:
        Positions in the order of picking, int64 ``[M]``.

    Raises:
        ValueError: for more images than there are, as all functions here do.
    """
    _enough(len(features), count)
    centred = features - features.mean(0)
    total, left = torch.zeros_like(centred[0]), torch.ones(len(features), dtype=torch.bool, device=features.device)
    picked = []
    for _ in range(count):
        distance = (total + centred).square().sum(1)
        pick = distance.where(left, torch.inf).argmin()
        total, left[pick] = total + centred[pick], False
        picked.append(pick)
    return torch.stack(picked)


def k_center(features: Tensor, count: int) -> Tensor:
    """Greedy k-center (Sener and Savarese 2018, algorithm 1): every pick is the image farthest from those picked.

    The first is the image nearest the mean, as in the published code of gradient matching: there is no labelled pool
    to start from. The largest distance to a picked image is at most twice the smallest possible one (Gonzalez 1985).

    Args:
        features: ``[n, F]``.
        count: ``M``.

    Returns:
        Positions in the order of picking, int64 ``[M]``.
    """
    _enough(len(features), count)
    picked = [(features - features.mean(0)).square().sum(1).argmin()]
    nearest = torch.full_like(features[:, 0], torch.inf)
    for _ in range(count - 1):
        nearest = nearest.minimum((features - features[picked[-1]]).square().sum(1))
        nearest[picked[-1]] = -1.0  # below the 0 of its duplicates, lest it be picked twice
        picked.append(nearest.argmax())
    return torch.stack(picked)


def forgetting_scores(correct: Tensor) -> Tensor:
    """How often training forgets each image (Toneva et al. 2019).

    An image is forgotten when it is classified rightly after one epoch and wrongly after the next. One that a network
    never learns counts as forgotten more often than any other: ``E`` times, where an image that is learned is forgotten
    ``E / 2`` times at most. Toneva et al. look at an image when its batch comes up; here all images are classified
    after every epoch.

    Args:
        correct: whether each network classifies each image rightly after each epoch, bool ``[E, S, n]``.

    Returns:
        Mean over the networks, float64 ``[n]``.
    """
    events = (correct[:-1] & ~correct[1:]).sum(0)
    return torch.where(correct.any(0), events, len(correct)).double().mean(0)


def most_forgotten(scores: Tensor, count: int, *, seed: int, label: int) -> Tensor:
    """The images with the largest scores; among equal ones chance decides.

    After few epochs most images of a class are equal, and the order of a data set is not to choose among them.

    Args:
        scores: of one class, ``[n]``.
        count: ``M``.
        seed: of the draws.
        label: the class.

    Returns:
        Positions, the most forgotten first, int64 ``[M]``.
    """
    _enough(len(scores), count)
    shuffled = _shuffle(len(scores), Purpose.TIES, seed, label, scores.device)
    return shuffled[scores[shuffled].argsort(descending=True, stable=True)[:count]]


def nearest_real(images: Tensor, real: Tensor) -> Tensor:
    """The real image nearest to each given one by the Euclidean distance of pixels, no real one twice.

    The closest pair is matched first, then the closest of what is left.

    Args:
        images: ``[M, ...]``.
        real: ``[n, ...]``.

    Returns:
        Positions among the real images, int64 ``[M]``.
    """
    _enough(len(real), len(images))
    given, there = images.flatten(1), real.flatten(1)
    # an image at a time: differences of all pairs would be M copies of the class
    distance = torch.stack([(there - one).square().sum(1) for one in given])
    found = torch.zeros(len(images), dtype=torch.int64, device=real.device)
    for _ in range(len(images)):
        row, column = divmod(int(distance.argmin()), distance.shape[1])
        found[row] = column
        distance[row], distance[:, column] = torch.inf, torch.inf
    return found


def class_average(images: Tensor, count: int, *, seed: int, label: int) -> Tensor:
    """Means of ``M`` disjoint random parts of a class, as equal as they can be; for ``M = 1`` the mean of the class.

    Args:
        images: ``[n, ...]``.
        count: ``M``.
        seed: of the draws.
        label: the class.

    Returns:
        ``[M, ...]``.
    """
    _enough(len(images), count)
    parts = _shuffle(len(images), Purpose.CLASS_PARTS, seed, label, images.device).tensor_split(count)
    return torch.stack([images[part].mean(0) for part in parts])


def k_means(images: Tensor, count: int, *, seed: int, label: int, starts: int = 3) -> Tensor:
    """Centroids of k-means on the pixels of a class, from k-means++ starts, of which the best is kept.

    Args:
        images: ``[n, ...]``.
        count: ``M``.
        seed: of the draws.
        label: the class.
        starts: how many.

    Returns:
        ``[M, ...]``, of the images' dtype and device.
    """
    _enough(len(images), count)
    draw = uniform(seed, Purpose.CLUSTERS, 0, torch.tensor([label]), 1)
    clusters = KMeans(count, init="k-means++", n_init=starts, random_state=int(draw * 2**24))  # 24 bits are drawn
    with warnings.catch_warnings():
        # of fewer distinct images than clusters, some centroids are equal: what was asked for
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters.fit(images.flatten(1).cpu().numpy())
    return torch.from_numpy(clusters.cluster_centers_).to(images).view(count, *images.shape[1:])


def best_sets(scores: Tensor, share: float = 0.2) -> Tensor:
    """The best share of some sets, at least one, as in 'optimised random' (Wang et al. 2018, section 4).

    Args:
        scores: the larger the better, ``[K]``.
        share: of the sets that are kept.

    Returns:
        Their positions, the best first, int64.
    """
    return scores.argsort(descending=True, stable=True)[: max(1, round(share * len(scores)))]


def _shuffle(count: int, purpose: Purpose, seed: int, label: int, device: torch.device) -> Tensor:
    keys = uniform(seed, purpose, 0, torch.tensor([label], device=device), count)[0]
    return keys.argsort(stable=True)


def _enough(there: int, count: int) -> None:
    if not 1 <= count <= there:
        raise ValueError(f"expected 1 to {there} images of a class of {there}, got {count}: lower ipc")
