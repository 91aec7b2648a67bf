# SPDX-License-Identifier: Apache-2.0
"""docs/reference/conformance.md is up to date with the tests and the table of statements."""

from pathlib import Path

from tests.conformance import report
from tests.conformance.report import FAILED, NOT_RUN, PASSED, Clause, Statement


def test_every_statement_has_a_test_or_a_reason() -> None:
    _, clauses = report.read_statements()
    assert report.problems(clauses, report.marked_tests()) == []


def test_the_document_is_up_to_date_and_lists_no_failure() -> None:
    """The committed document is the output of `make conformance` when every test passes."""
    chapters, clauses = report.read_statements()
    tests = report.marked_tests()
    passed = {test: PASSED for each in tests.values() for test in each}
    assert report.DOCUMENT.read_text() == report.render(chapters, clauses, tests, passed), (
        "docs/reference/conformance.md is stale; run: make conformance"
    )


def test_problems_are_found() -> None:
    clause = Clause(
        "1.1",
        "Some clause",
        (
            Statement("1.1-1", "MUST", "is shown"),
            Statement("1.1-2", "MUST", "is not shown"),
            Statement("1.1-3", "MAY", "is shown all the same", "not taken", "no need"),
            Statement("1.1-4", "MAY", "gives no reason", "not taken"),
            Statement("1.1-5", "OUGHT", "has no such level", "not taken", "no need"),
        ),
    )
    tests = {"1.1-1": ["a::test"], "1.1-3": ["a::test"], "1.2-1": ["b::test"]}
    assert report.problems([clause], tests) == [
        "1.1-2: no test shows it",
        "1.1-3: not taken, but a::test shows it",
        "1.1-4: say why no test shows it",
        "1.1-5: there is no level 'OUGHT'",
        "1.2-1: no such statement, in b::test",
    ]


def test_the_worst_case_of_a_test_is_its_result(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    junit.write_text(
        """<testsuites><testsuite>
        <testcase classname="tests.unit.test_a" name="test_one[1]"/>
        <testcase classname="tests.unit.test_a" name="test_one[2]"><failure/></testcase>
        <testcase classname="tests.unit.test_a" name="test_one[3]"/>
        <testcase classname="tests.unit.test_a" name="test_two"/>
        </testsuite></testsuites>"""
    )
    results = report.read_results(junit)
    assert results == {
        "tests/unit/test_a.py::test_one": FAILED,
        "tests/unit/test_a.py::test_two": PASSED,
    }
    statement = Statement("1.1-1", "MUST", "is shown")
    tests = {"1.1-1": ["tests/unit/test_a.py::test_two", "tests/unit/test_a.py::test_three"]}
    text = report.render({"1": "One"}, [Clause("1.1", "Some", (statement,))], tests, results)
    assert text.splitlines()[-1] == (
        "| 1 MUST | is shown "
        "| [two](../../tests/unit/test_a.py), [three](../../tests/unit/test_a.py) "
        f"| {NOT_RUN} |"
    )
