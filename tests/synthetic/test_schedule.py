import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "lion"}, "expected a schedule's optimizer among sgd, momentum, adam, got 'lion': choose one"),
        ({"optimizer": "adam"}, "expected momenta exactly for momentum and adam, got none for adam"),
        ({"momenta": torch.ones(3)}, "expected momenta exactly for momentum and adam, got some for sgd"),
        (
            {"optimizer": "adam", "momenta": torch.ones(2)},
            r"momenta \[T\] or \[R, T\] of 3 steps, got \(2,\): .* momentum",
        ),
        (
            {"optimizer": "adam", "momenta": torch.ones(3).long()},
            "floating-point momenta in a schedule, got torch.int64",
        ),
        ({"optimizer": "momentum", "momenta": torch.full((3,), torch.nan)}, "got NaN or infinity"),
        ({"optimizer": "momentum", "momenta": torch.full((3,), 1.5)}, "momenta from 0 to 1, .* got 1.5 to 1.5"),
        ({"optimizer": "momentum", "momenta": torch.full((3,), -0.5)}, "got -0.5 to -0.5"),
        ({"optimizer": "adam", "momenta": torch.ones(3)}, "for adam below 1, got 1 to 1"),
        ({"decay": -0.1}, "expected a schedule's decay of at least 0, got -0.1"),
        ({"decay": float("nan")}, "decay of at least 0, got nan"),
        ({"augmentation": "color_blur"}, "expected operations among .*, got 'blur'"),
    ],
)
def test_what_is_no_step_is_refused(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        Schedule(rates=torch.ones(3), images=ORDER, **changes)
    assert "\n" not in str(caught.value)


def test_a_momentum_of_one_is_no_error_but_for_adam():
    steps = Schedule(rates=torch.ones(3), images=ORDER, optimizer="momentum", momenta=torch.ones(3))
    assert steps.run(0) is steps


def test_a_schedule_belongs_to_its_images(build):
    with pytest.raises(ValueError, match="expected a schedule of images 0 to 17, got image 18"):
        build(schedule=Schedule(rates=torch.ones(1), images=torch.tensor([[18]])))
    with pytest.raises(ValueError, match="expected a schedule's rates of 3 runs, got those of 2"):
        build(runs=3, schedule=Schedule(rates=torch.ones(2, 1), images=torch.tensor([[0]])))
    with pytest.raises(ValueError, match="expected a schedule's momenta of 3 runs, got those of 2"):
        build(
            runs=3,
            schedule=Schedule(
                rates=torch.ones(1), images=torch.tensor([[0]]), optimizer="momentum", momenta=torch.ones(2, 1)
            ),
        )


def test_it_is_saved_and_loaded(build, difference, tmp_path):
    for options in ({"scheduled": True}, {"scheduled": True, "runs": 2, "rates_per_run": True}, {}):
        distilled = build(**options)
        distilled.save(tmp_path / "d.safetensors")
        assert difference(load_file(tmp_path / "d.safetensors"), distilled) == []


def test_files_from_before_there_was_a_choice_are_plain_sgd(build, difference, tmp_path):
    distilled = build(scheduled=True)
    distilled.save(tmp_path / "new")
    with safe_open(tmp_path / "new", framework="pt") as opened:
        values = json.loads(opened.metadata()["fastdistill"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert values.pop("schedule")["optimizer"] == "sgd"
    save_file(tensors, tmp_path / "old", {"fastdistill": json.dumps(values)})
    assert difference(load_file(tmp_path / "old"), distilled) == []


@pytest.mark.parametrize(
    "changes",
    [
        None,
        [],
        {"optimizer": "adam"},
        {"optimizer": 3},
        {"decay": "0"},
        {"decay": -1.0},
        {"augmentation": "blur"},
        {"align_corners": 1},
    ],
)
def test_odd_schedules_are_damaged_files(build, tmp_path, changes):
    build(scheduled=True).save(tmp_path / "whole")
    with safe_open(tmp_path / "whole", framework="pt") as opened:
        values = json.loads(opened.metadata()["fastdistill"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    values["schedule"] = values["schedule"] | changes if isinstance(changes, dict) else changes
    if changes == []:
        del tensors["schedule.rates"]
    save_file(tensors, tmp_path / "odd", {"fastdistill": json.dumps(values)})
    with pytest.raises(ValueError, match="damaged or of another kind"):
        load_file(tmp_path / "odd")


def test_a_run_keeps_its_own_rates(build):
    several = build(runs=2, scheduled=True, rates_per_run=True)
    assert torch.equal(several.run(1).schedule.rates, several.schedule.rates[1:])
    stepping = {"optimizer": "adam", "momenta": torch.rand(2, 3)}
    both = build(runs=2, scheduled=True, rates_per_run=True, stepping=stepping)
    assert torch.equal(both.run(1).schedule.momenta, stepping["momenta"][1:])
    momenta = build(runs=2, scheduled=True, stepping=stepping)
    assert momenta.run(0).schedule.rates is momenta.schedule.rates
    assert torch.equal(momenta.run(0).schedule.momenta, stepping["momenta"][:1])
    shared = build(runs=2, scheduled=True)
    assert shared.run(1).schedule is shared.schedule
    assert shared.schedule.steps == 3


def test_images_say_that_they_need_their_own_steps(build):
    assert build().note == ""
    assert "their own 3 steps and learning rates" in build(scheduled=True).note
    assert "only by replaying them" in build(scheduled=True).note
