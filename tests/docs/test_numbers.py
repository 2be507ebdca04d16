"""What README shows of results and speed is what docs say, and docs link to files that exist."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NUMBER = re.compile(r"-?\d[\d,.]*\d|\d")


def table(heading):
    """The cells with numbers of README's table under a heading, its first column left out."""
    section = (ROOT / "README.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    return [cell.strip("*| ") for row in rows[2:] for cell in row[1:] if NUMBER.search(cell)]


@pytest.mark.parametrize(("heading", "page"), [("Results", "results"), ("Speed", "speed")])
def test_numbers_of_readme_stand_in_docs(heading, page):
    numbers = set(NUMBER.findall((ROOT / f"docs/{page}.md").read_text()))
    cells = table(heading)
    assert len(cells) > 10
    for cell in cells:
        missing = [n for n in NUMBER.findall(cell) if n not in numbers]
        assert not missing, f"{cell}: {missing}"


def test_readme_can_be_read_in_a_minute():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], ids=lambda page: page.name
)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#]+)[)#]", page.read_text()):
        if "://" not in link and link:
            assert (page.parent / link).exists(), link
