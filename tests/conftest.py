"""Settings for all tests."""

import torch

torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter):
    """Say how long each chapter of the book took, where it was built."""
    times = [
        value
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        if report.when == "call"
        for name, value in report.user_properties
        if name == "chapter_seconds"
    ]
    if times:
        terminalreporter.section("execution of the chapters")
        for line in sorted(times):
            terminalreporter.write_line(line)
