"""Workers of a dask cluster: what the extra `dask` is for."""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from socket import create_connection
from typing import Any

from rome_lens.errors import RunError, SettingError
from rome_lens.runs.worker import rest
from rome_lens.version import __version__

_PATIENCE = 5.0  # seconds for the scheduler to answer, and as many for its first worker


@contextmanager
def dask_executor(address: str, *, patience: float = _PATIENCE) -> Iterator[Executor]:
    """An executor whose calls run on the workers of a dask cluster.

    A worker that is lost takes nothing with it: the scheduler gives its tasks to another. Each worker loads a model of
    its own, and needs this very version of rome_lens.

    Args:
        address: the scheduler's, such as `tcp://10.0.0.1:8786`.
        patience: seconds until a scheduler that does not answer counts as not there.

    Raises:
        RunError: dask is not installed, nothing answers at the address, the cluster has no worker, or a worker has
            another version of rome_lens or none.
        SettingError: the address is not one.
    """
    try:
        from distributed import Client
        from distributed.comm.addressing import get_address_host_port
    except ImportError as error:
        raise RunError("dask is not installed: pip install 'rome-lens[dask]'") from error
    try:
        place = get_address_host_port(address)
    except ValueError as error:
        raise SettingError(
            f"the address {address!r} is none of a dask scheduler; expected one such as tcp://10.0.0.1:8786"
        ) from error
    try:
        create_connection(place, patience).close()  # a client that finds no scheduler would leave a thread behind
        client = Client(address, timeout=patience, set_as_default=False)
    except TypeError as error:
        raise RunError(
            f"dask has no certificates for {address!r}; set distributed.comm.tls in its configuration"
        ) from error
    except OSError as error:  # TimeoutError is one
        raise RunError(
            f"no dask scheduler answers at {address!r}; start one (dask scheduler), or give its address"
        ) from error
    with client:
        _check_workers(client, address, patience)
        yield client.get_executor(pure=False)
        with suppress(OSError):  # the run is over: nothing is lost if the cluster is gone by now
            client.run(rest, on_error="ignore")  # others may use it next, and a model takes memory


def _check_workers(client: Any, address: str, patience: float) -> None:
    try:
        client.wait_for_workers(1, timeout=patience)
    except TimeoutError as error:
        raise RunError(f"the dask scheduler at {address!r} has no worker; start one (dask worker {address})") from error
    for worker, found in sorted(client.get_versions(packages=["rome_lens"])["workers"].items()):
        version = found["packages"].get("rome_lens")
        if version != __version__:
            has = "no rome_lens" if version is None else f"rome_lens {version}"
            raise RunError(f"the dask worker at {worker} has {has}; expected {__version__}, as here")
