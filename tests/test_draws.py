import torch

from fastdistill.draws import Purpose, normal, uniform


def test_purposes_are_distinct_streams():
    students = torch.arange(3)
    draws = [uniform(0, purpose, 0, students, 16) for purpose in Purpose]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(Purpose)


def test_purpose_numbers_never_change():
    # files written by earlier versions depend on them
    assert [(purpose.name, int(purpose)) for purpose in Purpose][:5] == [
        ("WEIGHTS", 0),
        ("REAL_BATCH", 1),
        ("AUGMENTATION", 2),
        ("MINIBATCH", 3),
        ("PIXELS", 4),
    ]
    assert len({int(purpose) for purpose in Purpose}) == len(Purpose)


def test_draws_are_functions_of_seed_purpose_step_and_student():
    students = torch.arange(4)
    for draw in (uniform, normal):
        first = draw(7, Purpose.PIXELS, 3, students, 10)
        assert torch.equal(first, draw(7, Purpose.PIXELS, 3, students, 10))
        assert torch.equal(first[2:3], draw(7, Purpose.PIXELS, 3, students[2:3], 10))
        assert not torch.equal(first, draw(8, Purpose.PIXELS, 3, students, 10))
        assert not torch.equal(first, draw(7, Purpose.PIXELS, 4, students, 10))
