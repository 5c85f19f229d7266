"""Parsers of options, on the command line and in files, with complaints of one sentence. Nothing here imports torch.

Wrong keys are found here rather than by jsonargparse, to name the nearest valid ones.
"""

from __future__ import annotations

import difflib
import re
import reprlib
import sys
from argparse import Action
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import SUPPRESS, ArgumentParser, DefaultHelpFormatter, Namespace

# what jsonargparse and argparse say, and what users are told
_COMPLAINTS = [
    (re.compile(pattern), sentence)
    for pattern, sentence in (
        (r'Parser key "(?P<key>\S+)": Expected an? <class \'tuple\'>\. Got value: (?P<value>.*)',
         "expected {key} in brackets, such as [A, B], got '{value}'"),
        (r'Parser key "(?P<key>\S+)": Expected an? <class \'(?P<type>\w+)\'>\. Got value: (?P<value>.*)',
         "expected {key} of type {type}, got '{value}'"),
        (r'Parser key "(?P<key>\w+)": Unable to load config (?P<value>\S+)',
         "expected options below {key}, got {value}: write --{key}.NAME=VALUE"),
        (r"argument (?P<key>\S+): expected one argument", "expected a value after {key}, got none"),
        (r"unrecognized arguments: (?P<value>.*)", "expected options only, got '{value}'"),
        (r"the following arguments are required: (?P<key>.*)", "expected a value of {key}, got nothing"),
    )
]  # fmt: skip


class Parser(ArgumentParser):
    """A parser of one verb."""

    where = ""  # stands what it parses, if not on the command line

    def parse(self, words: Sequence[str]) -> Namespace:
        """Parses the words of a verb.

        Raises:
            SystemExit: with code 2, after one sentence on stderr, for wrong ones; with 0 after ``--help``.
        """
        valid = {word for action in self._actions for word in action.option_strings}
        groups = {word.rpartition(".")[0] for word in valid}
        for word in words:
            name = word.partition("=")[0]
            if name.startswith("--") and len(name) > 2 and name not in valid:
                self.error(unknown("an option", name, sorted(valid - groups), f"{self.prog} --help"))
        return self.parse_args(list(words))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Says what is wrong in one sentence and exits with 2."""
        message = " ".join(message.split())
        for pattern, sentence in _COMPLAINTS:
            if found := pattern.search(message):
                message = sentence.format(**found.groupdict())
                break
        hint = "" if message.startswith("expected") and ": " in message else f": see {self.prog} --help"
        print(f"{self.prog}: {message}{self.where}{hint}", file=sys.stderr)
        raise SystemExit(2)


class Terse(DefaultHelpFormatter):
    """Help of many options on one screen: names and defaults, no types."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)  # type: ignore[no-untyped-call]

    def _format_action_invocation(self, action: Action) -> str:
        return ", ".join(action.option_strings)

    def _get_help_string(self, action: Action) -> str:
        shown = action.default not in (None, "", (), SUPPRESS)
        return f"{action.help} ({action.default})" if shown else action.help or ""


def read_options(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: for a file that cannot be read or is no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"expected a YAML file at {path}, got {error.strerror}: correct the path") from error
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
        cause = " ".join(str(error).split())
        raise ValueError(f"expected YAML in {path}, got something else ({cause}): correct the file") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"expected a mapping of options in {path}, got {type(content).__name__}: write lines of `name: value`"
        )
    return content


def check_keys(
    content: Mapping[Any, Any],
    where: str,
    valid: Sequence[str],
    lister: str,
) -> None:
    """Refuses options that have a key which no configuration has.

    Args:
        content: the options, nested once.
        where: they stand.
        valid: the keys there are, dotted.
        lister: the command that lists them.

    Raises:
        ValueError: saying which, and where it stands.
    """
    groups = {name.partition(".")[0] for name in valid if "." in name}
    for name, value in keys(content):
        if name in groups:
            raise ValueError(
                f"expected options below {name} in {where}, got {reprlib.repr(value)}: indent them as `name: value`"
            )
        if name not in valid:
            raise ValueError(unknown(f"a key in {where}", name, valid, lister))


def keys(values: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a mapping of at most two levels."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", content) for inner, content in value.items())
        else:
            yield str(name), value


def unknown(what: str, name: str, valid: Sequence[str], lister: str) -> str:
    """The complaint about a name that is not valid, with the nearest ones or the command that lists them."""
    near = [key for key in valid if key.rpartition(".")[2] == name.lstrip("-")]  # the right key without its group
    near = near or difflib.get_close_matches(name, valid, n=3)
    hint = f"did you mean {' or '.join(near)}" if near else f"see {lister}"
    return f"expected {what} that fastdistill knows, got {name!r}: {hint}"
