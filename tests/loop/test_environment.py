import json
import platform

import torch

from fastdistill.loop.environment import describe_environment, peak_memory_mb


def test_the_environment_names_what_decides_speed_and_bits():
    found = json.loads(json.dumps(describe_environment()))
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] >= 1
    assert found["memory_gb"] > 0
    assert ("gpu" in found) == torch.cuda.is_available()


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory_mb(torch.device("cpu"))
    held = torch.ones(int(before * 1e6 / 4) + 10_000_000)  # more than all before
    assert peak_memory_mb(torch.device("cpu")) > before + 30
    assert held.numel() > 0
