"""The option `--no-skips`: a run that skipped a test fails, as CI's must.

A machine that lacks Java, a browser or a package skips the tests that need it; where
all of them must run, that would hide them.
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail if a test skips")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("no_skips") and _skipped(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if config.getoption("no_skips"):
        for report in _skipped(config):
            path, line, reason = report.longrepr
            terminalreporter.line(f"SKIPPED {path}:{line}: {reason}", red=True)


def _skipped(config: pytest.Config) -> list[pytest.TestReport]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return reporter.stats.get("skipped", []) if reporter else []  # none in a worker
