from pathlib import Path

import pytest
import yaml

from fastdistill.comparison_config import comparisons
from fastdistill.comparison_file import read_comparison
from fastdistill.config import RunConfig
from fastdistill.method_configs import DistributionConfig, ImplicitConfig, MatchingConfig

PLAIN = {
    "base": {"data": {"source": "digits"}, "student": {"width": 8}, "method": {"real_batch": 16}},
    "arms": {
        "pixels": {},
        "generator": {"generator": {"architecture": "full", "width": 16}},
        "implicit": {"method": {"kind": "implicit", "terms": 3}},
        "preset": {"preset": "dm/mnist-10", "ipc": 1},
        "more": {"ipc": 2},
    },
    "tests": {"lenet": {"student": {"architecture": "lenet"}, "students": 2}},
}


def written(folder, **changes):
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**PLAIN, **changes}, sort_keys=False))
    return str(path)


def test_arms_are_runs_of_the_base_with_options_of_their_own(tmp_path):
    found = read_comparison(written(tmp_path), output="out")
    assert (found.name, str(found.folder)) == ("mine", "out/mine")
    assert list(found.arms) == list(PLAIN["arms"])
    assert found.arms["pixels"] == RunConfig(
        name="pixels",
        output="out/mine/arms",
        data=found.arms["pixels"].data,
        student=found.arms["pixels"].student,
        method=MatchingConfig(real_batch=16),
    )
    assert found.arms["generator"].generator.width == 16 and found.arms["generator"].method.real_batch == 16
    assert found.arms["implicit"].method == ImplicitConfig(terms=3)  # the base's settings are of another kind
    preset = found.arms["preset"]
    assert isinstance(preset.method, DistributionConfig) and preset.method.steps == 20_000
    assert (preset.data.source, preset.student.width, preset.name) == ("digits", 8, "preset")  # the base wins
    assert found.tests["lenet"].students == 2


def test_random_real_images_are_judged_beside_the_first_arm_that_is_judged_alike(tmp_path):
    found = read_comparison(written(tmp_path))
    judged = {name: arm.evaluation.random_real for name, arm in found.arms.items()}
    assert judged == {
        "pixels": True,
        "generator": False,
        "implicit": False,
        "preset": True,
        "more": True,
    }  # another protocol


def test_arms_with_networks_of_their_own_have_random_real_images_of_their_own(tmp_path):
    arms = {"a": {}, "b": {"student": {"weights": "orthogonal"}}, "c": {"student": {"initialization": "fixed"}}}
    found = read_comparison(written(tmp_path, arms=arms))
    assert [arm.evaluation.random_real for arm in found.arms.values()] == [True, True, False]


def test_every_arm_of_the_weight_distributions_is_put_to_the_very_same_tests():
    found = read_comparison("weights-digits")
    for name, test in found.tests.items():
        assert len({repr(test.of(arm.student)) for arm in found.arms.values()}) == 1, name
        assert found.alike(1, name)


def test_arms_get_equal_time_or_equal_steps(tmp_path):
    for own in ({"seconds": 7}, {"seconds": 7, "steps": 0}):
        timed = read_comparison(written(tmp_path, **own))
        assert {arm.seconds for arm in timed.arms.values()} == {7.0}
        assert timed.arms["preset"].method.steps == 20_000
    stepped = read_comparison(written(tmp_path, seconds=7), steps=30)
    assert {arm.method.steps for arm in stepped.arms.values()} == {30}
    assert {arm.seconds for arm in stepped.arms.values()} == {0.0}
    with pytest.raises(ValueError, match=r"expected seconds or steps in .*mine.yaml, got both"):
        read_comparison(written(tmp_path, seconds=7, steps=3))


def test_what_is_asked_for_wins_over_the_file(tmp_path):
    found = read_comparison(written(tmp_path), name="other", seed=5, device="cpu", data={"root": "there"})
    assert found.name == "other" and found.arms["more"].output == "comparisons/other/arms"
    assert {(arm.seed, arm.device, arm.data.root) for arm in found.arms.values()} == {(5, "cpu", "there")}
    assert found.arms["pixels"].data.source == "digits"


