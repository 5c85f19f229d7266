import json

import pytest

from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig, matching_recipe
from fastdistill.loop.evaluation import evaluate_run
from fastdistill.loop.run import run
from fastdistill.synthetic.distilled import load


@pytest.fixture(scope="module", params=[1, 2], ids=["one run", "two runs"])
def folder(request, tmp_path_factory):
    config = RunConfig(
        name="run",
        output=str(tmp_path_factory.mktemp("runs")),
        runs=request.param,
        student=StudentConfig(width=4, depth=2),
        method=matching_recipe("dc", 1, steps=4, real_batch=8),
        evaluation=EvaluationConfig(students=2, random_real=False),
        device="cpu",
    )
    return run(config, judge=False).folder


def test_a_run_is_judged_by_other_students(folder):
    evaluation, line = evaluate_run(
        folder, student={"architecture": "mlp"}, students=3, protocol="dc", epochs=5, device="cpu"
    )
    assert len(evaluation.per_student) == 3 * load(folder).runs
    assert (line["architecture"], line["protocol"], line["epochs"]) == ("mlp", "dc", 5)
    written = [json.loads(text) for text in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert written[-1]["per_student"] == list(evaluation.per_student)
    again, _ = evaluate_run(folder, student={"architecture": "mlp"}, students=3, protocol="dc", epochs=5, device="cpu")
    assert again.per_student == evaluation.per_student


def test_the_runs_own_student_and_protocol_are_the_default(folder):
    evaluation, line = evaluate_run(folder, student={}, students=2, epochs=2, device="cpu")
    assert line["architecture"] == "convnet"
    assert evaluation.protocol == "default"


def test_what_does_not_exist_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match="expected a run folder or a distilled"):
        evaluate_run(tmp_path, student={})
    with pytest.raises(ValueError, match="expected images among last, best"):
        evaluate_run(folder, student={}, images="first")
    with pytest.raises(ValueError, match="at least one student"):
        evaluate_run(folder, student={}, students=0)
    with pytest.raises(ValueError, match="expected a protocol among"):
        evaluate_run(folder, student={}, protocol="mtt", device="cpu")
