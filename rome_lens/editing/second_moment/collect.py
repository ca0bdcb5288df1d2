"""The pass over text that second moments are collected in.

Pieces of text are taken in portions, and those of a portion sorted by length, so that little of a batch is padding.
Padding stands on the right, where no token of a decoder sees it, and its keys are left out. Each layer's products are
added to its sum while the model runs: no keys are kept. The sums grow by whole portions between two checkpoints, so a
run that is taken up again adds the same numbers in the same order.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend, fast_products
from rome_lens.backends.decoding import pad_rows
from rome_lens.backends.origin import loaded_from
from rome_lens.checks import flag, is_list, keep, seed_number, shown, whole_number, whole_numbers
from rome_lens.data.texts import SELF, Texts, read_texts
from rome_lens.editing.history import unedited_fingerprint
from rome_lens.editing.second_moment.budget import RowBudget
from rome_lens.editing.second_moment.checkpoint import Checkpoint, State
from rome_lens.editing.second_moment.text_pieces import Cut, Pieces, SelfPieces, TextPieces, digest_of
from rome_lens.errors import ModelError, OutOfMemoryError, PromptError, SettingError
from rome_lens.memory import is_out_of_memory
from rome_lens.progress import Progress
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
    backend: Backend,
    layers: Sequence[int],
    texts: str | PathLike[str] | Iterable[str],
    settings: CollectSettings,
    *,
    checkpoint: str | PathLike[str] | None,
    progress: Progress | None,
) -> dict[int, dict[str, Any]]:
    """Collect the second moments of some layers; the arguments are those of `SecondMoment.collect`.

    Returns:
        By layer, the fields of a `SecondMoment`; the matrix in float64, symmetric and on the CPU.
    """
    started = time.perf_counter()
    in_order = _checked_layers(backend, layers)
    wanted = sorted(in_order)
    enough = TOKENS_PER_ROW * max(backend.w_out(layer).matrix.shape[0] for layer in wanted)
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
        kept = Checkpoint(checkpoint, {**history, "max_tokens": pieces.max_tokens, "self": own}, fingerprints)
    pass_ = _Pass(backend, {layer: fingerprints[layer].d_mlp for layer in wanted}, progress, pieces.max_tokens)
    with backend.evaluating():
        pass_.run(pieces, kept, batch_positions=settings.batch_positions, text_length=cut.text_length)
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
    """Sums of products, and how far they have come."""

    def __init__(
        self, backend: Backend, widths: Mapping[int, int], progress: Progress | None, max_tokens: int | None
    ) -> None:
        self._backend, self._widths = backend, widths
        self._progress, self._max_tokens = progress, max_tokens

    def run(
        self, pieces: Pieces, checkpoint: Checkpoint | None, *, batch_positions: int | None, text_length: int
    ) -> None:
        started = time.perf_counter()
        self.state = State(self._zeros())
        kept = None if checkpoint is None else checkpoint.read()
        if kept is not None:
            for layer, total in kept.sums.items():
                self.state.sums[layer].copy_(total)
            self.state = replace(kept, sums=self.state.sums)
            # The sizes of batches decide how sums are rounded.
            batch_positions = kept.batch_positions
        self._budget = RowBudget.choose(self._backend, text_length, self._widths, most=batch_positions)
        rest, digest = pieces.after(self.state.n_pieces, self._progress)
        if checkpoint is not None and digest is not None and digest != self.state.digest:
            raise checkpoint.other_work("other texts")
        for portion in _portions(rest):
            if not self.state.n_pieces:
                self._check_layers(portion[0])
            self._add(portion)
            if checkpoint is not None:
                seconds = self.state.seconds + time.perf_counter() - started
                checkpoint.write_if_due(replace(self.state, batch_positions=self._budget.positions, seconds=seconds))
        if not self.state.n_tokens:
            raise PromptError("there is no text to collect keys from; give one text or more that is not empty")

    def moment(self, layer: int) -> Float[Tensor, "d_mlp d_mlp"]:
        """The mean of the products, exactly symmetric."""
        mean = self.state.sums[layer].cpu() / self.state.n_tokens
        if not mean.isfinite().all():
            raise ModelError(
                f"the keys of layer {layer} of {self._backend.model_name} are not finite in {self._backend.dtype}; "
                "load it in float32"
            )
        return (mean + mean.t()) / 2

    def _zeros(self) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
        # Apple's GPUs have no float64.
        device = torch.device("cpu") if self._backend.device.type == "mps" else self._backend.device
        try:
            return {
                layer: torch.zeros(width, width, dtype=torch.float64, device=device)
                for layer, width in self._widths.items()
            }
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"the sums of {len(self._widths)} layers do not fit into memory; collect fewer layers at a time"
            ) from error

    def _check_layers(self, piece: list[int]) -> None:
        tokens = torch.tensor([piece], device=self._backend.device)
        for layer in self._widths:
            self._backend.check_w_out(layer, tokens)

    @torch.no_grad()
    def _add(self, portion: list[list[int]]) -> None:
        waiting = sorted(portion, key=len, reverse=True)
        done = self.state.n_tokens
        with fast_products(device=self._backend.device, dtype=self._backend.dtype):
            while waiting:
                n_rows = max(1, self._budget.positions // len(waiting[0]))
                batch, waiting = waiting[:n_rows], waiting[n_rows:]
                self._add_batch(batch, set(self._widths))
                done += sum(map(len, batch))
                if self._progress is not None:
                    self._progress(done, self._max_tokens or 0, "collecting keys")
        self.state.n_tokens = done
        self.state.n_pieces += len(portion)
        for piece in portion:
            self.state.digest = digest_of(self.state.digest, piece)

    def _add_batch(self, batch: list[list[int]], pending: set[int]) -> None:
        """Add the products of a batch to the sums of the layers that are pending."""
        try:
            self._add_whole(batch, pending)
        except (RuntimeError, MemoryError) as error:
            self._budget.halve_after(error, n_rows=len(batch))
        else:
            return
        # Layers that had their products before memory ran out are not pending any more.
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            self._add_batch(part, set(pending))

    def _add_whole(self, batch: list[list[int]], pending: set[int]) -> None:
        lengths = torch.tensor([len(piece) for piece in batch])
        tokens = pad_rows(batch, self._backend.device)
        real = torch.arange(tokens.shape[1]) < lengths[:, None]
        padded, last = not real.all(), max(pending)

        def adding(layer: int) -> Any:
            def add(key: Tensor) -> None:
                # A model may be spread over several devices.
                product = _product(key[real.to(key.device)] if padded else key.flatten(0, 1))
                self.state.sums[layer].add_(product.to(self.state.sums[layer].device))
                pending.remove(layer)

            return add

        hooks = [(self._backend.key_hook(layer), adding(layer)) for layer in sorted(pending)]
        with self._backend.hooked(hooks):
            if last + 1 < self._backend.n_layers:
                self._backend.run(tokens, layers=last + 1)
            else:
                self._backend.logits(tokens, keep=1)
        if pending:
            raise ModelError(f"layer {min(pending)} of {self._backend.model_name} never shows its keys")


def _portions(pieces: Iterator[list[int]]) -> Iterator[list[list[int]]]:
    portion: list[list[int]] = []
    size = 0
    for piece in pieces:
        portion.append(piece)
        size += len(piece)
        if size >= _PORTION:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _product(keys: Float[Tensor, "token d_mlp"]) -> Float[Tensor, "d_mlp d_mlp"]:
    """Sum over tokens of k k^T, in float32, or in float64 for keys in float64."""
    # As a linear map it goes through the faster of PyTorch's libraries (backends.products), which wants rows in order.
    across = keys.detach().t().to(torch.promote_types(keys.dtype, torch.float32)).contiguous()
    return F.linear(across, across)
