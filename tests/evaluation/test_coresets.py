"""Coresets against brute force on small sets, in float64."""

import itertools

import pytest
import torch

from fastdistill.evaluation.coresets import (
    best_sets,
    class_average,
    forgetting_scores,
    herding,
    joined_features,
    k_center,
    k_means,
    most_forgotten,
    nearest_real,
)


def points(count, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) + 3


def squared(left, right):
    return sum((a - b) ** 2 for a, b in zip(left.tolist(), right.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_herding_is_greedy_for_the_mean(seed):
    features = points(12, 5, seed)
    mean, picked = features.mean(0), []
    for _ in range(7):
        left = [index for index in range(12) if index not in picked]
        picked.append(min(left, key=lambda index: squared(features[[*picked, index]].mean(0), mean)))
    assert herding(features, 7).tolist() == picked


def test_herding_picks_no_image_twice_and_can_pick_all():
    assert sorted(herding(points(6, 3), 6).tolist()) == list(range(6))
    assert sorted(herding(torch.ones(4, 2), 4).tolist()) == list(range(4))


@pytest.mark.parametrize("seed", range(5))
def test_k_center_picks_the_farthest_and_is_within_twice_the_optimum(seed):
    features = points(10, 3, seed)

    def radius(picked):
        return max(min(squared(one, features[index]) for index in picked) for one in features) ** 0.5

    picked = [min(range(10), key=lambda index: squared(features[index], features.mean(0)))]
    for _ in range(3):
        away = [min(squared(one, features[index]) for index in picked) for one in features]
        picked.append(max(range(10), key=away.__getitem__))
    assert k_center(features, 4).tolist() == picked
    best = min(radius(chosen) for chosen in itertools.combinations(range(10), 4))
    assert best <= radius(picked) <= 2 * best


def test_k_center_picks_no_duplicate_twice():
    assert sorted(k_center(torch.ones(4, 2), 4).tolist()) == list(range(4))
    assert sorted(k_center(points(5, 2), 5).tolist()) == list(range(5))


def test_the_first_of_herding_and_of_k_center_are_one():
    features = points(20, 4)
    assert torch.equal(herding(features, 1), k_center(features, 1))


@pytest.mark.parametrize("seed", range(3))
def test_k_means_reaches_the_least_objective(seed):
    images = points(8, 4, seed).view(8, 1, 2, 2)

    def objective(assignment):
        groups = [images[[index for index in range(8) if assignment[index] == one]] for one in set(assignment)]
        return sum(float((group - group.mean(0)).square().sum()) for group in groups)

    least = min(objective(assignment) for assignment in itertools.product(range(3), repeat=8))
    centres = k_means(images, 3, seed=seed, label=1, starts=20)
    assert centres.shape == (3, 1, 2, 2)
    assert centres.dtype == torch.float64
    nearest = torch.cdist(images.flatten(1), centres.flatten(1)).argmin(1)
    found = (images - centres[nearest]).square().sum()
    assert float(found) == pytest.approx(least, rel=1e-12)


def test_one_k_means_centroid_is_the_mean_and_draws_are_of_seed_and_class():
    images = points(40, 6)
    torch.testing.assert_close(k_means(images, 1, seed=0, label=0), images.mean(0, keepdim=True), rtol=0, atol=1e-12)
    first = k_means(images, 7, seed=0, label=0, starts=1)
    assert torch.equal(first, k_means(images, 7, seed=0, label=0, starts=1))
    for other in ({"seed": 1, "label": 0}, {"seed": 0, "label": 1}):
        assert not torch.equal(first, k_means(images, 7, **other, starts=1))


def test_k_means_of_equal_images_is_quiet():
    centres = k_means(torch.ones(4, 1, 2, 2), 3, seed=0, label=0)
    assert torch.equal(centres, torch.ones(3, 1, 2, 2))


def test_forgetting_is_counted_as_by_hand():
    courses = {  # of two networks, over five epochs
        ("11111", "11111"): 0.0,  # never forgotten
        ("01111", "00001"): 0.0,  # learned late
        ("10101", "10000"): 1.5,
        ("10101", "10101"): 2.0,
        ("00000", "11110"): 3.0,  # one never learns it
        ("00000", "00000"): 5.0,
        ("00010", "11011"): 1.0,
    }
    correct = torch.tensor([[[sign == "1" for sign in one] for one in pair] for pair in courses]).permute(2, 1, 0)
    scores = forgetting_scores(correct)
    assert scores.dtype == torch.float64
    assert scores.tolist() == list(courses.values())
    assert most_forgotten(scores, 3, seed=0, label=0).tolist() == [5, 4, 3]


def test_after_one_epoch_only_what_was_never_learned_is_forgotten():
    assert forgetting_scores(torch.tensor([[[True, False]]])).tolist() == [0, 1]


def test_chance_decides_among_equally_forgotten_images():
    scores = torch.zeros(50)
    scores[17] = 1
    found = [most_forgotten(scores, 4, seed=seed, label=label).tolist() for seed in (0, 1) for label in (0, 1)]
    assert all(one[0] == 17 and len(set(one)) == 4 for one in found)
    assert len({tuple(one) for one in found}) == 4
    assert found[0] == most_forgotten(scores, 4, seed=0, label=0).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_nearest_real_images_are_those_of_brute_force(seed):
    images, real = points(3, 12, seed).view(3, 3, 2, 2), points(9, 12, seed + 10).view(9, 3, 2, 2)
    pairs = {(row, column): squared(images[row].flatten(), real[column].flatten())
             for row in range(3) for column in range(9)}  # fmt: skip
    found = {}
    for row, column in sorted(pairs, key=pairs.__getitem__):
        if row not in found and column not in found.values():
            found[row] = column
    assert nearest_real(images, real).tolist() == [found[row] for row in range(3)]


def test_a_real_image_is_nobodys_neighbour_twice():
    real = torch.tensor([[0.0], [1.0], [5.0]])
    assert nearest_real(torch.tensor([[0.2], [0.1], [4.0]]), real).tolist() == [1, 0, 2]
    assert nearest_real(real.flip(0), real).tolist() == [2, 1, 0]


def test_averages_are_of_disjoint_parts_that_are_the_class():
    images = torch.eye(7, dtype=torch.float64).view(7, 1, 7, 1)
    torch.testing.assert_close(class_average(images, 1, seed=0, label=0)[0], images.mean(0), rtol=0, atol=1e-15)
    means = class_average(images, 3, seed=0, label=0).flatten(1)
    members = (means > 0).double()
    assert members.sum(0).tolist() == [1] * 7
    assert members.sum(1).tolist() == [3, 2, 2]
    torch.testing.assert_close(means, members / members.sum(1, keepdim=True), rtol=0, atol=1e-15)
    assert not torch.equal(means, class_average(images, 3, seed=0, label=1).flatten(1))
    assert not torch.equal(means, class_average(images, 3, seed=1, label=0).flatten(1))


def test_all_networks_count_alike_in_the_distances_of_joined_features():
    features = torch.stack([points(9, 4, seed) * scale for seed, scale in ((0, 1), (1, 1000), (2, 1e-3))])
    joined = joined_features(features)
    assert joined.shape == (9, 12)
    expected = torch.zeros(9, 9, dtype=torch.float64)
    for one in features:
        distance = torch.cdist(one, one).square()
        expected += distance / ((one - one.mean(0)).square().sum(1).mean()) / 3
    torch.testing.assert_close(torch.cdist(joined, joined).square(), expected, rtol=1e-9, atol=1e-9)


def test_one_network_selects_as_its_own_features_do():
    features = points(15, 6) * 7
    joined = joined_features(features[None])
    for select in (herding, k_center):
        assert torch.equal(select(joined, 5), select(features, 5))


def test_a_network_that_tells_no_images_apart_is_no_matter():
    features = points(15, 6)
    joined = joined_features(torch.stack([features, torch.zeros_like(features)]))
    assert torch.equal(herding(joined, 5), herding(features, 5))


def test_the_best_fifth_of_sets_is_kept():
    scores = torch.tensor([0.1, 0.9, 0.5, 0.9, 0.2, 0.3, 0.0, 0.4, 0.6, 0.7])
    assert best_sets(scores).tolist() == [1, 3]
    assert best_sets(scores[:3]).tolist() == [1]


@pytest.mark.parametrize("count", [0, 4])
def test_more_images_than_a_class_has_are_refused(count):
    features = points(3, 2)
    with pytest.raises(ValueError, match=f"expected 1 to 3 images of a class of 3, got {count}: lower ipc"):
        herding(features, count)
    for make in (
        lambda: k_center(features, count),
        lambda: most_forgotten(features[:, 0], count, seed=0, label=0),
        lambda: class_average(features, count, seed=0, label=0),
        lambda: k_means(features, count, seed=0, label=0),
        lambda: nearest_real(points(count, 2), features),
    ):
        with pytest.raises(ValueError, match="lower ipc"):
            make()
