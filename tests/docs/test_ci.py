"""The workflow for users' CI is quoted whole, is valid, and asks for nothing that the benchmarks do not have."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from bench import gate
from bench.__main__ import _parse

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "ci-workflow.yml").read_text(encoding="utf-8")
PAGE = (DOCS / "ci.md").read_text(encoding="utf-8")
JOBS = ("gate", "warn", "weekly")


@pytest.fixture(scope="module")
def workflow():
    return yaml.safe_load(TEXT)


def steps(workflow, job, word):
    return [step for step in workflow["jobs"][job]["steps"] if word in step.get("uses", "") + step.get("run", "")]


def bench_commands(text):
    """The words after ``fastdistill bench``, without what a pipe does with its output."""
    return [shlex.split(command.partition(" | ")[0]) for command in re.findall(r"fastdistill bench ([^\n`]+)", text)]


def test_the_page_links_the_workflow_and_quotes_it_exactly():
    assert "](ci-workflow.yml)" in PAGE
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert blocks == [TEXT]


def test_it_runs_on_pull_requests_and_by_the_week(workflow):
    triggers = workflow[True]  # YAML 1.1 reads the key "on" so
    assert set(triggers) == {"pull_request", "schedule", "workflow_dispatch"}
    (schedule,) = triggers["schedule"]
    assert len(schedule["cron"].split()) == 5
    assert workflow["permissions"] == {"contents": "read"}
    assert set(workflow["jobs"]) == set(JOBS)


@pytest.mark.parametrize("job", JOBS)
def test_every_job_has_the_history_a_cache_and_an_artefact(workflow, job):
    (checkout,) = steps(workflow, job, "actions/checkout")
    assert checkout["with"]["fetch-depth"] == 0
    (python,) = steps(workflow, job, "actions/setup-python")
    assert python["with"]["cache"] == "pip"
    assert (DOCS.parent / python["with"]["cache-dependency-path"]).is_file()
    (upload,) = steps(workflow, job, "actions/upload-artifact")
    assert upload["if"] == "always()"
    (bench,) = steps(workflow, job, "fastdistill bench")
    assert upload["with"]["path"] in bench["run"]
    for step in workflow["jobs"][job]["steps"]:
        assert len(step.keys() & {"uses", "run"}) == 1
        assert "${{" not in step.get("run", "")  # names of branches are anybody's: they go by the environment


def test_committed_figures_gate_and_times_only_warn_on_pull_requests(workflow):
    (gating,) = steps(workflow, "gate", "fastdistill bench")
    assert "if" not in workflow["jobs"]["gate"]
    assert "--compare bench/baseline.json" in gating["run"]
    assert "--json gate.json" in gating["run"]
    (warning,) = steps(workflow, "warn", "fastdistill bench")
    assert workflow["jobs"]["warn"]["if"] == "github.event_name == 'pull_request'"
    assert warning["continue-on-error"] is True
    assert "git merge-base" in warning["run"]
    (weekly,) = steps(workflow, "weekly", "fastdistill bench")
    assert workflow["jobs"]["weekly"]["if"] == "github.event_name != 'pull_request'"
    for job, step in (("gate", gating), ("weekly", weekly)):
        assert "continue-on-error" not in {**workflow["jobs"][job], **step}
    # a pipe to tee would otherwise hide the exit code
    assert workflow["defaults"]["run"]["shell"] == "bash"


def test_every_command_is_one_that_the_benchmarks_understand(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    commands = [words for text in (TEXT, PAGE) for words in bench_commands(text) if words != ["--help"]]
    assert len(commands) == 9
    for words in commands:
        options = _parse(words)
        assert options.compare or options.base or options.update
    for option in re.findall(r"`(--[a-z]+ [^`]+)`", PAGE):
        _parse(shlex.split(option))


def test_its_torch_is_one_that_the_baseline_has_counters_of():
    (version,) = set(re.findall(r'"torch==([\d.]+)\.\*"', TEXT))
    committed = json.loads(gate.COMMITTED.read_text())["exact"]
    assert version in committed["short-cpu"]
    assert f"such as {version} (patch releases share them)" in " ".join(PAGE.split())


def test_the_page_names_the_exit_codes():
    codes = [int(code) for code in re.findall(r"^\| (\d) \|", PAGE, flags=re.MULTILINE)]
    assert codes == [gate.DONE, 1, 2, gate.REGRESSION, gate.NO_BASELINE]
    assert f"{gate._SLACK} times what" in PAGE
