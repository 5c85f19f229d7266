import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from fastdistill.config import RunConfig
from fastdistill.options import parse_profile, parse_run
from fastdistill.profile_config import ProfileConfig


@pytest.mark.parametrize("changes", [{"profile_steps": 0}, {"max_students": -1}, {"warmup": -1}])
def test_numbers_out_of_range_are_refused(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f"expected {name} of at least"):
        ProfileConfig(**changes)


def test_it_is_frozen_and_says_where_the_profile_goes():
    config = ProfileConfig(run=RunConfig(name="mine", output="there"))
    assert config.folder == Path("there/mine")
    assert config.as_dict()["name"] == "mine" and config.as_dict()["max_students"] == 64
    assert ProfileConfig(max_students=0).max_students == 0  # no limit
    with pytest.raises(FrozenInstanceError):
        config.warmup = 3


def test_options_are_those_of_run_and_the_profiles_own(tmp_path):
    assert parse_profile([]).folder == Path("profiles/dc-digits-1")
    words = ["mtt/digits-1-cpu", "--seed=3"]
    found = parse_profile([*words, "--max_students=8", "--random_images=true"])
    assert (found.max_students, found.random_images, found.profile_steps) == (8, True, 1)
    assert {**found.run.as_dict(), "output": "runs"} == parse_run(words).as_dict()
    file = tmp_path / "own.yaml"
    file.write_text("students: 5\nmax_students: 2\noutput: elsewhere\n")
    found = parse_profile(["--config", str(file), "--warmup=0"])
    assert (found.run.students, found.max_students, found.warmup, found.folder.parts[0]) == (5, 2, 0, "elsewhere")


def test_a_printed_configuration_loads_to_the_same_one(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_profile(["dd/mnist-fixed-cpu", "--max_students=3", "--print_config"])
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse_profile(["--config", str(file)]) == parse_profile(["dd/mnist-fixed-cpu", "--max_students=3"])


def test_reading_options_imports_no_torch():
    code = "import sys; from fastdistill import options; options.parse_profile([]); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
