"""The second moment of a layer's keys, C = E[k k^T] (Meng et al. 2022, section 3.1 and appendix D).

`W_out` is read as a memory that holds the values of all keys that the model has met. An update along u = C^-1 k moves
the value of the key k and disturbs those of all others least, so C decides what an edit costs. It is uncentred, and
the mean is over the tokens of a text: every position that the model ran, BOS too where it is put in front, because an
edit should leave that key's value alone as well.
"""

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, fields
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend, Fingerprint, as_backend
from rome_lens.backends.origin import held_edits, loaded_from
from rome_lens.checks import keep, known_names, settings_of, shown, whole_number
from rome_lens.editing.second_moment.collect import TOKENS_PER_ROW, CollectChanges, CollectSettings, collect_sums
from rome_lens.editing.second_moment.files import is_npz, read_moment, read_npz, write_moment
from rome_lens.editing.second_moment.inverse import RIDGES, Inverse, check_matrix
from rome_lens.editing.second_moment.shards import join_shards
from rome_lens.errors import ArtefactError, ModelMismatchError, SettingError
from rome_lens.progress import Progress
from rome_lens.runs import Shard


@dataclass(frozen=True, eq=False, repr=False)
class SecondMoment:
    """C of one layer, and where it comes from.

    Attributes:
        matrix: C, symmetric, float64 or float32, [d_mlp d_mlp]. Do not write to it: `solve` keeps its factor.
        layer: the layer whose keys these are.
        n_tokens: positions that C is the mean over; None where it is not known.
        fingerprint: identifies the model's layer; None for published statistics and bare matrices.
        source: what was read: `self` (text that the model wrote), a file, a data set, …
        model_name: the model's name, or None.
        backend: `hooked-transformer` or `transformer-bridge`, or None.
        revision: commit of the model on the hub, where it is known.
        dtype: the model's, such as `float32`, or None.
        device: where the model ran, or None.
        prepend_bos: whether every piece of text had BOS in front, or None.
        text_length: longest piece of text in tokens, BOS included, or None.
        n_pieces: into how many pieces the text was cut, or None.
        seed: seed of `self`; None for other sources.
        digest: SHA-256 of the pieces' token ids, or None.
        versions: of rome-lens, torch, transformer-lens and transformers, as they were.
        created: when, in ISO 8601, or None.
        command: the shell command that made it, or None.
        seconds: how long that took, or None.
        shard: which part of a collection this is, such as `2/4`; None for a whole one.
        n_portions: of a shard: in how many portions the text of all shards comes.

    Raises:
        SettingError: the matrix is not square, symmetric and finite, or the layer is no whole number from 0.
    """

    matrix: Float[Tensor, "d_mlp d_mlp"]
    layer: int
    n_tokens: int | None = None
    fingerprint: Fingerprint | None = None
    source: str = "a matrix"
    model_name: str | None = None
    backend: str | None = None
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    prepend_bos: bool | None = None
    text_length: int | None = None
    n_pieces: int | None = None
    seed: int | None = None
    digest: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str | None = None
    command: str | None = None
    seconds: float | None = None
    loaded_from: str | None = None
    shard: str | None = None
    n_portions: int | None = None
    _inverse: Inverse = field(init=False)

    def __post_init__(self) -> None:
        layer = whole_number("layer", self.layer, least=0)
        check_matrix(self.matrix)
        keep(self, layer=layer, _inverse=Inverse(self.matrix, layer))

    def __repr__(self) -> str:
        tokens = "an unknown number of" if self.n_tokens is None else self.n_tokens
        return (
            f"SecondMoment(layer {self.layer} of {self.model_name or 'an unnamed model'}, {self.d_mlp} x {self.d_mlp}, "
            f"{tokens} tokens of {self.source})"
        )

    @property
    def d_mlp(self) -> int:
        """Width of the MLP: rows and columns of C."""
        return self.matrix.shape[0]

    @property
    def bytes_to_solve(self) -> int:
        """Memory that the first `solve` takes beyond C itself, roughly: its Cholesky factor is made and kept."""
        return self._inverse.bytes_to_solve

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to trust this C, a sentence each; empty where there are none."""
        if self.shard is not None:
            return (f"this is shard {self.shard} of a text; join it with the others (SecondMoment.merge)",)
        if self.n_tokens is not None and self.n_tokens < self.d_mlp:
            return (
                f"collected from {self.n_tokens} tokens, fewer than the {self.d_mlp} rows of C: it has no inverse of "
                f"its own, and the ridge decides what an edit spares; collect {TOKENS_PER_ROW * self.d_mlp} tokens or "
                "more",
            )
        if self.ridge > RIDGES[0]:
            return (
                f"C is singular as far as float32 can tell, and took a ridge of {self.ridge:g} where {RIDGES[0]:g} is "
                "the rule; collect it from more tokens, or from texts that differ more",
            )
        return ()

    @classmethod
    def collect(
        cls,
        model: Any,
        *,
        layers: Sequence[int],
        texts: str | os.PathLike[str] | Iterable[str],
        settings: CollectSettings | None = None,
        source: str | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        executor: Executor | None = None,
        shard: Shard | str | None = None,
        command: str | None = None,
        progress: Progress | None = None,
        **changes: Unpack[CollectChanges],
    ) -> "dict[int, SecondMoment]":
        """Run a model over text and average the products of its keys with themselves, of all layers in one pass.

        The pass stops at the last of the layers. Products are taken in float32 (in float64 for a model in float64) and
        summed in float64. Where it is worth it, portions of 16,384 tokens are added up side by side in forked
        processes of one thread each. With other processes than these the sums are the same up to rounding in float32.

        Args:
            model: a HookedTransformer or a TransformerBridge, processed weights or not; a name, as `load_model` takes
                it; or a function without arguments that makes one.
            layers: which layers.
            texts: texts; or what `read_texts` reads: a text file, JSON lines, a hub data set; or `self`: text that the
                model writes itself, which needs no download.
            settings: how they are collected; each of its fields can be given by its own name instead.
            source: what the history says about the texts; by default their file, data set or `texts`.
            checkpoint: a file to which sums are written now and then. If it exists the work is taken up from there:
                the result is the one of a run that was never interrupted, to the last bit. It is removed at the end.
            executor: adds portions up in its workers, such as one of `process_pool` or `dask_executor`, which need the
                model's name or a function.
            shard: collect the i-th of n parts alone, `i/n`, every n-th portion; `merge` joins them. Every shard reads
                all of a text, and lets the model write no more of `self` than its own part.
            command: what the history says about how this was made.
            progress: called with (done, total, what) now and then, in tokens.
            field: which field of JSON lines or of a data set holds the text; by default `text`.
            max_tokens: stop after this many tokens; by default at the end of the texts, and where that is far off
                (`self`, a data set) after 20 for every row of C.
            text_length: longest piece of text in tokens, BOS included; by default 256, or what the model's context
                allows. Longer texts are cut.
            prepend_bos: put BOS in front of every piece.
            seed: seed of `self`.
            batch_positions: the most positions that are run at once, a piece of text being the least; by default chosen
                from the memory that is free. It is halved when memory runs out all the same.

        Returns:
            By layer, in the order that was asked for.

        Raises:
            SettingError: a setting is out of its range; there are more shards than portions, and none is left for this
                one; or the executor's processes cannot share the model.
            PromptError: there is no text, or a text holds half a character.
            ArtefactError: a file cannot be read; or the checkpoint cannot be used, or belongs to other work.
            ModelError: the object is no decoder of TransformerLens, or a layer has no `W_out`.
            OutOfMemoryError: not even one piece of text fits into memory.
            RunError: a worker was lost, or has another model.
        """
        known_names("SecondMoment.collect", changes, CollectChanges.__annotations__)
        chosen = settings_of(CollectSettings, settings, changes, expected="CollectSettings")
        collected = collect_sums(
            model, layers, texts, chosen, checkpoint=checkpoint, executor=executor, shard=shard, progress=progress
        )
        said: dict[str, Any] = {"command": command} | ({} if source is None else {"source": source})
        return {layer: cls(**values | said) for layer, values in collected.items()}

    @classmethod
    def merge(cls, moments: Iterable["SecondMoment"], *, command: str | None = None) -> "SecondMoment":
        """Join the shards of a layer's collection: the second moment of all their text.

        Sums are added in float64, so it is the one of a collection without shards up to the order of the sums.

        Args:
            moments: all shards, in any order.
            command: what the history says about how this was made.

        Raises:
            SettingError: they are not the shards of one collection, each once.
        """
        given = list(moments)
        if not all(isinstance(moment, cls) for moment in given):
            raise SettingError(f"moments is {shown(given)}; expected second moments")
        values: dict[str, Any] = join_shards([(moment.matrix, moment._history()) for moment in given])
        return cls(**{**values, "command": command})

    @classmethod
    def from_matrix(cls, matrix: Tensor, *, layer: int) -> "SecondMoment":
        """A C that was computed elsewhere, [d_mlp d_mlp], without a history.

        Raises:
            SettingError: it is not square, symmetric (up to rounding) and finite.
        """
        check_matrix(matrix)
        matrix = matrix.detach().to("cpu")
        if matrix.dtype not in (torch.float32, torch.float64):
            matrix = matrix.double()
        return cls(matrix=(matrix + matrix.t()) / 2, layer=layer)

    @classmethod
    def from_npz(cls, path: str | os.PathLike[str], *, layer: int) -> "SecondMoment":
        """Read statistics that the released code of ROME or MEMIT wrote or its authors published (`….npz`).

        Such a file names neither model nor layer, though its name often does.

        Args:
            path: the file.
            layer: the layer that it is of.

        Raises:
            ArtefactError: there is no such file, or it holds something else.
        """
        matrix, n_tokens, source = read_npz(path)
        return cls._of_file(path, matrix=matrix, layer=layer, n_tokens=n_tokens, source=source)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: Any = None, layer: int | None = None) -> "SecondMoment":
        """Read a file that `save` wrote, or published statistics, which are known by their content.

        Args:
            path: the file.
            model: refuse a file of another model than this one.
            layer: refuse a file of another layer. Published statistics need it, since they do not say.

        Raises:
            ArtefactError: there is no such file, or it holds something else.
            ModelMismatchError: it belongs to another model, layer or width.
            SettingError: published statistics without a layer.
        """
        if layer is not None:
            layer = whole_number("layer", layer, least=0)
        if is_npz(path):
            if layer is None:
                raise SettingError(
                    f"{os.fspath(path)!r} holds published statistics, which do not say of which layer; give the layer"
                )
            moment = cls.from_npz(path, layer=layer)
        else:
            matrix, history = read_moment(path)
            moment = cls._of_file(path, matrix=matrix, **history)
        if layer is not None and moment.layer != layer:
            known = moment.loaded_from or moment.model_name
            raise ModelMismatchError(
                moment._other_layer(layer, known if model is None else loaded_from(as_backend(model)))
            )
        if model is not None:
            moment.check(as_backend(model), moment.layer)
        return moment

    @classmethod
    def _of_file(cls, path: str | os.PathLike[str], **values: Any) -> "SecondMoment":
        try:
            return cls(**values)
        except SettingError as error:
            raise ArtefactError(f"cannot use {os.fspath(path)!r}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write C (its upper triangle, in float32; that of a shard in float64) and its history to a file
        (safetensors).

        Raises:
            ArtefactError: the file cannot be written.
        """
        write_moment(path, self.matrix, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The history, as JSON can hold it: everything but the matrix."""
        mark = self.fingerprint
        fingerprint = None if mark is None else mark.to_dict() | {"sketch": list(mark.sketch)}
        return {**self._history(), "versions": dict(self.versions), "fingerprint": fingerprint}

    def _history(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("matrix", "_inverse")}

    def handed_on(self) -> dict[str, Any]:
        """The history as edits hold it, which are handed on: where files lie on this machine does not belong there."""
        return {name: value for name, value in self.to_dict().items() if name != "loaded_from"}

    def check(self, backend: Backend, layer: int, matrix: Float[Tensor, "d_mlp d_model"] | None = None) -> None:
        """Refuse to serve another model, layer or width than this C was collected from.

        Args:
            backend: the model.
            layer: its layer that is to be edited.
            matrix: the layer's `W_out` before anything was edited; by default the one that the model holds now.

        Raises:
            ModelMismatchError: this C is of something else.
            SettingError: the model has no such layer.
            ModelError: the layer has no `W_out`.
        """
        if self.layer != backend.check_layer(layer):
            raise ModelMismatchError(self._other_layer(layer, loaded_from(backend)))
        matrix = backend.w_out(layer).matrix if matrix is None else matrix
        if matrix.shape[0] != self.d_mlp:
            raise ModelMismatchError(
                f"the second moment has {self.d_mlp} rows, but layer {layer} of {backend.model_name} has keys of "
                f"{matrix.shape[0]} numbers; collect one from this model ({stats_command(layer, loaded_from(backend))})"
            )
        if self.fingerprint is None:
            return
        now = backend.fingerprint(layer, matrix)
        difference = self.fingerprint.difference(now)
        # Edits that came with the model's folder changed the layer's values, and not its keys.
        held = held_edits(backend, now)
        if difference is not None and not (held is not None and self.fingerprint.difference(held.original) is None):
            raise ModelMismatchError(
                f"the second moment was collected from {self.model_name}, and this {backend.model_name} is another "
                f"model ({difference}); collect one from it ({stats_command(layer, loaded_from(backend))})"
            )

    def _other_layer(self, layer: int, name: str | None) -> str:
        return (
            f"the second moment is of layer {self.layer}, and layer {layer} was asked for; "
            f"collect that one ({stats_command(layer, name)})"
        )

    def solve(self, key: Float[Tensor, "*batch d_mlp"], ridge: float | None = None) -> Float[Tensor, "*batch d_mlp"]:
        """C^-1 k, by Cholesky in float64 of C with a small ridge; the factor is computed once and kept.

        Args:
            key: one key or several.
            ridge: what is added to the diagonal, in units of its mean; by default the first of `RIDGES` with which C
                has a Cholesky factor.

        Returns:
            In float64, on the matrix's device.

        Raises:
            SettingError: the key has another width or is not finite; or C with this ridge has no Cholesky factor.
        """
        return self._inverse.solve(key, ridge)

    @property
    def ridge(self) -> float:
        """The ridge that `solve` takes by default.

        Raises:
            SettingError: C has no Cholesky factor with any of `RIDGES`.
        """
        return self._inverse.ridge

    @property
    def condition_number(self) -> float:
        """Largest over smallest eigenvalue of C with its ridge, in float64; computed once.

        Raises:
            SettingError: C has no Cholesky factor with any of `RIDGES`.
        """
        return self._inverse.condition_number


def moment_of(given: Any, *, layer: int) -> SecondMoment:
    """The second moment that a caller gave: one that was collected or read, or a bare matrix.

    Raises:
        SettingError: it is none; a path is to be read first, and of several one is to be chosen.
    """
    if isinstance(given, SecondMoment):
        return given
    if isinstance(given, Tensor):
        return SecondMoment.from_matrix(given, layer=layer)
    expected = "a SecondMoment, or a torch matrix [d_mlp, d_mlp]"
    if isinstance(given, str | os.PathLike):
        path = repr(os.fspath(given))
        raise SettingError(f"second_moment is the path {path}; expected {expected}: read it, SecondMoment.load({path})")
    if isinstance(given, Mapping) and given and all(isinstance(one, SecondMoment) for one in given.values()):
        raise SettingError(
            f"second_moment holds second moments of layers {list(given)}, as SecondMoment.collect gives them; expected "
            f"that of layer {layer} alone: give it with [{layer}]"
        )
    as_tensor = ": torch.from_numpy(array) makes one" if type(given).__module__.partition(".")[0] == "numpy" else ""
    raise SettingError(f"second_moment is {shown(given)}; expected {expected}{as_tensor}")


def stats_command(layer: int, name: str | None) -> str:
    """The command that collects a layer's C.

    Args:
        layer: the layer.
        name: of the model, as `load_model` takes it; None where it is not known.
    """
    return f"rome-lens stats --model {'MODEL' if name is None else shlex.quote(name)} --layer {layer}"
