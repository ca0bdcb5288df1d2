"""The pass over text that second moments are collected in.

Pieces of text are taken in portions. The sums grow by whole portions, in their order and between two checkpoints, so a
run that is taken up again adds the same numbers in the same order. Portions are what is shared out: among forked
processes, an executor's workers, and shards.
"""

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, islice
from os import PathLike
from typing import Any, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend, as_backend
from rome_lens.backends.origin import loaded_from
from rome_lens.checks import flag, is_list, keep, seed_number, shown, whole_number, whole_numbers
from rome_lens.data.texts import SELF, Texts, read_texts
from rome_lens.editing.history import unedited_fingerprint
from rome_lens.editing.second_moment.budget import RowBudget
from rome_lens.editing.second_moment.checkpoint import Checkpoint, State
from rome_lens.editing.second_moment.elsewhere import Elsewhere, Recipe
from rome_lens.editing.second_moment.sums import Sums, bytes_to_collect
from rome_lens.editing.second_moment.text_pieces import Cut, Pieces, Portion, SelfPieces, TextPieces, digest_of_all
from rome_lens.errors import ModelError, PromptError, SettingError
from rome_lens.loading.source import ModelSource
from rome_lens.memory import check_fits
from rome_lens.progress import Progress, silent
from rome_lens.runs import Shard
from rome_lens.runs.side_by_side import side_by_side
from rome_lens.version import __version__

# Tokens of a portion: enough for batches of like lengths, little enough to lose when a run is cut short.
_PORTION = 16384


TOKENS_PER_ROW = 20
"""How many tokens for every row of C are enough, as a rule."""


class CollectChanges(TypedDict, total=False):
    """The fields of `CollectSettings`, as `SecondMoment.collect` takes them by name."""

    field: str | None
    max_tokens: int | None
    text_length: int | None
    prepend_bos: bool
    seed: int
    batch_positions: int | None


@dataclass(frozen=True)
class CollectSettings:
    """How keys are collected from text.

    Attributes:
        field: which field of JSON lines or of a data set holds the text; None is `text`.
        max_tokens: stop after this many tokens; None is the end of the texts, and where that is far off (`self`, a data
            set) 20 for every row of C.
        text_length: longest piece of text in tokens, BOS included; None is 256, or what the model's context allows.
        prepend_bos: put BOS in front of every piece.
        seed: seed of `self`.
        batch_positions: the most positions that are run at once, a piece of text being the least; None is chosen by the
            memory that is free.

    Raises:
        SettingError: a setting is out of its range. Which lengths a model takes is checked with the model.
    """

    field: str | None = None
    max_tokens: int | None = None
    text_length: int | None = None
    prepend_bos: bool = False
    seed: int = 0
    batch_positions: int | None = None

    def __post_init__(self) -> None:
        counts = {"max_tokens": self.max_tokens, "batch_positions": self.batch_positions}
        keep(self, **{name: whole_number(name, n, least=1) for name, n in counts.items() if n is not None})
        keep(self, seed=seed_number(self.seed), prepend_bos=flag("prepend_bos", self.prepend_bos))


def collect_sums(
    model: Any,
    layers: Sequence[int],
    texts: str | PathLike[str] | Iterable[str],
    settings: CollectSettings,
    *,
    checkpoint: str | PathLike[str] | None,
    executor: Executor | None,
    shard: Shard | str | None,
    progress: Progress | None,
) -> dict[int, dict[str, Any]]:
    """Collect the second moments of some layers; the arguments are those of `SecondMoment.collect`.

    Returns:
        By layer, the fields of a `SecondMoment`; the matrix in float64, symmetric and on the CPU.
    """
    started = time.perf_counter()
    part, source = Shard.of(shard), ModelSource.of(model)
    source.check_executor(executor)
    backend = as_backend(source.open(progress or silent))
    in_order = _checked_layers(backend, layers)
    wanted = sorted(in_order)
    rows = [backend.w_out(layer).matrix.shape[0] for layer in wanted]
    check_fits(
        f"to collect the second moments of {len(wanted)} layers" if len(wanted) > 1 else "to collect a second moment",
        bytes_to_collect(rows),
        backend.device,
        instead="collect fewer layers at a time" if len(wanted) > 1 else "free some memory first",
    )
    enough = TOKENS_PER_ROW * max(rows)
    cut = Cut.checked(backend, settings.text_length, prepend_bos=settings.prepend_bos)
    pieces = _pieces(backend, texts, settings, cut, enough=enough)
    own = isinstance(pieces, SelfPieces)
    # A model may carry edits in its weights: it is known by what it was before.
    fingerprints = {layer: unedited_fingerprint(backend, layer) for layer in wanted}
    history = {
        "dtype": str(backend.dtype).removeprefix("torch."),
        "prepend_bos": settings.prepend_bos,
        "text_length": cut.text_length,
        "seed": settings.seed if own else None,
    }
    kept = None
    if checkpoint is not None:
        # As files of whole collections have always had it: without a word about shards.
        said = {} if part is None else {"shard": str(part)}
        kept = Checkpoint(checkpoint, {**history, **said, "max_tokens": pieces.max_tokens, "self": own}, fingerprints)
    widths = {layer: fingerprints[layer].d_mlp for layer in wanted}
    pass_ = _Pass(backend, widths, pieces, cut, part, progress)
    with backend.evaluating():
        pass_.run(kept, batch_positions=settings.batch_positions, executor=executor, source=source)
    moments = {layer: pass_.moment(layer) for layer in in_order}
    if kept is not None:
        kept.remove()
    history |= {
        "n_tokens": pass_.state.n_tokens,
        "source": pieces.source,
        "model_name": backend.model_name,
        "loaded_from": loaded_from(backend),
        "backend": backend.name,
        "revision": _revision(backend),
        "device": str(backend.device),
        "n_pieces": pass_.state.n_pieces,
        "digest": pass_.state.digest,
        "versions": _versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": pass_.state.seconds + time.perf_counter() - started,
    }
    if part is not None:
        history |= {"shard": str(part), "n_portions": pass_.n_portions}
    return {
        layer: {"matrix": matrix, "layer": layer, "fingerprint": fingerprints[layer], **history}
        for layer, matrix in moments.items()
    }


