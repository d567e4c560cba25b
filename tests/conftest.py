"""Settings for all tests."""

import errno
import os

import pretended
import pytest
import torch
import versions

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption(
        "--pretended-gpu",
        action="store_true",
        help="run on a pretended GPU the tests that only ask for the fixture gpu",
    )


def pytest_configure(config):
    if config.getoption("--pretended-gpu"):
        pretended.register()


@pytest.fixture
def gpu(request):
    """The device to test on: "cuda", or the pretended one of `pretended.py`."""
    if not request.config.getoption("--pretended-gpu"):
        yield "cuda"
        return
    with pretended.Pretending():
        yield pretended.NAME


@pytest.fixture(params=["hard links", "no hard links"])
def links(request, monkeypatch):
    """A file system that has hard links, and one that has none, as on some shared drives."""
    if request.param == "no hard links":

        def refuse(*_):
            raise PermissionError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(os, "link", refuse)


@pytest.fixture(scope="session")
def sample_work(tmp_path_factory):
    """One work folder, so that tests that need one of the study's networks train it once.

    They belong to the xdist group "sample of the study": one process runs them.
    """
    return tmp_path_factory.mktemp("sample")


def pytest_runtest_setup(item):
    pretending = item.config.getoption("--pretended-gpu") and "gpu" in item.fixturenames
    if item.get_closest_marker("gpu") and not (pretending or torch.cuda.is_available()):
        pytest.skip("needs a CUDA device (run `make test-gpu` on a machine with one)")


def pytest_terminal_summary(terminalreporter):
    """Say with which versions, and how long each chapter of the book took, where it was built."""
    terminalreporter.write_line(f"Tested with {versions.versions()}.")
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
