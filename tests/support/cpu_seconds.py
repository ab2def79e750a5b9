"""CPU seconds of every test file and of the costliest tests: `pytest -p tests.support.cpu_seconds`.

Unlike wall time it does not depend on what else the machine does. A process that a fixture starts counts for the test
at whose end it is waited for.
"""

import resource
from collections import Counter
from collections.abc import Iterator

import pytest

LISTED = 40
_KEY = "cpu_seconds"
_used = 0.0


def _so_far() -> float:
    """The time that this process and those that it has waited for have computed."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def pytest_runtest_logstart() -> None:
    """Begin to count."""
    global _used
    _used = _so_far()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Iterator[None]:
    """Put the time into the report on the teardown, which comes last."""
    report: pytest.TestReport = yield  # type: ignore[misc]
    if call.when == "teardown":
        report.user_properties.append((_KEY, _so_far() - _used))
    return report  # type: ignore[return-value]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the sums."""
    tests = {
        report.nodeid: float(dict(report.user_properties)[_KEY])
        for reports in terminalreporter.stats.values()
        for report in reports
        if _KEY in dict(getattr(report, "user_properties", ()))
    }
    files: Counter[str] = Counter()
    for nodeid, seconds in tests.items():
        files[nodeid.partition("::")[0]] += seconds  # type: ignore[assignment]
    for title, sums in (("file", files), ("test", Counter(tests))):
        terminalreporter.section(f"CPU seconds by {title}, {sum(sums.values()):.0f} in all")
        for name, seconds in sums.most_common(LISTED):
            terminalreporter.write_line(f"{seconds:8.2f} {name}")