def _pieces(
    backend: Backend,
    texts: str | PathLike[str] | Iterable[str],
    settings: CollectSettings,
    cut: Cut,
    *,
    enough: int,
) -> Pieces:
    """The text in pieces; `enough` tokens are read of a text without a near end."""
    max_tokens = settings.max_tokens
    if isinstance(texts, str) and texts == SELF:
        return SelfPieces(backend, max_tokens=max_tokens or enough, seed=settings.seed, cut=cut)
    opened = read_texts(texts, field=settings.field) if isinstance(texts, str | PathLike) else texts
    if not is_list(opened):
        raise SettingError(f"texts is {shown(texts)}; expected texts, a file or a data set of them, or {SELF!r}")
    source = "texts"
    if isinstance(opened, Texts):
        source = opened.source
        if opened.endless:
            max_tokens = max_tokens or enough
    return TextPieces(backend.tokenizer, opened, source=source, max_tokens=max_tokens, cut=cut)


def _checked_layers(backend: Backend, layers: Iterable[int]) -> list[int]:
    """The layers in the order in which they were asked for, each once."""
    expected = "a list of one or more layers, such as [4]"
    asked = whole_numbers("layers", layers, expected=expected)
    if not asked:
        raise SettingError(f"layers is {shown(layers)}; expected {expected}")
    wanted = list(dict.fromkeys(backend.check_layer(layer) for layer in asked))
    for layer in wanted:
        backend.w_out(layer)
    return wanted


def _revision(backend: Backend) -> str | None:
    """The commit on the hub that the weights came from, where Hugging Face noted it."""
    config = getattr(getattr(backend.model, "original_model", None), "config", None)
    commit = getattr(config, "_commit_hash", None)
    return commit if isinstance(commit, str) else None


