"""What the guides promise of the repository's own files."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests/paper/vectors"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_the_numbers_of_the_authors_code_are_small():
    assert sum(path.stat().st_size for path in VECTORS.iterdir()) <= 1_500_000


def test_the_hook_looks_at_the_prose_that_make_check_looks_at():
    hook = re.search(r"id: prose.*?files: (\S+)", (ROOT / ".pre-commit-config.yaml").read_text("utf-8"), re.S)
    checked = re.search(r"^PROSE := (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.M)
    patterns, folders = re.fullmatch(r"\$\(wildcard (.*)\) (.*)", checked[1]).groups()
    files = [path for pattern in patterns.split() for path in ROOT.glob(pattern)]
    files += [path for folder in folders.split() for path in (ROOT / folder).rglob("*")]
    names = [str(path.relative_to(ROOT)) for path in files if path.suffix in (".md", ".py")]
    assert len(names) > 100
    assert not [name for name in names if not re.search(hook[1], name)]
