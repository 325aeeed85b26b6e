"""Find the words to avoid, which the last table of docs/style.md lists.

python docs/prose.py README.md docs src    # files and folders; prints file:line: phrase, and what to write
"""

import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

STYLE = Path(__file__).parent / "style.md"
HEADING = "## Words to avoid"
CODE = re.compile(r"^```.*?^```|^ {4,}(?![-*\d]).*?$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
"""Code in Markdown: fenced, indented (but not a nested list), or in backquotes."""


def rules() -> dict[re.Pattern[str], str]:
    """Return a pattern for each phrase to avoid, with what to write instead."""
    table = STYLE.read_text("utf-8").partition(HEADING)[2]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE)[2:]
    return {pattern(phrase): instead for phrases, instead in rows for phrase in phrases.split(", ")}


def pattern(phrase: str) -> re.Pattern[str]:
    """Return a pattern for a phrase as whole words, at the start of a sentence or not, across line ends.

    Further letters keep their case: prose about Python's ``None`` is fine.
    """
    words = r"\s+".join(map(re.escape, phrase.split()))
    return re.compile(rf"\b[{phrase[0].upper()}{phrase[0]}]{words[1:]}\b")


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the pieces of prose in a file, each with its first line."""
    text = path.read_text("utf-8")
    if path.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if tokenize.tok_name[token.type] in ("STRING", "COMMENT", "FSTRING_MIDDLE"):
                yield token.start[0], token.string
        return
    if path.resolve() == STYLE:
        text = text.partition(HEADING)[0]
    # Code becomes as many line ends as it has, to keep the lines' numbers.
    yield 1, CODE.sub(lambda code: "\n" * code[0].count("\n") or "`", text)


def find(paths: Sequence[Path]) -> list[str]:
    """Return a line for each phrase to avoid in files, and in the Markdown and Python files of folders."""
    known = rules()
    files = [
        file
        for path in paths
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.suffix in (".md", ".py")
    ]
    lines = []
    for file in files:
        for first, text in prose(file):
            for phrase, instead in known.items():
                for found in phrase.finditer(text):
                    line = first + text.count("\n", 0, found.start())
                    said = " ".join(found[0].split())
                    lines.append(f"{file}:{line}: '{said}': write {instead}")
    return lines


if __name__ == "__main__":
    lines = find([Path(name) for name in sys.argv[1:]])
    print(*lines, sep="\n", end="\n" if lines else "")
    sys.exit(bool(lines))