def test_pretrained_weights_are_the_comparisons_own_unless_told_otherwise(tmp_path):
    arms = {
        "own": {"student": {"initialization": "pretrained"}},
        "given": {"student": {"initialization": "pretrained", "pretrained": "elsewhere"}},
    }
    tests = {"too": {"student": {"initialization": "pretrained"}}}
    found = read_comparison(written(tmp_path, arms=arms, tests=tests, pretraining={"networks": 2}), output="out")
    assert found.arms["own"].student.pretrained == "out/mine/pretrained" == str(found.pretrained)
    assert found.arms["given"].student.pretrained == "elsewhere"
    assert found.tests["too"].student["pretrained"] == "out/mine/pretrained"
    assert found.pretraining.networks == 2


def test_baselines_are_judged_as_the_first_arm_is(tmp_path):
    given = {"baselines": ["herding", "nearest_neighbour"], "against": "pixels", "networks": 2}
    found = read_comparison(written(tmp_path, baselines=given), output="out").baselines
    assert str(found.folder) == "out/mine/baselines" and found.against == "out/mine/arms/pixels"
    assert (found.baselines, found.networks, found.student.width) == (("herding", "nearest_neighbour"), 2, 8)
    assert read_comparison(written(tmp_path, baselines={})).baselines.students == 20
    assert read_comparison(written(tmp_path)).baselines is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"arm": {}}, r"expected one of name, .*in .*mine.yaml, got 'arm': did you mean 'arms'"),
        ({"arms": {}}, "expected at least one arm, got none"),
        ({"arms": ["a"]}, r"expected a mapping below arms in .*mine.yaml, got \['a'\]"),
        ({"arms": {"a": "dc"}}, r"expected a mapping below a in .*mine.yaml, got 'dc'"),
        ({"arms": {"a/b": {}}}, "expected a name that is one folder name, got 'a/b'"),
        ({"arms": {"a": {"name": "b"}}}, "expected no name of the arm a in .*: the comparison names its runs"),
        ({"arms": {"a": {"ipcs": 2}}}, "expected a key in the arm a of .*, got 'ipcs': did you mean ipc"),
        ({"arms": {"a": {"preset": "dc/none"}}}, "expected a preset that `fastdistill presets` lists"),
        ({"arms": {"a": {"method": {"kind": "matchin"}}}}, "expected method.kind among .*did you mean 'matching'"),
        ({"tests": {"t": {"student": {"widths": 3}}}}, "in student of the test t in .*got 'widths'.*'width'"),
        ({"tests": {"t": {"studens": 3}}}, "in the test t in .*got 'studens': did you mean 'students'"),
        ({"tests": {"t": {"students": "three"}}}, "expected students of the test t in .* as int, got 'three'"),
        ({"pretraining": {"network": 3}}, "in pretraining in .*got 'network': did you mean 'networks'"),
        ({"baselines": {"ipc": 3}}, "expected no ipc of the baselines in .*: the first arm's are used for all"),
        ({"baselines": {"student": 3}}, "expected no student of the baselines"),
        ({"baselines": {"against": "other"}}, "expected one of pixels, .*in against of the baselines in .*got 'other'"),
        ({"arms": {"a": {"student": "lenet"}}}, r"expected a mapping below student in .*mine.yaml, got .lenet."),
        ({"arms": {"a": {"preset": 5}}}, "expected a preset that `fastdistill presets` lists, got .5."),
        ({"images": 5}, "expected images among last, best, got .5."),
        ({"name": "../x"}, "expected a name that is one folder name, got .*x"),
    ],
)
def test_files_that_are_no_comparison_are_refused(tmp_path, changes, expected):
    with pytest.raises(ValueError, match=expected):
        read_comparison(written(tmp_path, **changes))


def test_values_of_another_type_are_refused_with_the_arm(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        read_comparison(written(tmp_path, arms={"a": {"ipc": "many"}}))
    assert stop.value.code == 2
    assert "expected ipc of type int, got 'many' in the arm a of " in capsys.readouterr().err


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"a YAML file or the name of a comparison, got 'mnist-cp'.*mnist-cpu"):
        read_comparison("mnist-cp")


def test_the_readmes_example_can_be_read(tmp_path):
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    path = tmp_path / "example.yaml"
    path.write_text(text.partition("```yaml\n")[2].partition("```")[0])
    found = read_comparison(str(path))
    assert list(found.arms) == ["matching-pixels", "matching-generator", "distribution"]
    assert {arm.method.steps for arm in found.arms.values()} == {20_000}
    assert {arm.seconds for arm in found.arms.values()} == {120.0}


@pytest.mark.parametrize("name", comparisons())
def test_those_that_come_along_can_be_read(name):
    found = read_comparison(name)
    assert found.name == name and len(found.arms) > 2 and found.tests
