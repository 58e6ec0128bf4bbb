"""Reads the documents: their blocks of code, links, headings, and the commands that they name. Runs nothing.

A block in bash or Python is run by tests/test_docs.py unless the line before it is one of

    <!-- test: skip, REASON -->      never run: needs a GPU, the network, hours
    <!-- test: slow, REASON -->      run with SCTRT_SLOW_DOCS=1
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [*GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
RUN_LANGUAGES = ("bash", "python")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- test: (skip|slow), (\S.*) -->\n\Z")
SEPARATORS = set("();<>|&")
SHELL_WORDS = ("do", "then", "else", "time", "exec")


@dataclass(frozen=True)
class Block:
    """Code between fences."""

    line: int  # of its first line
    language: str
    text: str
    kind: str  # "run", "skip" or "slow"


def blocks(document):
    text = document.read_text()
    found = []
    for match in FENCE.finditer(text):
        mark = MARK.search(text[: match.start()])
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(line, match[1], match[2], mark[1] if mark else "run"))
    return found


def prose(document):
    """All but the blocks."""
    return FENCE.sub("", document.read_text())


def code_spans(document):
    """`Code` within sentences, on one line."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(document))]


def links(document):
    """Targets of links and pictures, without those of the web."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(document))
    return [target for target in targets if not re.match(r"https?:", target)]


def anchors(document):
    """What GitHub calls the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(script):
    """The simple commands of a shell script, as lists of words; variables have the value 1."""
    script = re.sub(r"\$\w+", "1", script.replace("\\\n", " "))
    for line in script.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split, words = True, []
        for token in [*lexer, ";"]:
            if set(token) <= SEPARATORS:
                if words:
                    yield words
                words = []
            elif words or (token not in SHELL_WORDS and not re.fullmatch(r"\w+=.*", token)):
                words.append(token)


def tree_of(document):
    """Of the README's annotated tree: (folder, a name or pattern in it) for all that its lines name."""
    text = next(block.text for block in blocks(document) if block.text.startswith("csrc/"))
    above: list[tuple[int, str]] = []  # indentation, folder
    found = []
    for line in text.splitlines():
        indentation = len(line) - len(line.lstrip())
        while above and above[-1][0] >= indentation:
            above.pop()
        first, *_ = line.split()
        if first.endswith("/"):
            found.append(("/".join(folder for _, folder in above), first[:-1]))
            above.append((indentation, first[:-1]))
            line = line.replace(first, "", 1)
        here = "/".join(folder for _, folder in above)
        found += [
            (here, named.rstrip("/")) for named in re.findall(r"[\w*./-]+\.(?:py|h|cpp|cu|sh|json)\b|\w+/(?=\s)", line)
        ]
    return found
