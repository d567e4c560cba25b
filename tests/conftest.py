"""Settings for all tests."""

import pytest
import torch

torch.set_num_threads(1)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device (run `make test-gpu` on a machine with one)")


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
