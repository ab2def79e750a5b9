"""The documentation as tests read it: pages and their code blocks."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n\n?)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: Path
    line: int
    """Where its text begins, from 1."""
    language: str
    text: str
    not_run: str
    """Why no test runs it; empty for a block that one runs."""
    before: str
    """The paragraph before it."""

    @property
    def commands(self) -> list[str]:
        """The commands of a console session."""
        joined = self.text.replace("\\\n", " ")
        return [line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ ")]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages(*, generated: bool = False) -> list[Path]:
    """List the pages of the documentation, with or without the generated ones."""
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    site = sorted((ROOT / "docs").rglob("*.md"))
    return top + [page for page in site if generated or page.parent.name != "reference"]


def blocks(page: Path) -> list[Block]:
    """Read the code blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(
            page=page,
            line=text[: match.start("text")].count("\n") + 1,
            language=match["language"],
            text=match["text"],
            not_run=match["reason"] or "",
            before=text[: match.start()].rstrip().rpartition("\n\n")[2],
        )
        for match in _BLOCK.finditer(text)
    ]


def all_blocks(*languages: str) -> list[Block]:
    """Read the code blocks of all pages in some languages."""
    return [block for page in pages() for block in blocks(page) if block.language in languages]
