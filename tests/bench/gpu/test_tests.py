import sys

import pytest

from bench.gpu.tests import as_markdown, main, summary

REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="one" />
<testcase classname="tests.a" name="two"><failure message="no">assert 0</failure></testcase>
<testcase classname="tests.a" name="three"><skipped message="needs a CUDA device" /></testcase>
<testcase classname="" name="tests.b"><error>E ModuleNotFoundError: No module named 'scipy.stats'</error></testcase>
<testcase classname="" name="tests.d"><error>E ModuleNotFoundError: No module named 'fastdistill.x'</error></testcase>
<testcase classname="" name="tests.c"><error>E ImportError: cannot import name 'x'</error></testcase>
</testsuite></testsuites>"""


def test_outcomes_failures_and_missing_libraries(tmp_path):
    path = tmp_path / "tests.xml"
    path.write_text(REPORT)
    found = summary(path)
    assert found["outcomes"] == {"passed": 1, "failure": 1, "skipped": 1, "left out": 1, "error": 2}
    assert found["failed"] == ["tests.a::two", "::tests.d", "::tests.c"]
    assert found["needed"] == ["scipy"]
    text = as_markdown(found)
    assert text.startswith("Tests on the device: 2 error, 1 failure, 1 left out, 1 passed, 1 skipped.")
    assert "for want of scipy." in text
    assert "- tests.a::two" in text


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 0), (2, 1), (124, 1)])
def test_a_run_that_was_cut_off_does_not_pass(tmp_path, monkeypatch, code, expected):
    (tmp_path / "tests.xml").write_text('<testsuites><testcase classname="a" name="b" /></testsuites>')
    monkeypatch.setattr(sys, "argv", ["tests", str(tmp_path), str(code)])
    assert main() == expected
    assert ("cut off" in (tmp_path / "tests.md").read_text()) == bool(expected)


def test_a_run_without_a_report_fails_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tests", str(tmp_path), "137"])
    assert main() == 1
    assert capsys.readouterr().err.startswith("expected pytest to leave")
