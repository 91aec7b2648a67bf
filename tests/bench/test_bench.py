# SPDX-License-Identifier: Apache-2.0
"""The framework of the benchmarks: turns, ratios, files, tables, plots. No test depends on time."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pyvmm.harness.errors import GuestExited
from pyvmm.lab.errors import LabError
from pyvmm.progress.reporter import Silent
from pyvmm.sockets.lab_paths import in_lab

pytest.importorskip("bench")

from bench import cli, migration, snapshot
from bench.catalogue import CATALOGUE
from bench.measure import (
    ENOUGH_ROUNDS,
    TOTAL,
    Case,
    Checkpoint,
    Plan,
    Values,
    interleave,
    seconds,
    take_turns,
)
from bench.migratable_guests import (
    LAB_ATTEMPTS,
    QEMU,
    QEMU_HINTS,
    QUERY_DISABLED,
    WITH_QUERY,
    MigratableGuest,
    MigrationTimeout,
    migrate,
    retry_in_lab,
)
from bench.plots import panels_of
from bench.report import BEGIN, END, update_readme, write_report
from bench.results import Result, load, new_result
from bench.tables import headlines_table, proposal_table, targets_table
from bench.targets import HEADLINES, TARGETS

ROOT = Path(__file__).parents[2]


def measured() -> Result:
    bars = Case("inflate, RAM touched, 1 vCPU", "s", against="QEMU")
    curve = [Case(f"{x} MiB", "s", against="C", group="MiB", x=x) for x in (1.0, 10.0)]
    for value in (1.0, 2.0, 4.0):
        bars.add("QEMU", {TOTAL: 4 * value, "guest allocation": value, "transport": 3 * value})
        bars.add("pyvmm", {TOTAL: value, "guest allocation": value / 2})
        for case in curve:
            case.add("C", seconds(value * (case.x or 0)))
            case.add("pyvmm", seconds(2 * value * (case.x or 0)))
    return new_result("balloon", "A balloon", False, [bars, *curve])


def test_contenders_take_turns_and_the_warm_up_does_not_count() -> None:
    runs: list[str] = []

    def contender(name: str) -> Values:
        runs.append(name)
        return seconds(len(runs))

    case = Case("x", "s", against="a")
    contenders = {name: lambda name=name: contender(name) for name in ("a", "b", "c")}
    take_turns(case, contenders, 3, Plan(False, Silent()), warm_up=True)
    assert "".join(runs) == "abc" + "abc" + "bca" + "cab"
    assert case.rounds == {"a": [4, 9, 11], "b": [5, 7, 12], "c": [6, 8, 10]}


def test_no_round_starts_that_would_exceed_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("bench.measure.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def contend() -> Values:
        clock[0] += 10
        return seconds(1)

    case = Case("x", "s", against="a")
    turns = dict.fromkeys("ab", contend)
    take_turns(case, turns, 9, Plan(False, Silent()), warm_up=False, limit_s=65)
    assert len(case.rounds["b"]) == 3
    take_turns(case, turns, 9, Plan(False, Silent()), warm_up=False, limit_s=0)
    assert len(case.rounds["b"]) == 4


def test_a_run_that_fails_in_a_lab_is_retried_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[int | LabError] = [LabError("it stopped"), 1, 0, 2]

    def run_in_lab(argv: list[str], **limits: float) -> int:
        end = ends.pop(0)
        if isinstance(end, LabError):
            raise end
        return end

    monkeypatch.setattr("pyvmm.lab.run.run_in_lab", run_in_lab)
    assert cli._run_in_lab(["x"], 4096) == 0
    assert ends == [2]
    ends[:] = [3, 4, 5, 0]
    assert cli._run_in_lab(["x"], 4096) == 5


def test_an_interrupted_run_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    done: list[str] = []

    def work(name: str) -> dict[str, int]:
        done.append(name)
        return {name: len(done)}

    path = tmp_path / "x.checkpoint"
    first = Checkpoint(path)
    assert [first.turn(name, partial(work, name)) for name in "aba"] == [
        {"a": 1},
        {"b": 2},
        {"a": 3},
    ]
    second = Checkpoint(path)
    assert [second.turn(name, partial(work, name)) for name in "abab"] == [
        *({"a": 1}, {"b": 2}, {"a": 3}),
        {"b": 4},
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_pieces_are_interleaved_until_each_contender_has_done_each() -> None:
    done: list[str] = []

    @contextmanager
    def prepared() -> Iterator[None]:
        done.append("<")
        yield
        done.append(">")

    def do(name: str, number: int) -> float:
        done.append(f"{name}{number}")
        return {"a": 1.0, "b": 10.0, "c": 100.0}[name] * (1 << number)

    case = Case("x", "s", against="a")
    pieces = [{name: partial(do, name, number) for name in "abc"} for number in range(2)]
    interleave(case, pieces, prepared, 2, Plan(False, Silent()))
    assert "".join(done) == "<a0b1><b0c1><c0a1>" + "<a0c1><b0a1><c0b1>"
    assert case.rounds == {"a": [3, 3], "b": [30, 30], "c": [300, 300]}


def test_the_median_of_a_pieces_repeats_counts() -> None:
    seen = {"a": iter([1, 10, 900, 20, 3, 10]), "b": iter([4, 5, 4, 5, 4, 5])}
    pieces = [{name: partial(next, values) for name, values in seen.items()} for _ in range(2)]
    case = Case("x", "s", against="b")
    interleave(case, pieces, nullcontext, 1, Plan(False, Silent()), repeats=3)
    assert case.rounds == {"a": [3 + 10], "b": [4 + 5]}, case.rounds


def test_a_ratio_is_of_medians_and_its_spread_of_single_rounds() -> None:
    case = Case("x", "s", against="b", rounds={"a": [1, 2, 30], "b": [2, 8, 10]})
    assert case.ratio("a") == 2 / 8
    assert case.ratio_spread("a") == (2 / 8, 30 / 10)


def test_a_quick_run_takes_one_round() -> None:
    assert Plan(True, Silent()).rounds(7) == 1
    assert Plan(False, Silent()).rounds(7) == 7


def test_results_survive_a_round_trip_through_json(tmp_path: Path) -> None:
    result = measured()
    result.save(tmp_path / "x.json")
    assert load(tmp_path / "x.json") == result
    (tmp_path / "x.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="another version"):
        load(tmp_path / "x.json")


def test_the_page_shows_every_case_and_has_its_picture(tmp_path: Path) -> None:
    write_report(tmp_path, [measured()])
    page = (tmp_path / "README.md").read_text()
    assert "inflate, RAM touched, 1 vCPU" in page
    assert "| pyvmm | 2 s | 1 to 4 | 3: too few | 0.250 |" in page
    assert (tmp_path / "balloon.png").read_bytes().startswith(b"\x89PNG")


def test_plots_have_a_panel_for_each_scale() -> None:
    cases = [
        Case("a", "s", against="x", panel="1"),
        Case("b", "ms", against="x", panel="1"),
        Case("c", "s", against="x", panel="2"),
        Case("d", "s", against="x", panel="1"),
        Case("e", "s", against="x", panel="1", plotted=False),
    ]
    assert [[case.name for case in panel] for panel in panels_of(cases)] == [
        ["a", "d"],
        ["b"],
        ["c"],
    ]


def test_the_table_of_stages_has_the_proposal_of_2016_first() -> None:
    rows = proposal_table(measured().cases[0]).rows
    assert rows[0][2:] == ("6.5%", "68.3%")
    assert rows[1][2:] == ("25.0%", "75.0%")
    assert rows[2][2:] == ("50.0%", "")


def test_update_readme_replaces_only_the_part_between_the_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    update_readme(readme, tmp_path, [measured()])
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="no marks"):
        update_readme(readme, tmp_path, [measured()])
    assert (ROOT / "README.md").read_text().count(BEGIN) == 1


def stored_results() -> dict[str, Result]:
    """Return the results in the tree, by the name of their benchmark."""
    return {
        path.stem: load(path)
        for path in (ROOT / "bench/results").glob("*.json")
        if path.stem in CATALOGUE
    }


def test_the_readme_has_at_most_eight_stored_results_with_their_misses(tmp_path: Path) -> None:
    results = list(stored_results().values())
    rows = headlines_table(results).rows
    measurements = {row[0] for row in rows}
    for target in TARGETS:
        if target.name in HEADLINES:
            headline = HEADLINES[target.name]
            assert (headline.measurement in measurements) == (target.bench in stored_results())
    assert len(rows) <= len(HEADLINES) <= 8
    assert any("missed" in row[-1] for row in rows)
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}{END}")
    update_readme(readme, ROOT / "bench/results", results)
    written = (ROOT / "README.md").read_text()
    shown = written[written.index(BEGIN) : written.index(END) + len(END)]
    assert shown == readme.read_text(), "run `make bench`, or update_readme on the results"
    assert "bench/results/README.md" in shown


def test_moves_are_dealt_out_in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    names = {id(contender): name for name, contender in migration.CONTENDERS.items()}

    async def migrate(contender: migration.Contender, *_: int) -> tuple[float, dict[str, object]]:
        moved.append(names[id(contender)])
        return 2.0, {"ram": {"transferred": 1 << 30, "dirty-sync-count": 3}, "downtime": 200}

    monkeypatch.setattr(migration, "_migrate", migrate)
    cases = migration.measure(Plan(False, Silent()))
    contenders = list(migration.CONTENDERS)
    first = moved[:: len(contenders)]
    assert first == contenders
    assert {len(values) for case in cases for values in case.rounds.values()} == {ENOUGH_ROUNDS}
    moved.clear()
    migration.measure_large(Plan(False, Silent()))
    assert moved == contenders


def test_a_report_of_a_lab_says_that_only_ratios_count(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    result = measured()
    for kvm, said in (("this machine's", False), ("emulated, in the lab", True)):
        result.machine["kvm"] = kvm
        readme.write_text(f"{BEGIN}{END}")
        update_readme(readme, tmp_path, [result])
        assert ("only ratios count" in readme.read_text()) == said


def test_targets_of_migrations_and_snapshots_name_measured_contenders() -> None:
    """In a full run; checked against the code, not the stored results."""
    by_bench = {
        "migration": (
            vars(migration.Cases("idle guest", QEMU_HINTS)).values(),
            set(migration.CONTENDERS),
        ),
        "snapshot": (snapshot.new_cases(), {WITH_QUERY, QUERY_DISABLED, QEMU, QEMU_HINTS}),
    }
    for target in TARGETS:
        if target.bench in by_bench:
            cases, contenders = by_bench[target.bench]
            assert target.case in {case.name for case in cases}
            assert {target.contender, target.against} <= contenders


def test_each_promise_is_one_target() -> None:
    promises = [(each.bench, each.case, each.contender, each.against) for each in TARGETS]
    assert len(set(promises)) == len({each.name for each in TARGETS}) == len(TARGETS)


@pytest.mark.parametrize("slow", [QEMU, WITH_QUERY])
def test_a_migration_that_timed_out_is_listed_unless_it_is_the_baseline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slow: str
) -> None:
    async def migrate(contender: migration.Contender, *_: int) -> tuple[float, dict[str, object]]:
        if contender is migration.CONTENDERS[slow]:
            return 420.0, {}
        return 2.0, {"ram": {"transferred": 1 << 30, "dirty-sync-count": 3}, "downtime": 200}

    monkeypatch.setattr(migration, "_migrate", migrate)
    if slow == WITH_QUERY:
        with pytest.raises(MigrationTimeout, match=WITH_QUERY):
            migration.measure_writing(Plan(False, Silent()))
        return
    cases = migration.measure_writing(Plan(False, Silent()))
    result = new_result("migration-writing", "Migrations", False, cases)
    write_report(tmp_path, [result])
    page = (tmp_path / "README.md").read_text()
    qemu = result.named("QEMU pc")
    assert f"| {qemu}, timed out | 420 s |  | 1: too few | 210 |" in page
    assert f"| {qemu} |" not in page
    assert page.count(f"| {qemu}, hints |") == len(cases)


def test_a_downtime_that_is_not_computed_yet_is_waited_for() -> None:
    class Guest:
        replies: Iterator[dict[str, object]] = iter(
            [
                {"status": "active"},
                {"status": "completed", "downtime": 0},
                {"status": "completed", "downtime": 181},
            ]
        )

        async def qmp(self, name: str, **arguments: object) -> dict[str, object]:
            return next(self.replies) if name == "query-migrate" else {}

    _, answer = asyncio.run(migrate(cast(MigratableGuest, Guest()), "unix:x"))
    assert answer["downtime"] == 181


def test_a_guest_that_ends_early_is_retried_in_the_lab(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def ends() -> None:
        raise GuestExited("it reset")

    with pytest.raises(GuestExited, match="it reset"):
        retry_in_lab(ends)
    assert capfd.readouterr().err.count("retrying") == (LAB_ATTEMPTS - 1 if in_lab() else 0)


def test_every_target_is_in_the_stored_results() -> None:
    """The results in the tree have the case and the contenders of each of their targets."""
    results = stored_results()
    for target in TARGETS:
        assert target.bench in CATALOGUE
        assert 0 < target.goal <= target.limit
        if target.bench in results:
            assert target.measured(results[target.bench]) > 0
    assert len(targets_table(list(results.values())).rows) == sum(
        target.bench in results for target in TARGETS
    )
