"""Samples of migrations in words; the answers are those of real QEMUs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qemu_svm.qmp import Status, answers
from qemu_svm.qmp.watch import Pace, Sample, Update
from qemu_svm.render.text.watch import render

# QEMU 11.1 with auto-converge, a guest that writes faster than the line carries.
THROTTLED: dict[str, Any] = {
    "status": "active", "expected-downtime": 212, "cpu-throttle-percentage": 60,
    "setup-time": 3, "total-time": 12074, "remaining": 278528,
    "ram": {
        "total": 67641344, "postcopy-requests": 0, "dirty-sync-count": 55, "multifd-bytes": 0,
        "pages-per-second": 320, "downtime-bytes": 0, "page-size": 4096, "remaining": 147456,
        "postcopy-bytes": 0, "mbps": 10.50768, "transferred": 14919718,
        "precopy-bytes": 14918366, "duplicate": 16339, "dirty-pages-rate": 314,
        "normal-bytes": 14741504, "normal": 3599,
    },
}  # fmt: skip

# QEMU 7.2 after postcopy; source, then destination.
POSTCOPY: dict[str, Any] = {
    "status": "completed", "setup-time": 21, "downtime": 1, "total-time": 7407,
    "ram": {
        "total": 134750208, "postcopy-requests": 25, "dirty-sync-count": 2, "multifd-bytes": 0,
        "pages-per-second": 40, "downtime-bytes": 0, "page-size": 4096, "remaining": 0,
        "postcopy-bytes": 1013033, "mbps": 1.29, "transferred": 1177541,
        "precopy-bytes": 164508, "duplicate": 32722, "dirty-pages-rate": 0, "skipped": 0,
        "normal-bytes": 880640, "normal": 215,
    },
}  # fmt: skip
DESTINATION: dict[str, Any] = {"status": "completed", "postcopy-blocktime": 1719}

# QEMU 7.2 with xbzrle.
DELTAS: dict[str, Any] = {
    "status": "completed", "setup-time": 5, "downtime": 4, "total-time": 3704,
    "xbzrle-cache": {
        "encoding-rate": 0, "bytes": 900, "cache-size": 67108864, "cache-miss-rate": 0,
        "pages": 12, "overflow": 2, "cache-miss": 68,
    },
    "ram": dict(POSTCOPY["ram"], **{"postcopy-requests": 0, "postcopy-bytes": 0}),
}  # fmt: skip


def sample(answer: dict[str, Any], state: str = "running") -> Sample:
    status = Status(state, running=state == "running")
    return Sample(
        1000.0, "poll", status, answers.migration(answer), answer,
        {"multifd": True, "xbzrle": False}, {"max-bandwidth": 1 << 20, "downtime-limit": 300,
        "multifd-channels": 4, "xbzrle-cache-size": 1 << 26},
    )  # fmt: skip


def shown(one: Sample) -> str:
    return "\n".join(text.plain for text in render(Update(one), title="vm"))


def line(one: Sample) -> str:
    (text,) = render(Update(one))
    return text.plain


def test_throttled() -> None:
    text = shown(sample(THROTTLED))
    assert "vCPUs are slowed down by 60%" in text
    assert "3599 normal, 16339 zero" in text
    assert "pass 55" in text
    assert "144 KiB of 64.51 MiB left" in text
    # Parameters of what is switched on, with units; not those of what is off.
    assert "max-bandwidth 1 MiB/s, downtime-limit 300 ms, multifd-channels 4" in text
    assert "xbzrle" not in text
    assert "throttled 60%" in line(sample(THROTTLED))


def test_postcopy() -> None:
    text = shown(sample(POSTCOPY, "postmigrate"))
    assert "25 requested by the destination" in text
    assert "160.7 KiB during precopy, 989.3 KiB during postcopy" in text
    assert "100.0%" in text
    assert "vCPUs waited for pages 1719 ms" in shown(sample(DESTINATION))


def test_deltas() -> None:
    assert "12 as deltas, 68 not in the cache, 2 too different" in shown(sample(DELTAS))


def test_no_end_in_sight() -> None:
    pace = Pace()
    pace.rate(sample(THROTTLED))
    ram = {**THROTTLED["ram"], "transferred": 14919718 + 1280000, "normal": 3599 + 314}
    later = replace(sample({**THROTTLED, "ram": ram}), time=1001.0)
    text = line(pace.rate(later))
    assert "1.221 MiB/s  dirty 1.227 MiB/s" in text
    assert "not converging" in text


@pytest.mark.parametrize("answer", [{}, {"status": "setup"}, THROTTLED, DESTINATION, DELTAS])
def test_anything_goes_into_lines_and_documents(answer: dict[str, Any]) -> None:
    hostile = {**answer, "error-desc": "bad\x1b[2J\nworse", "blocked-reasons": ["\x07bell"]}
    one = sample(hostile)
    assert "\x1b" not in shown(one)
    assert "\x07" not in shown(one)
    assert "\n" not in line(one)
    assert Update(one).to_json()["query_migrate"] == hostile
    assert Update(one, one).to_json()["settings"] is None
    assert Update(one).to_json()["settings"]["parameters"]["multifd-channels"] == 4


def test_curves_over_time() -> None:
    from qemu_svm.qmp.watch import Rates
    from qemu_svm.render.text.watch_plot import plot

    def at(second: int, left: int, wire: float) -> Sample:
        answer = dict(THROTTLED, ram=dict(THROTTLED["ram"], remaining=left))
        one = sample(answer)
        return replace(one, time=1000.0 + second, rates=Rates(wire=wire),
                       migration=answers.migration(answer))  # fmt: skip

    samples = [at(second, (8 - second) << 20, 1 << 20) for second in range(9)]
    lines = [line.plain for line in plot(samples, 80, plain=True)]
    assert [line for line in lines if "at most" in line] == [
        "  left  at most 8 MiB", "  sent  at most 1 MiB/s",
    ]  # fmt: skip
    assert max(map(len, lines)) <= 80
    falling = [line.count("#") for line in lines[1:5]]
    assert falling == sorted(falling)
    assert falling[0] < falling[-1]
    assert lines[6].count("#") > 60  # sent at one rate all the time
    assert lines[-1].endswith("8 s")
    assert list(plot(samples[:1], 80)) == []
    assert "█" in "".join(line.plain for line in plot(samples, 80))
