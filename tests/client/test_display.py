"""What the command line shows: nothing that steers the terminal, and no blanks at the ends of lines."""

import io
from typing import Any

from rich.console import RenderableType

from app.schemas.jobs import Job, Result
from client.display.events import event_line
from client.display.jobs import job_card, jobs_table
from client.display.reports import report_card
from client.display.screen import Screen
from client.reading import tolerant
from core.evaluation.report import make_report
from core.evaluation.unseen_report import summarise
from core.schema.events import Stamped
from core.schema.report import Points, Report, Reports
from core.schema.threats import STANDARD_CORRUPTIONS
from tests.support.scripted_service import job_json


def shown(what: RenderableType) -> str:
    file = io.StringIO()
    Screen(file=file, width=200).print(what, soft_wrap=True)
    return file.getvalue()


def job(shown: dict[str, Any]) -> Job:
    return tolerant(Job).model_validate(shown)


def event(kind: str, data: dict[str, Any]) -> Stamped:
    return Stamped.model_validate({"seq": 1, "created_at": "2026-11-23T00:00:00Z", "type": kind, "data": data})


def test_control_characters_of_the_service_are_shown_and_not_obeyed() -> None:
    assert shown("a\x1b[31mred\x07") == "a\\x1b[31mred\\x07\n"
    assert "\\x9b2J" in shown(event_line(event("warned", {"message": "\x9b2J"})))


def test_control_characters_in_a_table_leave_its_columns_in_line() -> None:
    head, row = shown(jobs_table([job(job_json(name="\x1b]0;owned\x07"))])).splitlines()
    assert "\\x1b]0;owned\\x07 " in row
    assert row.index("finetune") == head.index("kind")


def test_lines_of_a_table_do_not_end_with_blanks() -> None:
    lines = shown(jobs_table([job(job_json()), job(job_json(name="long"))])).splitlines()
    assert [line for line in lines if line != line.rstrip()] == []


def test_what_a_job_may_take_and_what_it_took_are_a_line_each() -> None:
    estimate = {
        "seconds": {"p50": 95.2, "p90": 8000.0},
        "peak_memory_bytes": 1_200_000_000,
        "storage_bytes": None,
        "basis": "history",
        "runs": 3,
        "unavailable_reason": None,
    }
    actual = {"seconds": 7200.0, "peak_memory_bytes": None, "storage_bytes": 2_500_000}
    spec = {"kind": "evaluate", "base_model": "x", "dataset": "y"}
    card = shown(job_card(job(job_json(spec=spec, estimate=estimate, actual=actual))))
    assert "estimate  95 s, 9 in 10 up to 2 h 13 min, 1,200.0 MB of memory, by 3 such jobs\n" in card
    assert "actual    2 h 00 min, 2.5 MB to store\n" in card
    estimate |= {"basis": "passes", "runs": 1}
    assert "by 1 other job of the network" in shown(job_card(job(job_json(spec=spec, estimate=estimate))))
    estimate |= {"seconds": None, "basis": "none", "unavailable_reason": "no job of it has finished here yet"}
    assert "none: no job of it" in shown(job_card(job(job_json(spec=spec, estimate=estimate))))


def test_numbers_that_are_not_reliable_are_shown_as_such_with_the_reason() -> None:
    rate = {"value": 0.5, "count": 2, "total": 4, "low": 0.1, "high": 0.9}
    flag = {"code": "not_finite", "message": "at 2 of 4 points [x]", "threat": "linf"}
    doubted = {"clean": rate, "robust": {"linf": rate | {"reliable": False}}, "union": rate | {"reliable": False}}
    results = {"before": None, "after": doubted | {"flags": [flag]}}
    spec = {"kind": "evaluate", "base_model": "x", "dataset": "y", "eps": {"linf": 0.1}}
    found = job(job_json(spec=spec | {"evaluation": {"protocol": "fast"}}, results=results))
    lines = shown(job_card(found)).splitlines()
    assert [line.split()[0] for line in lines if "(not reliable)" in line] == ["linf", "union"]
    assert "after: linf: at 2 of 4 points [x]" in lines
    assert "50.0 (not reliable)" in shown(jobs_table([found]))
    evaluated = event("evaluated", {"subject": "result", "report": doubted})
    assert "clean 50.0 %, linf 50.0 % (not reliable), union 50.0 % (not reliable)" in shown(event_line(evaluated))


def test_what_a_run_warned_of_is_told_with_its_remedy() -> None:
    warning = {"code": "preflight_scaling", "message": "30 of 120 [b]", "remedy": "add --mean 0.5", "threat": None}
    spec = {"kind": "evaluate", "base_model": "x", "dataset": "y", "eps": {"linf": 0.1}}
    assert "warning  30 of 120 [b]; add --mean 0.5" in shown(job_card(job(job_json(spec=spec, warnings=[warning]))))
    reports = Reports.model_validate({"before": None, "after": None, "warnings": [warning]})
    assert "warning: 30 of 120 [b]; add --mean 0.5" in shown(report_card(reports))


