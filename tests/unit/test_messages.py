"""The form of error messages: `cannot <verb> <object>: <cause>; <what to do>`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

import kinetics_fs

ROOT = Path(kinetics_fs.__file__).parent
TREES = {path: ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}

REASONS = {"FetchError", "ArchiveError"}
"""Their text is a cause: it follows a clip or an archive in logs, in tables and in other messages."""
SENTENCES = {"KineticsError", "CatalogError", "StoreError", "MountError", "NoAnswerError"}
"""Their text reaches the user as it is."""
ADVICE = {"SettingError", "UsageError"}
"""The user has to change something, and the text says what."""

RULED_OUT = re.compile(
    r"\b(we|us|our|ours|he|him|his|anew|makes? no sense|is told|be had|(is|are|was|were) here|that (is|are) none)\b"
    r"|…|\.\.\."
)


class Message(NamedTuple):
    """A message in the source; `{}` replaces what is formatted into it."""

    where: str
    error: str
    text: str


def messages() -> Iterator[Message]:
    """Yield the messages of all errors that the package creates, unless the whole text comes from elsewhere."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            error = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
            arguments = node.args[1:] if error == "FetchError" else node.args
            if error in REASONS | SENTENCES | ADVICE and arguments:
                text = template(arguments[0])
                if text != "{}":
                    yield Message(f"{path.relative_to(ROOT)}:{node.lineno}", error, text)


def template(node: ast.expr) -> str:
    """Return the text of a literal or an f-string, with `{}` for every other expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    return "{}"


MESSAGES = list(messages())


def test_there_are_messages() -> None:
    assert {message.error for message in MESSAGES} == REASONS | SENTENCES | ADVICE
    assert len(MESSAGES) > 150


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.where)
def test_a_message_is_one_plain_clause(message: Message) -> None:
    assert not RULED_OUT.search(message.text), message
    assert not message.text.endswith((".", "!")), message
    assert message.text == " ".join(message.text.split()), message
    assert not re.match(r"(?!YouTube)[A-Z][a-z]", message.text), message


@pytest.mark.parametrize(
    "message", [one for one in MESSAGES if one.error in SENTENCES | ADVICE], ids=lambda message: message.where
)
def test_a_message_names_what_failed_and_why(message: Message) -> None:
    failed, colon, cause = message.text.partition(": ")
    assert re.match(r"cannot [a-z]+( \S|$)|\{\}$", failed), message
    assert colon and cause, message


@pytest.mark.parametrize("message", [one for one in MESSAGES if one.error in ADVICE], ids=lambda message: message.where)
def test_a_message_about_usage_says_what_to_do(message: Message) -> None:
    assert "; " in message.text, message


COUNTED = re.compile(r" (clips|files|archives|indexes|classes|folders|mounts|jobs|days)\b(?!/)")


def counted_by_hand() -> Iterator[str]:
    """Yield each place that puts a plural after a number. Limits and the constants of the demo are never 1."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.JoinedStr):
                continue
            for number, text in pairwise(node.values):
                if isinstance(number, ast.FormattedValue) and COUNTED.match(template(text)):
                    what = ast.unparse(number.value)
                    if "limit" not in what and not re.search(r"[A-Z]{3}", what):
                        yield f"{path.relative_to(ROOT)}:{node.lineno}: {what}{template(text)}"


def test_numbers_have_their_nouns_in_the_singular_too() -> None:
    assert list(counted_by_hand()) == [], "util.text.count knows the singular"
