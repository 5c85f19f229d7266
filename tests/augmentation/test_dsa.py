import pytest
import torch

from bench.naive.augmentation import diff_augment
from fastdistill.augmentation.dsa import OPERATIONS, Draw, Strategy, augment, draw_per_image, draw_siamese
from fastdistill.draws import Purpose

ALL = Strategy(operations=OPERATIONS)


def pictures(*lead, size=(9, 9), seed=0):
    return torch.randn(*lead, 2, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(8, 8), (9, 9), (28, 28), (6, 10)])
def test_every_operation_equals_the_textbook(operation, align_corners, size, device):
    strategy = Strategy(operations=(operation,), align_corners=align_corners)
    x = pictures(3, 2, 4, size=size).to(device)
    students = torch.arange(3, device=device)
    for step in range(5):
        draw = draw_siamese(strategy, seed=1, step=step, students=students, groups=2)
        found = augment(x, strategy, draw)
        for k in range(3):
            for g in range(2):
                numbers = draw.parameters[k, g, 0].double()
                expected = diff_augment(x[k, g], operation, numbers, align_corners=align_corners)
                assert torch.allclose(found[k, g], expected, rtol=1e-10, atol=1e-12)


def test_edges_of_the_draws_equal_the_textbook():
    edge = 1 - 2.0**-24
    for operation in OPERATIONS:
        strategy = Strategy(operations=(operation,))
        for numbers in ([0.0, 0.0, 0.0], [edge] * 3, [0.0, edge, 0.5]):
            draw = Draw(operation=torch.zeros(1, dtype=torch.int64), parameters=torch.tensor([[numbers]]))
            x = pictures(1, 3)
            expected = diff_augment(x[0], operation, torch.tensor(numbers, dtype=torch.float64))
            assert torch.allclose(augment(x, strategy, draw)[0], expected, rtol=1e-10, atol=1e-12), operation


def test_the_drawn_operation_is_the_one_applied():
    x = pictures(50, 1, 2)
    draw = draw_siamese(ALL, seed=4, step=0, students=torch.arange(50), groups=1)
    assert set(draw.operation.flatten().tolist()) == set(range(len(OPERATIONS)))
    found = augment(x, ALL, draw)
    for k in range(50):
        name = OPERATIONS[int(draw.operation[k, 0])]
        assert torch.allclose(found[k, 0], diff_augment(x[k, 0], name, draw.parameters[k, 0, 0].double()), atol=1e-12)


def test_real_and_synthetic_images_of_a_pair_share_the_draw():
    draw = draw_siamese(ALL, seed=4, step=2, students=torch.arange(6), groups=3)
    one = pictures(6, 3, 1)
    many = one.expand(6, 3, 5, 2, 9, 9)
    assert torch.equal(augment(many, ALL, draw), augment(one, ALL, draw).expand_as(many))


def test_images_shared_by_students_get_a_student_axis():
    draw = draw_siamese(ALL, seed=4, step=2, students=torch.arange(6), groups=3)
    shared = pictures(3, 4)
    assert torch.equal(augment(shared, ALL, draw), augment(shared.expand(6, 3, 4, 2, 9, 9), ALL, draw))


def test_per_image_draws_differ_between_images_and_share_the_operation():
    strategy = Strategy(operations=("crop", "rotate"))
    draw = draw_per_image(strategy, seed=1, step=0, students=torch.arange(3), images=4, purpose=Purpose.AUGMENTATION)
    x = pictures(1).expand(3, 4, 2, 9, 9)
    found = augment(x, strategy, draw)
    for k in range(3):
        name = strategy.operations[int(draw.operation[k])]
        for i in range(4):
            expected = diff_augment(x[k, i : i + 1], name, draw.parameters[k, i].double())
            assert torch.allclose(found[k, i : i + 1], expected, atol=1e-12)
        assert not torch.equal(found[k, 0], found[k, 1])


