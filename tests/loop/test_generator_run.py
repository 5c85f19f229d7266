"""Whole runs of generators on embedded digits, by every method, with tiny networks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.generator_config import GeneratorConfig
from fastdistill.loop.checkpoint import load_checkpoint
from fastdistill.loop.fingerprint import data_hash
from fastdistill.loop.memory import forecast
from fastdistill.loop.plan import make_plan
from fastdistill.loop.run import config_hash, run
from fastdistill.loop.sizes import Sizes
from fastdistill.method_configs import DistributionConfig, ImplicitConfig, MatchingConfig, UnrolledConfig

METHODS = {
    "matching": MatchingConfig(steps=8, real_batch=16, outer_loop=4),
    "unrolled": UnrolledConfig(steps=8, batches=2, epochs=1, real_batch=16),
    "implicit": ImplicitConfig(steps=8, inner_steps=3, hypersteps=3, real_batch=16),
    "distribution": DistributionConfig(steps=8, real_batch=16),
}


@pytest.fixture(scope="module")
def digits():
    return load_source("digits")


def config(folder, kind="matching", *, ipc=2, runs=1, method=None, **generator):
    own = kind == "unrolled"
    return RunConfig(
        output=str(folder),
        ipc=ipc,
        runs=runs,
        students=2,
        student=StudentConfig(width=4, depth=2),
        method=method or METHODS[kind],
        generator=GeneratorConfig(**{"architecture": "upsampling", "width": 8, "noise_size": 5, **generator}),
        evaluation=EvaluationConfig(
            protocol="own" if own else "default",
            students=2,
            validation_every=4,
            validation_students=1,
            validation_epochs=1,
        ),
        checkpoint_every=3,
        log_every=1,
        threads=1,
        device="cpu",
    )


def saved(settings, digits):
    folder = Path(settings.output) / settings.name / "checkpoints"
    return load_checkpoint(folder, config_hash(settings.as_dict()), data_hash(digits)).state


@pytest.mark.parametrize(
    ("kind", "noise"),
    [("matching", "fresh"), ("unrolled", "learned"), ("implicit", "learned"), ("distribution", "fresh")],
)
def test_stopping_and_going_on_equals_going_straight(tmp_path, digits, kind, noise):
    straight, stopped = (
        config(tmp_path / name, kind, runs=2, noise=noise, final_share=0.1) for name in ("straight", "stopped")
    )
    run(straight, digits, judge=False)
    assert run(stopped, digits, judge=False, stop_after=5) is None
    run(stopped, digits, judge=False)
    for name in ("distilled.safetensors", "distilled-best.safetensors"):
        assert (tmp_path / "straight" / "run" / name).read_bytes() == (tmp_path / "stopped" / "run" / name).read_bytes()
    first, second = saved(straight, digits), saved(stopped, digits)
    for left, right in ((first.learned, second.learned), (first.moments, second.moments)):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
    assert ("noise" in first.learned) == (noise == "learned") and "images" not in first.learned
    assert first.runs == 2 and ("rates" in first.learned) == (kind == "unrolled")


@pytest.mark.parametrize("backwards", [False, True])
def test_a_curriculum_that_grows_goes_on_as_it_would_have_gone(tmp_path, digits, backwards):
    """A generative teaching network as its presets have it, with a block, a rate and a momentum for every step."""
    method = UnrolledConfig(
        steps=7,
        batches=6,
        epochs=1,
        intermediate_every=1,
        grow_every=2,
        grow_backwards=backwards,
        real_batch=16,
        optimizer="momentum",
        inner_momentum=0.5,
        learn_momenta=True,
        decay_every=0,
        final_share=0.1,
    )
    given = {"method": method, "blocks": 6, "final_share": 0.1}
    straight, stopped = (
        replace(config(tmp_path / name, "unrolled", ipc=6, **given), max_masked_share=0.0) for name in ("straight", "b")
    )
    run(straight, digits, judge=False)
    assert run(stopped, digits, judge=False, stop_after=3) is None
    early = saved(stopped, digits)
    run(stopped, digits, judge=False)
    whole, later = saved(straight, digits), saved(stopped, digits)
    assert all(torch.equal(whole.learned[name], later.learned[name]) for name in whole.learned)
    # after three updates of four and five steps one of the six has not moved yet
    moved = (early.learned["rates"][0] != early.learned["rates"][0, 0 if backwards else 5]).tolist()
    assert moved == ([False, *[True] * 5] if backwards else [*[True] * 5, False])
    assert (whole.learned["rates"] != early.learned["rates"]).all()


def test_generators_are_judged_by_what_they_make(tmp_path, digits):
    result = run(config(tmp_path, "unrolled", noise="fresh"), digits)
    assert result.distilled.images.shape == (1, 20, 1, 8, 8)
    assert float(result.distilled.images.abs().max()) <= 2
    assert [arm["arm"] for arm in result.table["arms"]] == [
        "distilled (last)",
        "distilled (best on validation)",
        "random real",
    ]
    assert all(arm["images"] == 20 for arm in result.table["arms"])


def test_the_outer_loss_falls(tmp_path, digits):
    method = DistributionConfig(steps=80, real_batch=32, augmentation="none")
    settings = config(tmp_path, method=method, learning_rate=0.02)
    run(replace(settings, evaluation=EvaluationConfig()), digits, judge=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["outer/loss"] for line in lines if "outer/loss" in line]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_the_gradient_is_bounded_over_all_tensors_together(tmp_path, digits):
    free, bound = (config(tmp_path / name, "implicit", clip_norm=norm) for name, norm in (("free", 0.0), ("b", 1e-30)))
    states = []
    for settings in (free, bound):
        run(settings, digits, judge=False, stop_after=1)
        states.append(saved(settings, digits))
    first, second = ({k: v for k, v in state.moments.items() if k.endswith(".mean")} for state in states)
    assert first.keys() == second.keys()
    length = torch.cat([value.flatten() for value in second.values()]).double().norm() / 0.1
    assert float(length) == pytest.approx(1e-30, rel=1e-3)
    assert all(float(first[name].norm()) > 1e3 * float(second[name].norm()) for name in first if first[name].any())


@pytest.mark.parametrize("kind", METHODS)
def test_operations_of_a_step_are_those_that_were_predicted(tmp_path, digits, kind):
    settings = config(tmp_path, kind, method=replace(METHODS[kind], steps=1), architecture="full")
    table = run(
        replace(settings, evaluation=replace(settings.evaluation, validation_every=0)), digits, judge=False
    ).table
    assert table["counted_flops"] == pytest.approx(table["step_flops"], rel=0.05)


def test_a_larger_generator_needs_more_memory():
    sizes = Sizes(shape=(1, 8, 8), classes=(150,) * 10, test=300)

    def predicted(width):
        settings = config("runs", width=width)
        return forecast(settings, make_plan(settings, sizes.shape, 10, sizes=sizes), sizes, judge=False)

    few, many = predicted(8), predicted(256)
    assert many.state > 100 * few.state and many.step > few.step


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        ({"architecture": "upscaling"}, "expected architecture among none, upsampling, full, got 'upscaling': did you"),
        ({"noise": "none"}, "expected noise among learned, fixed, fresh, got 'none'"),
        ({"noise_size": 0}, "expected noise_size of at least 1, got 0: raise it"),
        ({"final_share": 0.0}, "expected a positive, finite final_share, got 0.0: raise it above zero"),
        ({"final_share": 1.5}, "expected final_share of at most 1, got 1.5: lower it"),
        ({"epsilon": 0.0}, "expected a positive, finite epsilon, got 0.0: raise it above zero"),
        ({"width": 6}, "expected a width that is a multiple of 4, got 6"),
        ({"blocks": 3}, "expected ipc to be a multiple of the generator's 3 blocks, got 2: change generator.blocks or"),
    ],
)
def test_wrong_settings_are_named(tmp_path, generator, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        config(tmp_path, **generator)


def test_a_shape_that_cannot_be_made_leaves_no_folder(tmp_path):
    images = torch.rand(60, 1, 10, 10)
    from fastdistill.data.arrays import from_arrays
    from fastdistill.data.sources import RealData

    store = from_arrays(images, torch.arange(60) % 2)
    with pytest.raises(
        ValueError, match=r"expected sides that are multiples of 4 .*, got 10 x 10: use the generator full"
    ):
        run(config(tmp_path), RealData(train=store, test=store, name="squares"))
    assert not (tmp_path / "run" / "config.yaml").exists()
