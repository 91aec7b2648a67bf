# SPDX-License-Identifier: Apache-2.0
"""`pyvmm recording`, and the options of `pyvmm run` that make a recording."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from devices.balloon.dialects import STANDARD
from devices.testing import RecordingTracer
from devices.testing.balloon import BalloonDriver
from pyvmm.cli.record_options import RecordOptions, recording_of
from pyvmm.trace.recording_file import RecordingFile
from pyvmm.trace.recording_format import MAGIC
from pyvmm_native.events import EventBuffer
from tests.pyvmm.cli.json_reference import differences, sections
from tests.pyvmm.cli.test_cli import run_main

ESCAPE = "\x1b[2J\n</script>"


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the recording of a balloon whose driver inflates 20 pages."""
    buffer = EventBuffer()
    buffer.start()
    monkeypatch.setattr(
        "devices.testing.balloon.driver.RecordingTracer", lambda: RecordingTracer(buffer)
    )
    driver = BalloonDriver(STANDARD).start()
    driver.inflate(range(100, 120))
    buffer.event("echo.bad_payload", why=ESCAPE, queue="in")
    path = tmp_path / "boot.rec"
    file = RecordingFile(path)
    file.commit()
    batch = buffer.stop()
    assert batch is not None
    file.write(batch)
    file.close()
    return path


def output_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert run_main(["recording", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_info_counts_events(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(output_of(capsys, "info", recorded, "--json"))
    assert list(differences(document, sections()["pyvmm recording info"].members)) == []
    assert document["kinds"]["inflate"] == document["kinds"]["chain"] == 1
    assert document["dropped"] == 0
    assert (
        document["events"] == sum(document["kinds"].values()) == sum(document["devices"].values())
    )
    assert document["bytes-per-event"] < 20
    text = output_of(capsys, "info", recorded)
    assert f"{document['events']} events in" in text
    assert "kinds: register_write" in text


def test_events_are_lines(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = output_of(capsys, "events", recorded, "--kind", "inflate").splitlines()
    (line,) = lines
    assert line.endswith(" balloon inflate pages=0x14 runs=1 discarded_bytes=0x14000")
    (line,) = output_of(capsys, "events", recorded, "--device", "echo").splitlines()
    assert "\\x1b[2J" in line
    assert "\x1b" not in line


def test_events_are_chosen_by_device_queue_kind_and_time(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def chosen(*options: str) -> list[dict[str, object]]:
        text = output_of(capsys, "events", recorded, "--json", *options)
        return [json.loads(line) for line in text.splitlines()]

    everything = chosen()
    assert [event["seq"] for event in everything] == [*range(len(everything))]
    assert {event["queue"] for event in chosen("--queue", "inflate")} == {"inflate"}
    both = chosen("--kind", "used", "--kind", "chain")
    assert [event["kind"] for event in both] == ["chain", "used"]
    assert chosen("--device", "balloon", "--queue", "in") == []
    assert chosen("--since", "86400") == []
    assert chosen("--until", "86400") == everything
    last = everything[-1]["time-ns"]
    first = everything[0]["time-ns"]
    assert isinstance(last, int)
    assert isinstance(first, int)
    middle = (last - first) / 2e9
    split = [*chosen("--until", f"{middle:.9f}"), *chosen("--since", f"{middle:.9f}")]
    assert len(split) in (len(everything), len(everything) + 1)


@pytest.mark.parametrize("form", ["jsonl", "perfetto", "html"])
def test_export_replaces_only_its_own(
    recorded: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = recorded.with_name("out")
    command: list[str | Path] = ["export", recorded, "--format", form, "--output", target]
    output_of(capsys, *command, "--kind", "inflate")
    small = target.read_bytes()
    output_of(capsys, *command)
    assert len(target.read_bytes()) > len(small)
    assert target.stat().st_mode & 0o777 == 0o600
    target.write_text("mine")
    assert run_main(["recording", *map(str, command)]) == 2
    assert "choose another --output" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert {path.name for path in recorded.parent.iterdir()} == {"boot.rec", "out"}


def test_a_cut_recording_is_used_with_a_note(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded.write_bytes(recorded.read_bytes() + b"CHNK" + bytes(20))
    assert run_main(["recording", "events", str(recorded), "--kind", "inflate"]) == 0
    captured = capsys.readouterr()
    assert "inflate" in captured.out
    assert "incomplete" in captured.err


@pytest.mark.parametrize("data", [b"", b"mine", MAGIC + bytes(5000)])
@pytest.mark.parametrize("command", ["info", "events"])
def test_a_file_that_cannot_be_used_is_one_line(
    tmp_path: Path, data: bytes, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    assert run_main(["recording", command, str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pyvmm: {path} cannot be used: it")
    assert line.endswith("make one with: pyvmm run IMAGE --record FILE")


def test_a_file_that_is_not_a_recording_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the image is read, and before the lab starts."""
    (tmp_path / "r").write_text("mine")
    assert run_main(["run", str(tmp_path / "guest.img"), "--record", str(tmp_path / "r")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "r is a file, but not a recording; give --record another path" in line
    assert (tmp_path / "r").read_text() == "mine"


NONE = {"record": None, "record_limit": None, "record_exits": None}


def test_options_of_a_recording() -> None:
    assert recording_of(NONE) is None
    path = Path("r")
    assert vars(recording_of({**NONE, "record": path})) == vars(RecordOptions(path, 0, 0))
    options = {"record": path, "record_limit": 1 << 23, "record_exits": 100}
    assert vars(recording_of(options)) == vars(RecordOptions(path, 1 << 23, 100))


@pytest.mark.parametrize("option", ["--record-limit=8M", "--record-exits=5"])
def test_options_without_a_recording_are_refused(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(["run", str(tmp_path / "guest.img"), option]) == 2
    assert "add --record FILE" in capsys.readouterr().err


@pytest.mark.parametrize(("limit", "size"), [("0", "0 B"), ("1M", "1 MiB")])
def test_a_limit_that_is_too_small_is_refused_at_once(
    limit: str, size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the image is read, and before the lab starts."""
    options = ["--record", str(tmp_path / "r"), "--record-limit", limit]
    assert run_main(["run", str(tmp_path / "guest.img"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"pyvmm: --record-limit {size} is too small;"
        " give at least 4 MiB, or leave it out for no limit"
    )
    assert list(tmp_path.iterdir()) == []
