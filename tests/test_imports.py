"""The house's rules about imports, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fastdistill"
# a room may import the rooms on its right; the neutral ones may be imported by all
ROOMS = {
    "cli": {
        "checkout",
        "talkative",
        "comparison_file",
        "options",
        "api",
        "loop",
        "report",
        "evaluation",
        "methods",
        "students",
        "synthetic",
        "data",
        "augmentation",
        "derivatives",
    },
    "api": {"talkative", "loop", "evaluation", "methods", "students", "synthetic", "data", "derivatives"},
    "loop": {"report", "evaluation", "methods", "students", "synthetic", "data", "augmentation", "derivatives"},
    "report": {"talkative"},
    "evaluation": {"students", "synthetic", "augmentation", "data", "derivatives"},
    "methods": {"students", "augmentation", "derivatives"},
    "synthetic": {"augmentation", "data"},
    "augmentation": set(),
    "students": {"derivatives"},
    "data": set(),
    "derivatives": set(),
    "comparison_file": {"options"},
    "options": set(),
    "checkout": set(),
    "parser": set(),
    "comparison_config": set(),
    "baseline_config": set(),
    "profile_config": set(),
    "config": set(),
    "experts_config": set(),
    "method_configs": set(),
    "generator_config": set(),
    "checks": set(),
    "failures": set(),
    "draws": set(),
    "files": set(),
    "phases": set(),
    "progress": set(),
    "talkative": {"progress"},
    "weight_norm": set(),
}
NEUTRAL = {
    "baseline_config",
    "comparison_config",
    "config",
    "experts_config",
    "generator_config",
    "method_configs",
    "checks",
    "draws",
    "failures",
    "files",
    "parser",
    "phases",
    "profile_config",
    "progress",
    "weight_norm",
}


def imported(path):
    """Modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_run_one_way():
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room.startswith("__"):
            continue
        for module in imported(path):
            parts = module.split(".")
            if parts[0] == "fastdistill" and len(parts) > 1 and parts[1] in ROOMS:
                assert parts[1] in ROOMS[room] | NEUTRAL | {room}, f"{path} imports {module}"


def test_kernels_know_nothing_of_the_engine():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not any(module.split(".")[0] == "fastdistill" for module in imported(path)), path


def test_the_textbook_knows_nothing_of_the_engine():
    for path in (ROOT / "bench" / "naive").rglob("*.py"):
        assert not any(module.startswith("fastdistill") for module in imported(path)), path


def test_nothing_is_differentiated_twice_through_a_graph():
    for folder in (PACKAGE, ROOT / "kernels", ROOT / "bench"):
        for path in folder.rglob("*.py"):
            textbook = path.is_relative_to(ROOT / "bench" / "naive")
            assert textbook or "create_graph" not in path.read_text(), path


def test_no_pickle_is_read():
    for path in PACKAGE.rglob("*.py"):
        assert not {"pickle", "torch.load"} & set(imported(path)), path
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith(("torch.load", "np.load")):
                continue
            safe = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}[ast.unparse(node.func)]
            given = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg == safe[0]}
            assert given == {safe[0]: safe[1]}, f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "module", ["fastdistill.api", "fastdistill.loop.run", "fastdistill_kernels", "bench.workloads"]
)
def test_only_the_command_line_needs_its_library(module):
    code = f"import sys; sys.modules['jsonargparse'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_no_torch():
    code = "import sys, fastdistill; fastdistill.presets(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
