"""Run folders and pages that the tests of this room share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
import yaml

from fastdistill.config import DataConfig, EvaluationConfig, RunConfig
from fastdistill.method_configs import matching_recipe
from fastdistill.report.curves import curves
from fastdistill.report.figures import image_grid, save_picture

HOSTILE = "<script>alert('x')</script>&\"{{ 7 * 7 }}"
RESULTS: dict[str, Any] = {
    "arms": [
        {
            "arm": "distilled (last)",
            "mean": 0.91734,
            "std": 0.0051,
            "students": 20,
            "images": 10,
            "epochs": 1000,
            "seconds": 41.25,
        },
        {
            "arm": "random real",
            "mean": 0.649,
            "std": 0.035,
            "students": 20,
            "images": 10,
            "epochs": 1000,
            "seconds": 0.25,
        },
        {"arm": "whole", "mean": 0.9961, "std": 0.0, "students": 10, "images": 60000, "epochs": 50, "seconds": 3900.0},
    ],
    "protocol": "dc",
    "architecture": "convnet-3-128",
    "distill_s": 95.4,
    "distill_peak_mb": 1234.5,
    "peak_mb": 12345.6,
    "step_s": 0.0193,
}
ENVIRONMENT = {"cpu": "a CPU", "gpu": {"name": "a GPU", "memory_gb": 1.5}, "argv": [1, 2]}
METRICS = [
    {"step": step, "time_s": 2.0 * step, "outer/loss": 3.0, "perf/step_s": 0.5, "mem/peak_mb": 100.0 + step}
    for step in (10, 20, 30)
]


class Page(HTMLParser):
    """The parts of a page, and that its tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def policy(self) -> str:
        """The content security policy."""
        (found,) = [attrs["content"] for tag, attrs in self.tags if "http-equiv" in attrs]
        return found or ""

    @property
    def links(self) -> list[str]:
        """Everything that the page leads to or shows."""
        return [v or "" for _, attrs in self.tags for key, v in attrs.items() if key in ("src", "href", "srcset")]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.texts).split())


@cache
def drawn_curves() -> bytes:
    """Drawn once: drawing takes longer than all else of a page."""
    return curves(METRICS, "curves")


def run_folder(
    folder: Path,
    *,
    name: str = "dc-mnist-1",
    full: bool = True,
    results: Mapping[str, Any] | None = None,
    **config: Any,
) -> Path:
    """A run folder; what is given replaces values of the configuration and the results."""
    values = RunConfig(
        name="dc-mnist-1",
        data=DataConfig(source="mnist"),
        method=matching_recipe("dc", 1),
        evaluation=EvaluationConfig(protocol="dc"),
    ).as_dict()
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(values | {"name": name} | config, sort_keys=False)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    if full:
        (folder / "results.json").write_text(json.dumps(RESULTS | dict(results or {})))
        (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS) + '{"step"')
        save_picture(folder / "images.png", image_grid(torch.zeros(10, 1, 4, 4), torch.arange(10)))
        (folder / "curves.png").write_bytes(drawn_curves())
    return folder
