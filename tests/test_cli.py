import json
import signal
import subprocess
import sys
import time

import pytest
import yaml

from fastdistill import cli
from fastdistill.config import RunConfig, presets

TINY = [
    "--student.width=4",
    "--student.depth=2",
    "--method.steps=4",
    "--method.real_batch=8",
    "--evaluation.students=2",
    "--evaluation.whole_epochs=1",
    "--evaluation.whole_students=2",
    "--evaluation.validation_every=0",
    "--device=cpu",
]


def command(*words):
    return subprocess.run([sys.executable, "-m", "fastdistill", *words], capture_output=True, text=True, timeout=300)


def test_a_run_from_the_command_line_ends_with_a_table(tmp_path):
    done = command("run", *TINY, f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    for words in ("distilled (last)", "random real", "whole training set", "peak memory", "protocol default"):
        assert words in done.stdout
    assert "distilling: 4/4" in done.stderr
    again = command("evaluate", str(tmp_path / "dc-digits-1"), "--students=2", "--epochs=2", "--architecture=mlp")
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("mlp: ")
    assert (tmp_path / "dc-digits-1" / "evaluations.jsonl").exists()


def test_experts_from_the_command_line_are_stopped_saved_and_finished(tmp_path, capsys):
    words = ["experts", "dc/digits-1", "--student.width=2", "--student.depth=1", "--count=2", f"--output={tmp_path}"]
    words += ["--learning_rate=0.1", "--device=cpu", "--threads=1", "--chunk=1"]
    child = subprocess.Popen(
        [sys.executable, "-m", "fastdistill", *words, "--epochs=3000"], stderr=subprocess.PIPE, text=True
    )
    states = tmp_path / "digits-convnet-1-2" / "checkpoints"
    while not states.is_dir() or not list(states.glob("*-000001-*")):
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    said = child.communicate(timeout=120)[1]
    assert child.returncode == 75, said
    assert "saved epoch " in said
    assert said.endswith("fastdistill: stopped by SIGTERM: repeat the command to go on\n")
    assert cli.main([*words, "--epochs=2"]) == 1
    assert "differs in epochs (3000 there, 2 here): choose another --name" in capsys.readouterr().err
    assert cli.main([*words, "--epochs=2", "--name=short"]) == 0
    done = capsys.readouterr().out
    assert done.startswith(f"{tmp_path / 'short'}: 2 experts of 2 epochs, training accuracy ")
    assert cli.main([*words, "--epochs=2", "--name=short"]) == 0
    again = capsys.readouterr()
    assert again.out == done
    assert "is finished already" in again.err


def test_baselines_from_the_command_line_end_with_a_table(tmp_path, capsys):
    words = ["baseline", "dc/digits-1", "--student.width=4", "--student.depth=2", f"--output={tmp_path}", "--epochs=2"]
    words += ["--students=2", "--device=cpu", "--baselines=[class_average, random_real]"]
    assert cli.main([*words, "--name=mine"]) == 0
    done = capsys.readouterr()
    assert "mine: test accuracy, convnet, protocol default" in done.out
    assert done.out.index("class average") < done.out.index("random real")
    assert "testing: random real: 2/2" in done.err
    assert cli.main([*words, "--name=mine"]) == 0
    again = capsys.readouterr()
    assert again.out == done.out
    assert "is finished already" in again.err
    assert cli.main([*words, "--name=mine", "--seed=1"]) == 1
    assert "differs in seed (0 there, 1 here)" in capsys.readouterr().err
    assert cli.main([*words, "--ipc=1000"]) == 1
    assert "expected at least 1000 training images in every class, got " in capsys.readouterr().err


def test_a_profile_from_the_command_line_ends_with_tables(tmp_path, capsys, monkeypatch):
    words = ["profile", "--student.width=2", "--student.depth=1", "--device=cpu", f"--output={tmp_path}"]
    words += ["--method.real_batch=4", "--max_students=2"]
    assert cli.main(words) == 0
    done = capsys.readouterr()
    for said in ("phases of a step", "second-order product", "throughput against students", "Best: S = "):
        assert said in done.out
    assert "2 students: " in done.err
    assert (tmp_path / "dc-digits-1" / "report.html").exists()
    assert cli.main([*words, "--data.source=folder:none", "--random_images=true", "--name=other"]) == 1
    assert "expected a data set of known shape" in capsys.readouterr().err

    def interrupted(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastdistill.loop.profile.breakdown", interrupted)
    assert cli.main([*words, "--name=stopped", "--max_students=1"]) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dc-digits-1"]


def test_the_default_is_the_digits_preset():
    assert cli.parse_run([]) == cli.parse_run(["dc/digits-1"])
    assert cli.parse_run([]).data.source == "digits"


def test_flags_win_over_files_and_files_over_presets(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("students: 5\nseed: 9\nmethod:\n  real_batch: 17\n")
    found = cli.parse_run(["dsa/mnist-10", "--config", str(file), "--seed=3"])
    assert (found.students, found.seed, found.method.real_batch) == (5, 3, 17)
    assert (found.ipc, found.method.outer_loop, found.data.source) == (10, 10, "mnist")
    assert cli.parse_run(["--config", str(file)]).data == RunConfig().data


@pytest.mark.parametrize("preset", presets())
def test_a_printed_configuration_loads_to_the_same_one(preset, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse_run([preset, "--students=3", "--print_config"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    file = tmp_path / "printed.yaml"
    file.write_text(text)
    expected = cli.parse_run([preset, "--students=3"])
    assert cli.parse_run(["--config", str(file)]) == expected
    assert yaml.safe_load(text) == expected.as_dict()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "dc/mnst-1"], "dc/mnist-1"),
        (["run", "--studentz=3"], "got '--studentz': did you mean --students"),
        (["run", "--steps=3"], "got '--steps': did you mean --method.steps"),
        (["run", "--students=three"], "expected students of type int, got 'three'"),
        (["run", "--students"], "expected a value after --students, got none"),
        (["run", "--data=mnist"], "expected options below data, got 'mnist': write --data.NAME=VALUE"),
        (["run", "dc/mnist-1", "dc/mnist-10"], "expected options only, got 'dc/mnist-10'"),
        (["run", "--data.source=mnits"], "expected source among digits, mnist"),
        (["run", "--data.source=mnits"], "got 'mnits': did you mean 'mnist'"),
        (["run", "--student.architecture=convnt"], "got 'convnt': did you mean 'convnet'"),
        (["run", "--method.augmentation=colour_crop"], "got 'colour_crop': correct 'colour'"),
        (["run", "--max_masked_share=2"], "expected a max_masked_share in [0, 1), got 2.0"),
        (["run", "--method.distance=cosine"], "expected distance among ours, mse, l1, l1_mean, cos"),
        (["run", "--config", "missing.yaml"], "missing.yaml"),
        (["rum"], "expected a verb among run, evaluate"),
        (["rum"], "got 'rum': did you mean 'run'"),
        (["evaluate"], "expected a value of run, got nothing"),
        (["presets", "--all"], "got '--all'"),
        (["run", "--seed=99999999999999999999"], "expected seed of at most"),
        (["run", "--threads=9999999999"], "expected threads of at most"),
        (["run", "--student.depth=9"], "expected depth of at most 8"),
        (["evaluate", "x", "--images=nope"], "expected images among last, best"),
        (["evaluate", "x", "--protocol=dcc"], "got 'dcc': did you mean 'dc'"),
        (["evaluate", "x", "--architecture=lenett"], "got 'lenett': did you mean 'lenet'"),
        (["evaluate", "x", "--students=0"], "expected students of at least 1"),
        (["evaluate", "x", "--device=gpu"], "expected device among auto, cpu, cuda"),
        (["export", "x", "--to=pngs"], "got 'pngs': did you mean 'png'"),
        (["export", "x"], "expected a value of to, got nothing"),
        (["report"], "expected a value of runs, got nothing"),
        (["experts", "dc/mnst-1"], "dc/mnist-1"),
        (["experts", "--epoch=3"], "got '--epoch': did you mean --epochs"),
        (["experts", "--width=3"], "got '--width': did you mean --student.width"),
        (["experts", "--count=0"], "expected count of at least 1, got 0"),
        (["sample", "runs/x", "--num_images=0"], "expected num_images of at least 1, got 0"),
        (["sample", "runs/x"], "expected a value of num_images, got nothing"),
        (["experts", "--storage=float16"], "expected storage among float32, bfloat16"),
        (["experts", "--data.source=mnits"], "got 'mnits': did you mean 'mnist'"),
        (["experts", "--config", "missing.yaml"], "missing.yaml"),
        (["profile", "dc/mnst-1"], "dc/mnist-1"),
        (["profile", "--max_students=-1"], "expected max_students of at least 0, got -1"),
        (["profile", "--profile_steps=0"], "expected profile_steps of at least 1, got 0"),
        (["profile", "--max_student=3"], "got '--max_student': did you mean --max_students"),
        (["profile", "--config", "missing.yaml"], "missing.yaml"),
        (["baseline", "dc/mnst-1"], "dc/mnist-1"),
        (["baseline", "--candidate=3"], "got '--candidate': did you mean --candidates"),
        (["baseline", "--baselines=[herdin]"], "got 'herdin': did you mean 'herding'"),
        (["baseline", "--baselines=[nearest_neighbour]"], "expected a run folder as against"),
        (["baseline", "--baselines=herding"], "expected baselines in brackets, such as [A, B], got 'herding'"),
        (["baseline", "--protocol=own"], "expected protocol among dc, dsa, default"),
        (["baseline", "--ipc=0"], "expected ipc of at least 1, got 0"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_why(words, expected, capsys):
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert "Traceback" not in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"method:\n  stepz: 5\n", "got 'method.stepz': did you mean method.steps"),
        (b"steps: 5\n", "got 'steps': did you mean method.steps"),
        (b"method: dc\n", "expected options below method in"),
        (b"students: three\n", "expected students of type int, got 'three'"),
        (b"students: -1\n", "expected students of at least 1, got -1"),
        (b"method: [", "expected YAML in"),
        (b"hello", "expected a mapping of options in"),
        (b"\xff\xfe\x00", "expected YAML in"),
        (b"a: &a [*a]\n", "got 'a'"),
        (b"[" * 3000, "expected YAML in"),
        (b"!!python/object/apply:os.system ['true']", "expected YAML in"),
    ],
)
def test_a_wrong_configuration_file_is_named(tmp_path, capsys, text, expected):
    file = tmp_path / "own.yaml"
    file.write_bytes(text)
    assert cli.main(["run", "--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert len(said.splitlines()) == 1


def test_a_failed_run_ends_with_1_and_says_why(tmp_path, capsys):
    words = ["run", "dc/mnist-1", f"--data.root={tmp_path}", f"--output={tmp_path}"]
    assert cli.main(words) == 1
    assert "--data.download true" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path)]) == 1
    assert "expected a run folder" in capsys.readouterr().err


def test_a_traceback_is_shown_when_asked_for(tmp_path):
    with pytest.raises(ValueError, match="expected a run folder"):
        cli.main(["evaluate", str(tmp_path), "--debug"])


def test_what_nobody_expected_is_one_sentence_too(monkeypatch, capsys):
    def broken(words):
        raise KeyError("lost\nkey")

    monkeypatch.setattr(cli, "_env", broken)
    assert cli.main(["env"]) == 1
    said = capsys.readouterr().err
    assert "KeyError" in said
    assert "--debug" in said
    assert len(said.splitlines()) == 1
    monkeypatch.setattr(cli, "_env", lambda words: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.main(["env"]) == 130


def test_presets_are_listed_with_what_they_are(capsys):
    assert cli.main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(presets())
    for method in ("dc", "dsa"):
        for source in ("mnist", "fashionmnist", "svhn", "cifar10", "cifar100"):
            for ipc in (1, 10, 50):
                assert f"{method}/{source}-{ipc}" in presets()
    assert next(line for line in lines if line.startswith("dd/mnist-fixed ")).endswith(
        "mnist, 1 a class, 23600 steps, lenet, protocol own"
    )
    assert all(len(line.split()) > 3 for line in lines)


def test_the_environment_is_described(capsys):
    assert cli.main(["env"]) == 0
    assert "torch" in json.loads(capsys.readouterr().out)["packages"]


def test_help_is_there_and_needs_no_torch(capsys):
    assert cli.main(["--help"]) == 0
    assert "run" in capsys.readouterr().out
    assert cli.main([]) == 2
    assert cli.main(["--version"]) == 0
    code = "import sys; from fastdistill import cli; cli.main(['run', '--help']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
