"""Options of experts and of baselines; those of the other verbs are tested with the command line."""

import pytest
import yaml

from fastdistill.baseline_config import BaselineConfig
from fastdistill.config import DataConfig, StudentConfig, presets
from fastdistill.experts_config import ExpertsConfig
from fastdistill.options import parse_baseline, parse_experts, parse_run


def test_without_words_it_is_the_default():
    assert parse_experts([]) == ExpertsConfig()


@pytest.mark.parametrize("preset", presets())
def test_a_preset_lends_its_data_and_its_student(preset):
    found, run = parse_experts([preset]), parse_run([preset])
    assert found.data == run.data
    own = {"initialization": "fresh", "pretrained": ""}
    assert found.student == StudentConfig(**{**run.as_dict()["student"], **own})
    assert found == ExpertsConfig(data=found.data, student=found.student)


def test_flags_win_over_files_and_files_over_presets(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("count: 5\nseed: 9\nstudent:\n  width: 17\n  depth: 2\ndata:\n  zca: true\n")
    found = parse_experts(["dsa/cifar10-10", "--config", str(file), "--seed=3", "--student.width", "64"])
    assert (found.count, found.seed, found.student.width, found.student.depth) == (5, 3, 64, 2)
    assert found.data == DataConfig(source="cifar10", zca=True)
    assert found.folder.name == "cifar10-zca-convnet-2-64"


def test_a_printed_configuration_loads_to_the_same_one(tmp_path, capsys):
    words = ["dsa/svhn-1", "--count=3", "--storage=bfloat16", "--augmentation=none", "--momentum=0.5"]
    with pytest.raises(SystemExit) as stop:
        parse_experts([*words, "--print_config"])
    assert stop.value.code == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse_experts(["--config", str(file)]) == parse_experts(words)


def test_the_configuration_in_a_folder_loads_to_the_same_experts(tmp_path):
    config = parse_experts(["dc/mnist-1"])
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.as_dict()))
    assert parse_experts(["--config", str(file)]).as_dict() == config.as_dict()


@pytest.mark.parametrize("text", ["students: 3\n", "method:\n  steps: 3\n", "epoch: 3\n", "student: 3\n", "[1]"])
def test_a_file_of_other_options_is_refused(tmp_path, capsys, text):
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as stop:
        parse_experts(["--config", str(file)])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("fastdistill experts: expected ")
    assert str(file) in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("words", [[], ["dsa/cifar100-50"]])
def test_help_is_one_screen(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        parse_experts([*words, "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 52
    assert max(map(len, lines)) <= 80
    for name in ("--count", "--data.zca", "--student.width", "--storage"):
        assert any(line.lstrip().startswith(name) for line in lines)


def test_baselines_without_words_are_the_default():
    assert parse_baseline([]) == BaselineConfig()


@pytest.mark.parametrize("preset", presets())
def test_a_preset_lends_baselines_what_they_share_with_its_run(preset):
    found, run = parse_baseline([preset]), parse_run([preset])
    assert (found.data, found.ipc) == (run.data, run.ipc)
    assert found.student == StudentConfig(**{**run.as_dict()["student"], "initialization": "fresh", "pretrained": ""})
    assert found.protocol == ("default" if run.evaluation.protocol == "own" else run.evaluation.protocol)
    assert found == BaselineConfig(data=found.data, student=found.student, ipc=found.ipc, protocol=found.protocol)


def test_baselines_are_named_in_flags_and_in_files(tmp_path, capsys):
    words = ["dc/mnist-10", "--baselines=[herding, k_center]", "--seed=3"]
    assert parse_baseline(words).baselines == ("herding", "k_center")
    with pytest.raises(SystemExit):
        parse_baseline([*words, "--print_config"])
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse_baseline(["--config", str(file)]) == parse_baseline(words)
    file.write_text(yaml.safe_dump(parse_baseline(words).as_dict()))
    assert parse_baseline(["--config", str(file)]).as_dict() == parse_baseline(words).as_dict()
    file.write_text("baselines: [k_means]\nstudents: 4\n")
    assert parse_baseline(["--config", str(file)]) == BaselineConfig(baselines=("k_means",), students=4)


@pytest.mark.parametrize("words", [[], ["dsa/cifar100-50"]])
def test_help_on_baselines_is_one_screen(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        parse_baseline([*words, "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 80
    for name in ("--ipc", "--baselines", "--against", "--student.width"):
        assert any(line.lstrip().startswith(name) for line in lines)
