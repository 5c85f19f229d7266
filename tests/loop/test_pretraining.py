import torch
from safetensors.torch import load_file

from fastdistill.comparison_config import ComparisonConfig, PretrainingConfig
from fastdistill.config import RunConfig, StudentConfig
from fastdistill.loop.pretraining import pretrain
from fastdistill.progress import Silent
from fastdistill.students.ensemble import Ensemble


def comparison(folder, **student):
    pool = str(folder / "mine" / "pretrained")
    wide = StudentConfig(depth=1, width=4, initialization="pretrained", pretrained=pool, **student)
    arms = {"plain": RunConfig(student=StudentConfig(depth=1, width=2)), "begun": RunConfig(student=wide, device="cpu")}
    return ComparisonConfig(name="mine", output=str(folder), arms=arms, pretraining=PretrainingConfig(networks=2))


def test_networks_are_those_of_the_arm_that_begins_with_them(tmp_path):
    for norm in ("instance", "batch"):
        config = comparison(tmp_path / norm, norm=norm)
        pretrain(config, Silent())
        files = sorted(config.pretrained.iterdir())
        assert [path.name for path in files] == ["00.safetensors", "01.safetensors"]
        ensemble = Ensemble(config.arms["begun"].student, (1, 8, 8), 10, seed=0, dtype=torch.float32)
        drawn = ensemble.draw(0, torch.arange(20))
        assert len({tuple(row.tolist()) for row in drawn.weights}) == 2
        names = set(load_file(files[0]))
        assert any("running_mean" in name for name in names) == (norm == "batch")


def test_networks_that_are_there_are_not_trained_again(tmp_path):
    config = comparison(tmp_path)
    pretrain(config, Silent())
    before = {path: path.stat().st_mtime_ns for path in config.pretrained.iterdir()}
    pretrain(config, Silent())
    assert before == {path: path.stat().st_mtime_ns for path in config.pretrained.iterdir()}
    (config.pretrained / "01.safetensors").unlink()
    content = (config.pretrained / "00.safetensors").read_bytes()
    pretrain(config, Silent())
    assert (config.pretrained / "00.safetensors").read_bytes() == content
    assert (config.pretrained / "01.safetensors").exists()