def test_unseen_threats_are_shown_before_and_after_with_their_means() -> None:
    def report(l0: str, union: str) -> Report:
        points = Points(ids=("a", "b"), labels=(1, 1), predicted={"clean": (1, 1), "linf": (1, 0)})
        verdicts = {("l0", 1.0): "11", ("l0", 9.0): l0, ("fog", 64.0): union}
        verdicts |= {(name, 3.0): "10" for name in STANDARD_CORRUPTIONS}
        section = summarise(verdicts, [], preset=None, provenance=None, source="cifar", reference_errors=None)
        return make_report(
            protocol="fast",
            engine="temper",
            seed=0,
            batch_size=2,
            eps={"linf": 0.1},
            points=points,
            records=[],
            flags=[],
            seconds=1.0,
            unseen=section,
        )

    card = shown(report_card(Reports(before=report("00", "01"), after=report("11", "11"))))
    lines = {line.split("  ")[0].strip(): line.split() for line in card.splitlines()}
    assert lines["common corruptions"][2:] == ["50.0", "50.0"]
    assert "0.0" in lines["l0 9"]
    assert lines["l0 9"][-1] == "+100.0"
    assert lines["average"][1:] == ["25.0", "100.0"]
    assert "union of attacks" in lines
    assert "common/fog" in card
    result = Result.of(report("11", "01"))
    assert result.unseen is not None
    assert set(result.unseen.accuracy) == {"l0 1", "l0 9", "fog 64"}
    assert result.unseen.common == 0.5


def test_both_weights_of_a_run_that_averages_are_in_the_line_of_an_epoch() -> None:
    def rates(union: float) -> dict[str, Any]:
        bounds = {"value": union, "count": 1, "total": 2, "low": 0.0, "high": 1.0}
        return {"robust": {"linf": 0.5, "l1": 0.75}, "union": bounds}

    epoch = {"step": 3, "epoch": 1.0, "examples": 12, "training_attack": {"linf": 0.6}, "seconds": 0.1, **rates(0.25)}
    alone = shown(event_line(event("monitored", {**epoch, "averaged": None})))
    assert alone.rstrip().endswith("12 held-out images: linf 50.0 %, l1 75.0 %, union 25.0 %")
    both = shown(event_line(event("monitored", {**epoch, "averaged": rates(0.5)})))
    assert "union 25.0 %; averaged: linf 50.0 %, l1 75.0 %, union 50.0 %" in both


def test_a_report_names_the_weights_that_were_delivered() -> None:
    rate = {"value": 1.0, "count": 2, "total": 2, "low": 0.3, "high": 1.0}
    after = {
        "protocol": "fast", "examples": 2, "seed": 0, "batch_size": 2, "eps": {"linf": 0.1}, "clean": rate,
        "robust": {"linf": rate}, "union": rate, "average": 1.0, "attacks": [], "flags": [], "verdicts": {},
        "seconds": 1.0,
    }  # fmt: skip
    delivered = {"weights": "averaged", "step": 30, "held_out": None}
    reports = Reports.model_validate({"before": None, "after": after, "delivered": delivered})
    assert "delivered: the averaged weights after step 30" in shown(report_card(reports))


def test_shards_are_a_line_and_each_news_of_them_too() -> None:
    spec = {"kind": "evaluate", "base_model": "x", "dataset": "y"}
    shards = [
        {"number": number, "job": f"job_{number}", "status": status, "worker": None, "attempt": 1, "crashes": 0}
        for number, status in enumerate(["succeeded", "running", "running", "queued"], start=1)
    ]
    assert "shards  1 succeeded, 2 running, 1 queued\n" in shown(job_card(job(job_json(spec=spec, shards=shards))))
    news = event("shard", {"number": 2, "status": "succeeded", "done": 1, "count": 4})
    assert "2 of 4 is succeeded; 1 done" in shown(event_line(news))


def test_longest_event_names_are_apart_from_what_they_tell() -> None:
    assert "job.handed_back attempt 3" in shown(event_line(event("job.handed_back", {"attempt": 3})))


def test_numbers_are_told_only_where_there_is_something_to_count() -> None:
    spec = {"kind": "train", "architecture": "x", "dataset": "digits", "method": {"name": "nat"}, "epochs": 1}
    assert "by nat, 1 epoch\n" in shown(job_card(job(job_json(spec=spec))))
    started = {"architecture": "x", "parameters": 1000, "device": "cpu", "train_examples": 0, "test_examples": 9}
    assert "x with 1,000 parameters on cpu; 9 images to test on" in shown(event_line(event("started", started)))
