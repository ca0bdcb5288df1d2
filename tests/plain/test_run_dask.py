"""A run on a dask cluster: a real one, on this machine, of two worker processes."""

import gc
import os
import re
import signal
import socket
import sys
import threading

import pytest
from refused import refused
from toy_run import ToyMaker, ToyWork, noted, record_files, toy_summary, toy_tasks

from rome_lens.errors import ModelError, RunError, SettingError
from rome_lens.runs import Folder, RunFolder, dask_executor, run

distributed = pytest.importorskip("distributed")


def _cluster(n_workers):
    # A port of its own for the server that dask starts beside the scheduler: two clusters at once would warn.
    return distributed.LocalCluster(
        n_workers=n_workers, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
    )


@pytest.fixture(scope="module")
def cluster():
    with _cluster(2) as cluster:
        yield cluster


def test_a_run_whose_worker_is_killed_on_the_way_ends_with_all_records(cluster, tmp_path, diary):
    killed = []

    def kill_one(done, total, what):
        if done >= 6 and not killed:
            killed.append(int(next(diary.glob("ran *")).name.split(" ")[-2]))
            os.kill(killed[0], signal.SIGKILL)

    with RunFolder.open(tmp_path / "run", {}) as folder:
        with dask_executor(cluster.scheduler_address) as executor:
            work = ToyWork(pause=0.02, diary=diary)
            run(work, toy_tasks(24), folder, executor=executor, progress=kill_one)
        assert toy_summary(folder) == {"sum": sum(number**2 for number in range(72))}
    assert len(record_files(tmp_path / "run")) == 72
    processes = {path.name.split(" ")[-2] for path in diary.glob("ran *")}
    assert len(processes) > 1
    assert killed
    assert len(noted(diary, "opened")) == len(processes)


def test_a_run_that_is_over_leaves_no_maker_in_the_workers(cluster):
    folder = Folder()
    with dask_executor(cluster.scheduler_address) as executor:
        run(ToyWork(), toy_tasks(4), folder, executor=executor)
        with distributed.Client(cluster.scheduler_address, set_as_default=False) as client:
            assert sum(client.run(_n_makers).values()) > 0
    assert len(folder.finished()) == 12
    with distributed.Client(cluster.scheduler_address, set_as_default=False) as client:
        assert sum(client.run(_n_makers).values()) == 0


def _n_makers():
    gc.collect()
    return sum(1 for thing in gc.get_objects() if isinstance(thing, ToyMaker))


def test_a_task_that_fails_on_a_worker_stops_the_run_with_its_own_error(cluster):
    with dask_executor(cluster.scheduler_address) as executor:
        said = refused(ModelError, run, ToyWork(fails_at=4), toy_tasks(4), Folder(), executor=executor)
    assert said == "the number 4 has no square here"


def test_a_task_that_kills_every_worker_that_takes_it_is_given_up(diary):
    with _cluster(1) as small:
        small.scheduler.allowed_failures = 0
        with dask_executor(small.scheduler_address) as executor:
            work = ToyWork(dies_at=4, diary=diary)
            said = refused(RunError, run, work, toy_tasks(4), Folder(), executor=executor)
    assert said.startswith("a worker was lost (killed, or out of memory): ")


def _refused(error, address, *, patience=0.5):
    return refused(error, dask_executor(address, patience=patience).__enter__)


def test_a_worker_with_another_version_is_refused(cluster, monkeypatch):
    monkeypatch.setattr("rome_lens.runs.dask.__version__", "0.0.9")
    said = _refused(RunError, cluster.scheduler_address, patience=10)
    assert re.fullmatch(r"the dask worker at tcp://\S+ has rome_lens 0.1.0; expected 0.0.9, as here", said)


def test_a_cluster_without_workers_is_refused():
    with _cluster(0) as empty:
        address = empty.scheduler_address
        said = _refused(RunError, address, patience=0.2)
    assert said == f"the dask scheduler at {address!r} has no worker; start one (dask worker {address})"


def test_an_address_where_no_scheduler_answers_is_refused():
    assert _refused(RunError, "tcp://127.0.0.1:9") == (
        "no dask scheduler answers at 'tcp://127.0.0.1:9'; start one (dask scheduler), or give its address"
    )


@pytest.mark.parametrize("address", ["nonsense://x:1", "tcp://", "tcp://127.0.0.1:port", ""])
def test_an_address_that_is_none_is_refused(address):
    assert _refused(SettingError, address) == (
        f"the address {address!r} is none of a dask scheduler; expected one such as tcp://10.0.0.1:8786"
    )


def test_an_address_with_tls_needs_certificates():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"tls://127.0.0.1:{listening.getsockname()[1]}"
        said = _refused(RunError, address)
    assert said == f"dask has no certificates for {address!r}; set distributed.comm.tls in its configuration"


@pytest.mark.parametrize(
    ("address", "error"), [("tcp://127.0.0.1:9", RunError), ("tcp://127.0.0.1:port", SettingError)]
)
def test_a_refused_address_leaves_no_thread(address, error):
    before = set(threading.enumerate())  # some of which, of a cluster that is gone, may be ending
    _refused(error, address)
    assert set(threading.enumerate()) <= before


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert _refused(RunError, "tcp://127.0.0.1:9") == "dask is not installed: pip install 'rome-lens[dask]'"