def _versions() -> dict[str, str]:
    versions = {"rome-lens": __version__, "torch": torch.__version__}
    for package in ("transformer-lens", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions


class _Pass:
    """The portions of one collection that are this shard's, and the sums that they are added to.

    Attributes:
        state: how far it has come.
        n_portions: of all shards; whole when the pass is at its end.
    """

    def __init__(
        self,
        backend: Backend,
        widths: Mapping[int, int],
        pieces: Pieces,
        cut: Cut,
        shard: Shard | None,
        progress: Progress | None,
    ) -> None:
        self._backend, self._widths, self._pieces, self._cut, self._shard = backend, widths, pieces, cut, shard
        self._progress = progress or silent
        self.n_portions = 0
        self._digest: str | None = None

    def run(
        self,
        checkpoint: Checkpoint | None,
        *,
        batch_positions: int | None,
        executor: Executor | None,
        source: ModelSource,
    ) -> None:
        """Add all portions that are not in the sums yet.

        Args:
            checkpoint: where the sums are kept, and taken up.
            batch_positions: positions that are run at once; None is for the free memory to decide.
            executor: adds portions up; None is this process, and processes forked from it.
            source: where the executor's workers have the model from.
        """
        started = time.perf_counter()
        kept = None if checkpoint is None else checkpoint.read()
        # The sizes of batches decide how sums are rounded.
        asked = batch_positions if kept is None else kept.batch_positions
        mine = self._mine()
        first = list(islice(mine, torch.get_num_threads()))
        n_workers = 1 if executor is not None else self._n_workers(first)
        budget = RowBudget.choose(self._backend, self._cut.text_length, self._widths, most=asked, n_workers=n_workers)
        sums = Sums(self._backend, self._widths, budget)
        self._totals = sums.totals
        self.state = State(sums.totals)
        if kept is not None:
            for layer, total in kept.sums.items():
                sums.totals[layer].copy_(total)
            self.state = replace(kept, sums=sums.totals)
        before = self.state.seconds
        left = self._left(chain(first, mine), checkpoint)
        if executor is None and n_workers == 1:
            added = self._added_here(left, sums)
        else:
            recipe = Recipe.of(self._widths, self._cut, self._pieces, budget.positions)
            elsewhere = Elsewhere(self._backend, recipe, executor=executor, source=source, n_workers=n_workers)
            added = elsewhere.added(left, sums)
        with closing(added):
            for portion, pieces in added:
                self._count(portion, pieces)
                if checkpoint is not None:
                    seconds = before + time.perf_counter() - started
                    checkpoint.write_if_due(replace(self.state, batch_positions=budget.positions, seconds=seconds))
        self.state.digest = self._digest or self.state.digest
        if not self.state.n_tokens:
            raise self._nothing()

    def moment(self, layer: int) -> Float[Tensor, "d_mlp d_mlp"]:
        """The mean of the products, exactly symmetric. Its sum is given up: a second copy of each is not held."""
        mean = self._totals.pop(layer).cpu().div_(self.state.n_tokens)
        if not mean.isfinite().all():
            raise ModelError(
                f"the keys of layer {layer} of {self._backend.model_name} are not finite in {self._backend.dtype}; "
                "load it in float32"
            )
        return (mean + mean.t()).div_(2)

    def _n_workers(self, first: Sequence[Portion]) -> int:
        """In how many forked processes to add portions up, by the first of them."""
        cfg, n_layers = self._backend.model.cfg, max(self._widths) + 1
        weights = n_layers * int(cfg.d_model) * (4 * int(cfg.d_model) + 3 * max(self._widths.values()))
        squares = sum(width**2 for width in self._widths.values())
        n_tokens = sum(portion.n_pieces for portion in first) * self._cut.text_length
        return side_by_side(
            len(first), self._backend.device, n_bytes=12 * squares, n_flop=2 * n_tokens * (weights + squares)
        )

    def _mine(self) -> Iterator[Portion]:
        """The portions of this shard."""
        for portion in self._pieces.portions(_PORTION):
            self.n_portions += 1
            self._digest = portion.digest
            if self._shard is None or self._shard.has(portion.number):
                yield portion

    def _left(self, mine: Iterator[Portion], checkpoint: Checkpoint | None) -> Iterator[Portion]:
        """The portions that are not in the sums yet."""
        n_done, passed, digest = self.state.n_pieces, 0, self.state.digest
        rest: list[Portion] = []
        while passed < n_done and (portion := next(mine, None)) is not None:
            if portion.n_pieces > n_done - passed:
                rest = [portion.without(n_done - passed)]
                passed, digest = n_done, rest[0].before or digest
            else:
                passed, digest = passed + portion.n_pieces, portion.digest or digest
            self._progress(passed, n_done, "passing over what is done")
        if checkpoint is not None and (passed != n_done or digest != self.state.digest):
            raise checkpoint.other_work("other texts")
        yield from chain(rest, mine)

    def _added_here(self, portions: Iterator[Portion], sums: Sums) -> Generator[tuple[Portion, Sequence[list[int]]]]:
        for portion in portions:
            pieces = portion.read(self._pieces, self._progress)
            n_before = self.state.n_tokens
            sums.add(pieces, lambda done, n_before=n_before: self._tell(n_before + done))
            yield portion, pieces

    def _count(self, portion: Portion, pieces: Sequence[list[int]]) -> None:
        """Note that a portion is in the sums."""
        self.state.n_tokens += sum(map(len, pieces))
        self.state.n_pieces += len(pieces)
        self.state.digest = portion.digest or digest_of_all(self.state.digest, pieces)
        self._tell(self.state.n_tokens)

    def _tell(self, n_tokens: int) -> None:
        most = self._pieces.max_tokens or 0
        # What the other shards have is not known before the end of the text.
        total = most if self._shard is None else min(most, -(-most // (_PORTION * self._shard.count)) * _PORTION)
        self._progress(min(n_tokens, total or n_tokens), total, "collecting keys")

    def _nothing(self) -> PromptError | SettingError:
        """The error for a collection without a token."""
        if self._shard is None or not self.n_portions:
            return PromptError("there is no text to collect keys from; give one text or more that is not empty")
        return SettingError(
            f"shard {self._shard} has nothing to do: the text has portions of {_PORTION} tokens for {self.n_portions} "
            f"of the {self._shard.count} shards; join those"
        )
