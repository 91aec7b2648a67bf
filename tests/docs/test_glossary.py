# SPDX-License-Identifier: Apache-2.0
"""The site shows tables of terms as lists of definitions, and other tables as they are."""

from __future__ import annotations

from pyvmm_docs.glossary import HEADINGS, with_definitions
from tests.project.sources import ROOT
from tests.project.test_words import GLOSSARY, rows

PHRASES = '| Phrase | Instead |\n| --- | --- |\n| "a phrase" | another |\n'


def table(*lines: str) -> str:
    return "\n".join([f"| {' | '.join(HEADINGS)} |", "| --- | --- | --- | --- | --- |", *lines, ""])


def test_a_row_becomes_a_term_with_its_sources_and_links() -> None:
    row = "| kick | Make a vCPU return. | KVM 5 | `a/b.py` `c.py` | `kicker` |"
    assert with_definitions(f"Before.\n\n{table(row)}\n{PHRASES}") == (
        "Before.\n\n"
        "```{glossary}\n"
        "kick\n"
        "    Make a vCPU return.\n"
        "\n"
        "    **Defined in:** KVM 5 · **Code:** [`a/b.py`](../../a/b.py), [`c.py`](../../c.py)"
        " · **Formerly:** `kicker`\n"
        "\n"
        "```\n"
        f"\n{PHRASES}"
    )


def test_empty_columns_are_left_out() -> None:
    text = with_definitions(table("| downtime | A pause. | | `a.py` | |"))
    assert "    **Code:** [`a.py`](../../a.py)\n" in text
    assert "Formerly" not in text


def test_every_term_of_the_glossary_is_defined_on_the_site() -> None:
    text = GLOSSARY.read_text()
    lines = with_definitions(text).splitlines()
    assert {row.term for row in rows(text)} <= set(lines)
    assert not any(line.startswith("| Term") for line in lines)
    assert (ROOT / "docs" / "reference" / "glossary.md") == GLOSSARY
