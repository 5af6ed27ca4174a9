"""Tests that the prose of the program and of its documents avoids wording that makes readers stumble.

`CONTRIBUTING.md` has the rules; the patterns here find samples of what breaks them. If a match is deliberate, add it to
`DELIBERATE`.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]


class Rule(NamedTuple):
    """A pattern that a line of prose must not match, with the reason."""

    name: str
    pattern: str
    reason: str


RULES = [
    Rule(
        "we",
        r"(?<!f )\b(we|us(?!-)|our|ours|ourselves)\b",
        "name the program or its part: the mount, the store",
    ),
    Rule("he", r"\b(he|him|his|himself)\b", "a user is 'you', 'the user' or 'they'"),
    Rule("who", r"\b(for|to|by|of|from|than|with) who\b|\bwhoever\b", "name the process or the person"),
    Rule("what", r"^(What|Who) (is|was|are|has|had|does|it|they|a|an|the)\b(?!.*\?)", "begin with the thing itself"),
    Rule("here", r"\b(is|are|was|were|not|already) here\b", "say that it is cached, or where it is"),
    Rule("had", r"\b(be|was|were) had\b", "say 'unavailable', 'fetched' or 'downloaded'"),
    Rule("anew", r"\banew\b", "say 'again'"),
    Rule("go on with", r"\b(go|goes|going|gone|went) on with\b", "say 'resume' or 'continue'"),
    Rule("told", r"\b(is|are|was|were|be) told\b|\btold of\b", "say 'shown', 'reported' or 'notified'"),
    Rule("sense", r"\bmakes? no sense\b|\bthat (is|are) none\b", "say 'invalid', and why"),
    Rule("for", r", for (it|they|there|otherwise|then) \w+", "say 'because', or begin a new sentence"),
    Rule("Of the", r"(^|(?<=[.;] ))Of (a|an|the|all|each|these|those|this|two|it|its)\b", "put the subject first"),
    Rule("stands", r"\bstands? (in|there)\b", "say 'is in' or 'contains'"),
    Rule("nobody", r"\b(nobody|somebody)\b", "name the process or the person, or use the passive"),
    Rule("archaic", r"\b(lest|thereby|whereby|wherein|thereof|hither|thither|nought)\b", "use today's words"),
    Rule("mend", r"\bmend(s|ed|ing)?\b", "say 'fix' or 'repair'"),
]

DELIBERATE = {
    "CONTRIBUTING.md": ['"we"'],
    "kinetics_fs/sources/youtube/errors.py": ["content from somebody, who"],  # replaces a name in a text of YouTube
}
"""File → parts of lines that may match a rule."""

FILES = sorted(
    path
    for pattern in ("kinetics_fs/**/*.py", "kinetics_fs/**/*.j2", "docs/*.md", "*.md")
    for path in ROOT.glob(pattern)
)


def prose_of_python(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of the comments and strings of a module, with their numbers."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, re.sub(r"^\s*[rbf]*[\"'#]+\s*", "", line)


def prose_of_document(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a document, with their numbers; without headings and code blocks."""
    in_code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and not line.startswith("#"):
            yield number, re.sub(r"^[\s>|*\-0-9.]+", "", line)


def broken_rules(line: str) -> list[Rule]:
    """Return the rules that a line of prose breaks. Quoted code does not count."""
    prose = re.sub(r"`[^`]*`", "", line)
    return [rule for rule in RULES if re.search(rule.pattern, prose)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_keeps_the_rules(path: Path) -> None:
    name, text = str(path.relative_to(ROOT)), path.read_text()
    lines = prose_of_python(text) if path.suffix == ".py" else prose_of_document(text)
    found = [
        f"{name}:{number}: '{rule.name}': {rule.reason}: {line}"
        for number, line in lines
        for rule in broken_rules(line)
        if not any(part in line for part in DELIBERATE.get(name, ()))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        ("The clip is here, and we keep it", ["we", "here"]),
        ("a copy for who waits for it", ["who"]),
        ("What is in the cache stays", ["what"]),
        ("Of the clips, half are cached", ["Of the"]),
        ("It is opened anew, for it was moved", ["anew", "for"]),
        ("Two clips could not be had", ["had"]),
        ("Return the size of a clip, in bytes. What happens next?", []),
        ("For a cached clip, the size is exact; `what we call` a size is in bytes.", []),
    ],
)
def test_rules_find_examples(line: str, broken: list[str]) -> None:
    assert [rule.name for rule in broken_rules(line)] == broken


def test_prose_of_python_is_comments_and_strings_only() -> None:
    text = 'def us(he):\n    """Return it."""\n    return he  # why\n'
    assert list(prose_of_python(text)) == [(2, 'Return it."""'), (3, "why")]
