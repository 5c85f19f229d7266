from dataclasses import replace

import pytest
import yaml

from fastdistill.config import DataConfig, EvaluationConfig, RunConfig, StudentConfig
from fastdistill.loop.configuration import read_configuration

CONFIG = RunConfig(
    seed=7,
    student=StudentConfig(architecture="mlp", width=9),
    data=DataConfig(source="npz:a.npz", root="elsewhere", validation_fraction=0.0),
    evaluation=EvaluationConfig(protocol="dsa"),
)


def edited(**changes):
    """The configuration with values by dotted name replaced, or left out where they are None."""
    values = CONFIG.as_dict()
    for name, value in changes.items():
        group, _, key = name.rpartition("__")
        place = values[group] if group else values
        if value is None:
            del place[key]
        else:
            place[key] = value
    return yaml.safe_dump(values).encode()


def test_what_a_run_wrote_is_read(tmp_path):
    (tmp_path / "config.yaml").write_bytes(edited())
    found = read_configuration(tmp_path)
    assert (found.seed, found.student, found.data, found.evaluation) == (
        CONFIG.seed,
        CONFIG.student,
        CONFIG.data,
        CONFIG.evaluation,
    )
    (tmp_path / "config.yaml").write_bytes(edited(data__validation_fraction=0, data__download=None, method=None))
    assert read_configuration(tmp_path).data == CONFIG.data


def test_runs_and_students_are_read(tmp_path):
    settings = replace(CONFIG, runs=3, students=2)
    for student in (
        CONFIG.student,
        replace(CONFIG.student, initialization="fixed"),
        replace(CONFIG.student, initialization="pretrained", pretrained="pool"),
    ):
        content = yaml.safe_dump(replace(settings, student=student).as_dict())
        (tmp_path / "config.yaml").write_text(content)
        read = read_configuration(tmp_path)
        assert (read.runs, read.students, read.student) == (3, 2, student)
    (tmp_path / "config.yaml").write_text(content.replace("runs: 3", "runs: many"))
    with pytest.raises(ValueError, match="'many' is no int"):
        read_configuration(tmp_path)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "None is no dict"),
        (b"student: 3", "it has no seed"),
        (b"{", "while parsing"),
        (b"a: [1\nb: }", "while parsing"),
        (b"\x00", "special characters"),
        (b"\xff\xfe\xff", "can't decode"),
        (b"[" * 5000 + b"]" * 5000, "recursion"),
        (b"when: 2020-99-99", "month must be"),
        (b"a: &a [1]\nb: *a", "alias"),
        (edited(seed="abc"), "'abc' is no int"),
        (edited(seed=1.5), "no int"),
        (edited(seed=-1), "expected seed of at least 0"),
        (edited(seed=None), "it has no seed"),
        (edited(student=None), "it has no student"),
        (edited(student=3), "3 is no dict"),
        (edited(student__width=None), "it has no student.width"),
        (edited(student__width="wide"), "'wide' is no int"),
        (edited(student__width=True), "True is no int"),
        (edited(student__architecture="lenet6"), "did you mean 'lenet'"),
        (edited(student__colour="red"), "colour"),
        (edited(data__source=7), "7 is no str"),
        (edited(data__source=None), "it has no data.source"),
        (edited(data__root=None), "it has no data.root"),
        (edited(data__validation_fraction="half"), "no float"),
        (edited(data__validation_fraction=2.0), "expected a validation_fraction"),
        (edited(evaluation__protocol=None), "it has no evaluation.protocol"),
        (edited(evaluation__protocol="mtt"), "expected protocol among"),
    ],
)
def test_any_other_file_is_named_in_one_sentence(tmp_path, content, cause):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"expected the configuration of a run in .*config\.yaml, got ") as caught:
        read_configuration(tmp_path)
    assert cause in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected config\.yaml beside the images in .*found none: name a run folder"):
        read_configuration(tmp_path)
