from bench.gpu.tests import as_markdown, summary

REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="one" />
<testcase classname="tests.a" name="two"><failure message="no">assert 0</failure></testcase>
<testcase classname="tests.a" name="three"><skipped message="needs a CUDA device" /></testcase>
<testcase classname="" name="tests.b"><error>E ModuleNotFoundError: No module named 'scipy.stats'</error></testcase>
<testcase classname="" name="tests.c"><error>E ImportError: cannot import name 'x'</error></testcase>
</testsuite></testsuites>"""


def test_outcomes_failures_and_missing_libraries(tmp_path):
    path = tmp_path / "tests.xml"
    path.write_text(REPORT)
    found = summary(path)
    assert found["outcomes"] == {"passed": 1, "failure": 1, "skipped": 1, "left out": 1, "error": 1}
    assert found["failed"] == ["tests.a::two", "::tests.c"]
    assert found["needed"] == ["scipy"]
    text = as_markdown(found)
    assert text.startswith("Tests on the device: 1 error, 1 failure, 1 left out, 1 passed, 1 skipped.")
    assert "for want of scipy." in text
    assert "- tests.a::two" in text
