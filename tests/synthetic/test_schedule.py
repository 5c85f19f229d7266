import pytest
import torch

from fastdistill.synthetic.distilled import load_file
from fastdistill.synthetic.schedule import Schedule

ORDER = torch.tensor([[0, 1], [2, 3], [0, 3]])


@pytest.mark.parametrize(
    ("rates", "images", "message"),
    [
        (torch.ones(3), ORDER.int(), r"expected a schedule's images as int64 \[T, n\], got torch.int32"),
        (torch.ones(3), ORDER[0], r"int64 \[T, n\], got torch.int64 \(2,\)"),
        (torch.ones(0), ORDER[:0], r"got torch.int64 \(0, 2\)"),
        (torch.ones(2), ORDER, r"rates \[T\] or \[R, T\] of 3 steps, got \(2,\)"),
        (torch.ones(3, 1), ORDER, r"rates \[T\] or \[R, T\] of 3 steps, got \(3, 1\)"),
        (torch.tensor(0.1), ORDER, r"of 3 steps, got \(\)"),
        (torch.ones(3).long(), ORDER, "expected finite floating-point rates in a schedule, got torch.int64"),
        (torch.tensor([0.1, float("nan"), 0.1]), ORDER, "got NaN or infinity"),
        (torch.ones(3), ORDER - 1, "expected image indices from 0 on in a schedule, got -1"),
    ],
)
def test_what_is_no_schedule_is_refused(rates, images, message):
    with pytest.raises(ValueError, match=message) as caught:
        Schedule(rates=rates, images=images)
    assert "\n" not in str(caught.value)


def test_a_schedule_belongs_to_its_images(build):
    with pytest.raises(ValueError, match="expected a schedule of images 0 to 17, got image 18"):
        build(schedule=Schedule(rates=torch.ones(1), images=torch.tensor([[18]])))
    with pytest.raises(ValueError, match="expected a schedule's rates of 3 runs, got those of 2"):
        build(runs=3, schedule=Schedule(rates=torch.ones(2, 1), images=torch.tensor([[0]])))


def test_it_is_saved_and_loaded(build, difference, tmp_path):
    for options in ({"scheduled": True}, {"scheduled": True, "runs": 2, "rates_per_run": True}, {}):
        distilled = build(**options)
        distilled.save(tmp_path / "d.safetensors")
        assert difference(load_file(tmp_path / "d.safetensors"), distilled) == []


def test_a_run_keeps_its_own_rates(build):
    several = build(runs=2, scheduled=True, rates_per_run=True)
    assert torch.equal(several.run(1).schedule.rates, several.schedule.rates[1:])
    shared = build(runs=2, scheduled=True)
    assert shared.run(1).schedule is shared.schedule
    assert shared.schedule.steps == 3


def test_images_say_that_they_need_their_own_steps(build):
    assert build().note == ""
    assert "their own 3 steps and learning rates" in build(scheduled=True).note
    assert "only by replaying them" in build(scheduled=True).note
