"""Settings for all tests."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sample_work(tmp_path_factory):
    """One work folder, so that tests that need one of the study's networks train it once.

    They belong to the xdist group "sample of the study": one process runs them.
    """
    return tmp_path_factory.mktemp("sample")


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
