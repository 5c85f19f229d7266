import json
import platform
import subprocess
import sys

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


def test_peak_memory_is_that_of_the_process():
    code = (
        "import torch; from fastdistill.loop.environment import peak_memory_mb as peak; cpu = torch.device('cpu');"
        "before = peak(cpu); held = torch.ones(25_000_000); print(peak(cpu) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert 90 < float(done.stdout) < 130, done.stderr
    assert peak_memory_mb(torch.device("cpu")) > 0
