"""How many requests are worked on together: as many as pay and as memory holds, those of like length."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from rome_lens.backends import Backend
from rome_lens.backends.decoding import room_twice, weights_of
from rome_lens.memory import check_fits, free_bytes
from rome_lens.progress import Progress
from rome_lens.runs import forked_map

_T = TypeVar("_T")

MOST_LAID_OUT = 2**30
"""The most bytes of weights that are kept a second time, laid out for the calls of the optimiser: of larger models that
takes more memory than the optimiser, and no less time than to run their layers twice (docs/benchmarks.md)."""

# Where memory is the only bound that counts.
_MOST_ELSEWHERE = 64


def batch_size_for(backend: Backend, n_bytes: int, *, most: Mapping[str, int]) -> int:
    """How many requests go together while gradients are taken.

    Args:
        backend: the model.
        n_bytes: what one request holds meanwhile.
        most: by type of device, from how many on a larger batch no longer pays.
    """
    bound = most.get(backend.device.type, _MOST_ELSEWHERE)
    return max(1, min(bound, free_bytes(backend.device) // 3 // max(1, n_bytes)))


def kept_for_gradients(backend: Backend, layer: int, *, n_positions: int) -> int:
    """Roughly how many numbers the layers from `layer` up keep for the gradient at these positions."""
    d_mlp = int(getattr(backend.model.cfg, "d_mlp", None) or backend.w_out(layer).matrix.shape[0])
    n_layers, twice = backend.n_layers - layer, not room_twice(backend, first=layer, most=MOST_LAID_OUT)
    return n_positions * kept_of_position(n_layers, backend.d_model, d_mlp, twice=twice)


def kept_of_position(n_layers: int, d_model: int, d_mlp: int, *, twice: bool) -> int:
    """Roughly how many numbers some blocks keep of one position for the gradient.

    Args:
        n_layers: how many blocks.
        d_model: width of the residual stream.
        d_mlp: width of the MLP.
        twice: they are run once more for the gradient, one at a time, and keep what enters them until then.
    """
    # The residual and its norms, queries, keys and values; the MLP's hidden layer before, within and after.
    block = 24 * d_model + 8 * d_mlp
    return n_layers * d_model + 2 * block if twice else n_layers * block


def check_gradients_fit(backend: Backend, layer: int, n_bytes: int, *, n_together: int, instead: str) -> None:
    """Refuse, before the optimiser begins, requests whose gradients memory does not hold.

    Args:
        backend: the model.
        layer: the layer that is edited.
        n_bytes: what one request holds meanwhile.
        n_together: how many are worked on together; of none there is nothing to refuse.
        instead: what to do about one that is too large alone.

    Raises:
        OutOfMemoryError: so much is not free.
    """
    if not n_together:
        return
    total = n_together * n_bytes
    if not room_twice(backend, first=layer, most=MOST_LAID_OUT):
        # Weights of a block at a time, as it is called and as it is differentiated, and those that unembed.
        total += 2 * weights_of(backend, layer) + weights_of(backend, None)
    alone = n_together == 1
    what = "to find an edit" if alone else f"to find {n_together} edits together"
    check_fits(what, total, backend.device, instead=instead if alone else "take a smaller batch_size")


def split_by_length(lengths: Sequence[int], *, batch_size: int) -> list[list[int]]:
    """Numbers of the requests in batches, those of like length together: a batch's rows are as long as its longest."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def in_parts(
    parts: Sequence[Sequence[int]],
    work: Callable[[Sequence[int], Progress | None], Sequence[_T]],
    *,
    what: str,
    progress: Progress | None,
    n_workers: int = 1,
) -> list[_T]:
    """Work on one batch after the other, or on several side by side.

    Args:
        parts: numbers of requests, a batch each.
        work: gives something for each request of a batch.
        what: what progress is reported as; the progress of a request that is alone is passed on as it is.
        progress: called with (done, total, what).
        n_workers: forked processes that work on the batches; 1 is this process. Then what `work` gives is pickled.

    Returns:
        What `work` gave, in the order of the requests.

    Raises:
        RunError: a process was lost, or cannot be started.
        Exception: what `work` raised, for the first batch of those for which it did.
    """
    found: dict[int, _T] = {}
    total = sum(map(len, parts))
    if n_workers > 1:

        def parts_done(n: int) -> None:
            if progress is not None:
                progress(sum(map(len, parts[:n])), total, f"{what} in {n_workers} processes")

        parts_done(0)
        several = forked_map(lambda part: work(part, None), parts, n_workers=n_workers, done=parts_done)
        for part, given in zip(parts, several, strict=True):
            found |= zip(part, given, strict=True)
        return [found[index] for index in range(total)]

    def requests_done(step: int, steps: int, doing: str) -> None:
        assert progress is not None
        progress(len(found), total, what)

    inner = progress if progress is None or total <= 1 else requests_done
    for part in parts:
        found |= zip(part, work(part, inner), strict=True)
    return [found[index] for index in range(total)]
