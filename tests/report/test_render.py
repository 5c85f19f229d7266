from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from fastdistill.report.compare import write_comparison
from fastdistill.report.render import data_uri, script_hash
from tests.report.pages import RESULTS, Page, run_folder

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def page_of(tmp_path: Path) -> str:
    """A page of runs whose accuracies, names and times are ordered differently."""
    folders = []
    for name, mean, seconds in (("b", 0.9, 5.0), ("A", 0.10, 70.0), ("c", 0.095, 3600.0), ("d", None, 9.0)):
        arms = [RESULTS["arms"][0] | {"mean": mean}]
        folders.append(run_folder(tmp_path / name, name=name, results={"arms": arms, "distill_s": seconds}))
    return write_comparison(folders, tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_policy_names_the_script_that_stands_on_the_page(tmp_path: Path) -> None:
    page = Page(page_of(tmp_path))
    digest = hashlib.sha256(page.scripts[0].encode()).digest()
    assert len(page.scripts) == 1 and script_hash() == f"sha256-{base64.b64encode(digest).decode()}"
    assert f"script-src '{script_hash()}'" in page.policy


def test_a_picture_is_embedded_whole() -> None:
    assert base64.b64decode(data_uri(b"\x89PNG...").removeprefix("data:image/png;base64,")) == b"\x89PNG..."


def opened(tmp_path: Path, page: str, script: str = "", *, allowed: bool = True) -> Page:
    """The page as a browser without a network has it after running one more script."""
    assert BROWSER is not None
    if allowed:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        page = page.replace("script-src ", f"script-src 'sha256-{digest}' ")
    (tmp_path / "opened.html").write_text(
        page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8"
    )
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path / 'opened.html'}"]
    return Page(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)


def rows(page: Page) -> str:
    """The names of the runs in the order of the first table."""
    keys = [attrs["data-sort"] or "" for tag, attrs in page.tags if tag == "td" and "data-sort" in attrs]
    return "".join(key[0] for key in keys if key.endswith(" distilled (last)"))


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize(
    ("column", "clicks", "order", "state"),
    [
        (0, 1, "abcd", "ascending"),
        (1, 1, "cabd", "ascending"),  # 9.5, 10, 90, and what is not measured at the end
        (1, 2, "bacd", "descending"),
        (12, 1, "bdac", "ascending"),  # seconds, minutes, hours
    ],
)
def test_a_click_on_a_heading_sorts_the_rows(tmp_path: Path, column: int, clicks: int, order: str, state: str) -> None:
    text = page_of(tmp_path)
    assert rows(Page(text)) == "bacd"
    click = f"document.querySelectorAll('th button')[{column}].click();"
    page = opened(tmp_path, text, clicks * click)
    assert rows(page) == order
    headings = [attrs for tag, attrs in page.tags if tag == "th" and "scope" in attrs]
    assert [attrs.get("aria-sort") for attrs in headings[:17]] == [state if i == column else None for i in range(17)]
    assert [tag for tag, _ in page.tags].count("button") == len(headings)


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_the_browser_runs_no_other_script(tmp_path: Path) -> None:
    text, script = page_of(tmp_path), "document.body.append('ran');"
    assert "ran" in opened(tmp_path, text, script).words.split()
    assert "ran" not in opened(tmp_path, text, script, allowed=False).words.split()


def test_a_table_is_whole_without_the_script(tmp_path: Path) -> None:
    page = Page(page_of(tmp_path))
    assert "button" not in {tag for tag, _ in page.tags}
    assert json.dumps(rows(page)) == '"bacd"' and "accuracy (%)" in page.texts
