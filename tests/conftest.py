"""How the tests are run, and models that several files share."""

import os
from dataclasses import replace

import pytest
import shapes

# Models so small are slower on several threads, and two workers that each take all cores are slower still. Before torch
# is imported, and for the processes that tests start, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a test asks the hub for is not there, and nobody waits for that.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

shapes.install()

_ALL = "ROME_LENS_TEST_ALL"


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the tests, too, that take too long for every landing")
    parser.addoption("--pages", action="store_true", help="run the tests, too, of what the pages show")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes too long for every landing; run by --all")
    config.addinivalue_line("markers", "pages: runs what the pages show; run by --pages and --all")
    if config.getoption("--all"):
        os.environ[_ALL] = "1"  # read by `effort`


def pytest_collection_modifyitems(config, items):
    if config.getoption("--all"):
        return
    unwanted = ["slow"] if config.getoption("--pages") else ["slow", "pages"]
    chosen, left_out = [], []
    for item in items:
        (left_out if any(map(item.get_closest_marker, unwanted)) else chosen).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = chosen


def pytest_generate_tests(metafunc):
    """A test that takes `backend` and says no more of it runs on each class that the installed TransformerLens has."""
    chosen = any("backend" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "backend" in metafunc.fixturenames and not chosen:
        from architectures import BACKENDS

        metafunc.parametrize("backend", BACKENDS)


@pytest.fixture
def unchecked():
    """Shapes that callers get wrong reach the function that refuses them: its own words are under test, not ours."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def no_child_left():
    """Every process that a test starts has ended with it."""
    import psutil

    before = set(psutil.Process().children(recursive=True))
    yield
    left = set(psutil.Process().children(recursive=True)) - before
    for child in left:
        child.kill()
    assert not left


@pytest.fixture(scope="module")
def one_thread_everywhere():
    """Sums of floats depend on the number of threads: the same bits come from this process, its workers and dask's."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="session")
def tiny():
    """Two layers of random weights, in the class that `load_model` would take; not to be changed."""
    from rome_lens.loading.tiny import tiny_model

    return tiny_model("auto")


@pytest.fixture
def tighten(monkeypatch):
    """Lets every trace choose a budget of memory with these sizes in it."""
    from rome_lens.tracing.memory import Budget

    choose = Budget.choose
    return lambda **sizes: monkeypatch.setattr(Budget, "choose", lambda backend: replace(choose(backend), **sizes))


@pytest.fixture
def gpt2():
    """A random model of that architecture in float64, in the first class that is there; not to be changed."""
    from architectures import BACKENDS, architecture

    return architecture("gpt2", BACKENDS[0])


@pytest.fixture
def llama():
    """As `gpt2`, of the architecture of Llama."""
    from architectures import BACKENDS, architecture

    return architecture("llama", BACKENDS[0])