def test_a_student_draws_the_same_in_any_batch():
    for draw in (
        lambda students: draw_siamese(ALL, seed=3, step=7, students=students, groups=2),
        lambda students: draw_per_image(ALL, seed=3, step=7, students=students, images=5, purpose=Purpose.AUGMENTATION),
    ):
        together, alone = draw(torch.arange(5)), draw(torch.tensor([3]))
        assert torch.equal(together.operation[3], alone.operation[0])
        assert torch.equal(together.parameters[3], alone.parameters[0])


def test_the_gradient_passes_through():
    draw = draw_siamese(ALL, seed=4, step=0, students=torch.arange(12), groups=1)
    x = pictures(12, 1, 1)
    assert torch.autograd.gradcheck(lambda x: augment(x, ALL, draw), x.requires_grad_())


@pytest.mark.parametrize("lead", [(), (4,), (4, 3), (2, 2, 3)])
def test_draws_may_have_any_leading_axes(lead):
    """Pull-backs by ``torch.func.vjp``, autograd and a loop over the textbook's are the same, of shared images too."""
    generator = torch.Generator().manual_seed(3)
    draw = Draw(
        operation=torch.randint(len(OPERATIONS), lead, generator=generator),
        parameters=torch.rand(*lead, 1, 3, generator=generator),
    )
    for own in (lead, tuple(1 for _ in lead), lead[1:]):
        x = pictures(*own, 2).requires_grad_()
        y = torch.randn(*lead, *x.shape[-4:], generator=generator, dtype=torch.float64)
        pairs, whole = zip(draw.operation.flatten(), draw.parameters.view(-1, 3), strict=True), x.expand_as(y)
        one_by_one = [
            diff_augment(images, OPERATIONS[index], numbers.double())
            for images, (index, numbers) in zip(whole.reshape(-1, *x.shape[-4:]), pairs, strict=True)
        ]
        expected = torch.stack(one_by_one).view_as(y)
        (pulled,) = torch.autograd.grad(expected, x, y)
        found = augment(x, ALL, draw)
        assert torch.allclose(found, expected, atol=1e-12)
        assert torch.allclose(torch.autograd.grad(found, x, y)[0], pulled, atol=1e-12)
        assert torch.allclose(torch.func.vjp(lambda x: augment(x, ALL, draw), x.detach())[1](y)[0], pulled, atol=1e-12)


def test_narrow_images_keep_exact_parameters():
    draw = draw_siamese(ALL, seed=4, step=0, students=torch.arange(40), groups=1)
    x = pictures(1, 1, 2).bfloat16()
    assert torch.equal(augment(x, ALL, draw), augment(x.float(), ALL, draw).bfloat16())


def test_there_and_back_compile_whole():
    first, second = (draw_siamese(ALL, seed=4, step=step, students=torch.arange(6), groups=2) for step in (0, 1))
    x, y = pictures(6, 2, 3), pictures(6, 2, 3, seed=1)

    def there_and_back(x, operation, parameters, y):
        draw = Draw(operation=operation, parameters=parameters)
        found, back = torch.func.vjp(lambda x: augment(2 * x, ALL, draw), x)
        return found, back(y)[0]

    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")
    for draw, stance in ((first, "default"), (second, "fail_on_recompile")):
        arguments = (x, draw.operation, draw.parameters, y)
        with torch.compiler.set_stance(stance):
            found = compiled(*arguments)
        assert all(torch.equal(*both) for both in zip(found, there_and_back(*arguments), strict=True))


def test_derivatives_that_it_does_not_have_are_refused():
    draw = draw_siamese(ALL, seed=4, step=0, students=torch.arange(2), groups=1)
    x = pictures(2, 1, 1)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(lambda x: augment(x, ALL, draw), (x,), (x,))
    y = augment(x.requires_grad_(), ALL, draw).square().sum()
    with pytest.raises(TypeError, match="dsa_transpose expected a plain tensor"):
        torch.autograd.grad(y, x, create_graph=True)


def test_strategies_are_parsed_and_checked():
    assert Strategy.parse("none").operations == ()
    assert Strategy.parse("color_crop").operations == ("color", "crop")
    x = pictures(1, 2)
    assert augment(x, Strategy.parse("none"), None) is x
    with pytest.raises(ValueError, match="expected operations among"):
        Strategy.parse("color_krop")
