"""Pages that need nothing but themselves: text escaped, pictures inside, and only the sorting script allowed to run."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import jinja2

_HERE = Path(__file__).parent
_OPENING, _CLOSING = "<script>", "</script>"


def render(template: str, **values: object) -> bytes:
    """A page.

    Args:
        template: its file beside this one.
        values: what the template shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_uri"] = data_uri
    # the policy names the script by its hash, so that no other text of the page can ever become one
    page = environment.get_template(template).render(script_hash=script_hash(), **values)
    return page.encode()


def refuse_folder(output: Path) -> None:
    """Refuses a folder in the place of a page.

    Raises:
        ValueError: if it is one.
    """
    if output.is_dir():
        raise ValueError(f"expected the name of a page, got the folder {output}: give {output / 'report.html'}")


def script_hash() -> str:
    """The sorting script's hash, as a content security policy wants it."""
    script = (_HERE / "sort.html").read_text(encoding="utf-8").strip()
    content = script.removeprefix(_OPENING).removesuffix(_CLOSING)
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def data_uri(picture: bytes) -> str:
    """A PNG file as a link that holds it."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
