"""What tracing and editing ask of a model, whichever TransformerLens class holds it.

A backend wraps a model object that the caller made. It changes nothing in it for longer than a `with` block, and it
goes through the model's own hook points and blocks, so that what a user's hooks would see is what really runs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.backends.inference import ordinary_tensors
from rome_lens.backends.replay import BlockReplay
from rome_lens.backends.w_out import Fingerprint, WOut, as_w_out, sketch_matrix
from rome_lens.checks import check_layer
from rome_lens.errors import AnswerError, ModelError, PromptError
from rome_lens.tokens import TokenisedPrompt

HEADS, NEURONS = "heads", "neurons"
STREAMS = ("resid", "mlp", "attn", HEADS)
_STREAM_HOOK = {
    "resid": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "attn": "hook_attn_out",
    HEADS: "attn.hook_z",
    NEURONS: "mlp.hook_post",
}

HookFunction = Callable[[Tensor], Tensor | None]


class Backend(ABC):
    """A TransformerLens model as the rest of the house sees it.

    Attributes:
        name: `hooked-transformer` or `transformer-bridge`.
        model: the object that was given.
        n_layers: how many blocks it has.
        d_model: width of the residual stream.
    """

    name: str

    def __init__(self, model: Any) -> None:
        self.model = model
        self.n_layers, self.d_model = int(model.cfg.n_layers), int(model.cfg.d_model)
        self._points: dict[str, Any] = dict(model.hook_dict)

    @property
    def n_heads(self) -> int:
        """Heads of a layer's attention, as queries count them: several may share their keys and values."""
        return int(self.model.cfg.n_heads)

    @property
    def d_vocab(self) -> int:
        return int(self.model.cfg.d_vocab)

    @property
    def d_vocab_out(self) -> int:
        """How many tokens the model gives a logit to: as many as it embeds, unless its configuration says otherwise."""
        d_vocab_out = getattr(self.model.cfg, "d_vocab_out", None)
        return int(d_vocab_out) if d_vocab_out and d_vocab_out > 0 else self.d_vocab

    @property
    def n_ctx(self) -> int | None:
        """Longest input in tokens; None where the configuration does not bound it."""
        n_ctx = getattr(self.model.cfg, "n_ctx", None)
        return int(n_ctx) if n_ctx and n_ctx > 0 else None

    @property
    def model_name(self) -> str:
        return str(getattr(self.model.cfg, "model_name", None) or type(self.model).__name__)

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model's first parameter is. Of a model that is spread over several devices, all that is handed over
        here comes from there and goes there: tokens, activations and logits.
        """
        return next(self.model.parameters()).device

    @cached_property
    def _is_spread(self) -> bool:
        """Whether the model's layers are on several devices."""
        return len({parameter.device for parameter in self.model.parameters()}) > 1

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    def streams(self) -> tuple[str, ...]:
        """The streams that every layer of this model has a hook point for."""
        # An attention-only HookedTransformer has points for the MLPs it lacks, and they never fire.
        absent = {"mlp"} if getattr(self.model.cfg, "attn_only", False) else set()
        return tuple(
            stream
            for stream in STREAMS
            if stream not in absent and all(self.stream_hook(stream, i) in self._points for i in range(self.n_layers))
        )

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model in evaluation mode (no dropout); every module gets its own mode back afterwards.

        A caller's inference mode is left, so that gradients can be taken, of a model that was made in one as well.
        """
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with ordinary_tensors(self.model):
                yield
        finally:
            for module, training in modes:
                module.training = training

    def foreign_hooks(self) -> tuple[str, ...]:
        """Names of the hook points that already carry hooks of others; TransformerLens's own do not count."""
        return tuple(
            name
            for name, point in self._points.items()
            if any(_is_foreign(handle) for handle in (*point.fwd_hooks, *point.bwd_hooks))
        )

    @contextmanager
    def hooked(self, hooks: Sequence[tuple[str, HookFunction]]) -> Iterator[None]:
        """Attach functions to hook points by name for as long as the block lasts.

        The points were looked up once: TransformerBridge 3.9 rebuilds its whole table at every look-up, and ignores
        an unknown name in silence.
        """
        handles = []
        try:
            for name, function in hooks:
                point = self._points.get(name)
                if point is None:
                    raise ModelError(
                        f"{self.model_name} ({type(self.model).__name__}) has no hook point {name!r}; "
                        "rome_lens needs a decoder whose blocks TransformerLens has mapped"
                    )
                if self._is_spread:
                    function = self._moving(function)
                # Bridge hands the canonical name over, HookedTransformer the asked-for one: neither is looked at.
                point.add_hook(lambda activation, hook, function=function: function(activation))
                handles.append((point, point.fwd_hooks[-1]))
            yield
        finally:
            for point, handle in handles:
                handle.hook.remove()
                point.fwd_hooks.remove(handle)

    def _moving(self, function: HookFunction) -> HookFunction:
        """The same for activations of any device: what the function sees and gives is on the model's first one."""

        def moved(activation: Tensor) -> Tensor | None:
            given = function(activation.to(self.device))
            return None if given is None else given.to(activation.device)

        return moved

    @staticmethod
    def stream_hook(stream: str, layer: int) -> str:
        """Name of the hook point where a stream's output of one layer passes."""
        return f"blocks.{layer}.{_STREAM_HOOK[stream]}"

    @torch.no_grad()
    def embeddings(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos embed_width"]:
        """What passes `hook_embed`: token embeddings before position information, scaled as the model scales them.

        Raises:
            ModelError: nothing passes it.
        """
        seen: list[Tensor] = []
        with self.hooked([("hook_embed", lambda x: seen.append(x.detach().clone()))]):
            self._checked_forward(tokens, stop_at_layer=0)
        if not seen:
            raise self.silent("hook_embed")
        return seen[0]

    @cached_property
    def embed_width(self) -> int:
        """Numbers of one position that pass `hook_embed`; OPT-350m embeds in fewer than its `d_model`."""
        return self.embeddings(torch.zeros((1, 1), dtype=torch.long, device=self.device)).shape[-1]

    def silent(self, name: str) -> ModelError:
        """The error for a hook point that is there, and that nothing passes."""
        return ModelError(
            f"{self.model_name} lists the hook point {name!r}, but nothing passes it in a forward; rome_lens cannot "
            "work on this model as TransformerLens hosts it"
        )

    @torch.no_grad()
    def logits(self, tokens: Int[Tensor, "batch pos"], keep: int) -> Float[Tensor, "batch keep d_vocab"]:
        """The model's own forward, unembedding the last `keep` positions only."""
        with self.hooked([("unembed.hook_in", lambda x: x[:, -keep:])]):
            # Cut once more for a model in whose forward nothing passes the point.
            return self._checked_forward(tokens)[:, -keep:]

    @torch.no_grad()
    def logits_at(
        self, tokens: Int[Tensor, "batch pos"], rows: Int[Tensor, " place"], columns: Int[Tensor, " place"]
    ) -> Float[Tensor, "place d_vocab"]:
        """The model's own forward, unembedding single places only."""
        cut: list[bool] = []

        def places(x: Tensor) -> Tensor:
            cut.append(True)
            return x[rows, columns][:, None]

        with self.hooked([("unembed.hook_in", places)]):
            logits = self._checked_forward(tokens)
        return logits[:, 0] if cut else logits[rows, columns]

    @staticmethod
    def key_hook(layer: int) -> str:
        """Name of the hook point where a layer's key passes: what enters `W_out`, [batch pos d_mlp]."""
        return f"blocks.{layer}.{_STREAM_HOOK[NEURONS]}"

    @abstractmethod
    def value_hook(self, layer: int) -> str:
        """Name of the hook point where what leaves `W_out` passes, its bias included, [batch pos d_model].

        Raises:
            ModelError: the model has no such point.
        """

    def w_out(self, layer: int) -> WOut:
        """`W_out` of a layer, looked up anew at every call: processing a model replaces its parameters.

        Raises:
            ModelError: the layer has none.
        """
        weight, bias, transposed = self._projection(self.model.blocks[self.check_layer(layer)])
        return as_w_out(weight, bias, transposed=transposed, d_model=self.d_model, name=self.model_name, layer=layer)

    @abstractmethod
    def _projection(self, block: Any) -> tuple[Any, Any, bool]:
        """Weight and bias of what leaves a block's MLP, None where it has none; whether the weight is transposed."""

    def check_layer(self, layer: int) -> int:
        """Refuse a layer that the model does not have.

        Raises:
            SettingError: it is no whole number from 0 to n_layers - 1.
        """
        return check_layer(layer, n_layers=self.n_layers, model_name=self.model_name)

    def fingerprint(self, layer: int, matrix: Tensor | None = None) -> Fingerprint:
        """What identifies this model's layer.

        Args:
            layer: the layer.
            matrix: its `W_out` before anything was edited; by default the one that the model holds now.
        """
        matrix = self.w_out(layer).matrix if matrix is None else matrix
        norm, sketch = sketch_matrix(matrix)
        d_mlp, d_model = matrix.shape
        return Fingerprint(self.model_name, layer, self.n_layers, d_model, d_mlp, norm, sketch)

    def keys_and_values(
        self, layer: int, tokens: Int[Tensor, "batch pos"]
    ) -> tuple[Float[Tensor, "batch pos d_mlp"], Float[Tensor, "batch pos d_model"]]:
        """What enters and what leaves `W_out` of a layer.

        Raises:
            ModelError: the model has no such hook points, or they never fire.
        """
        return self._keys_and_values([layer], tokens, lambda x: x.clone())[layer]

    def keys_and_values_at(
        self, layers: Sequence[int], tokens: Int[Tensor, "batch pos"], columns: Int[Tensor, " batch"]
    ) -> dict[int, tuple[Float[Tensor, "batch d_mlp"], Float[Tensor, "batch d_model"]]]:
        """The same of several layers in one forward, at one position of each row; it raises the same."""
        return self._keys_and_values(layers, tokens, lambda x: x[torch.arange(len(x), device=x.device), columns])

    @torch.no_grad()
    def _keys_and_values(
        self, layers: Sequence[int], tokens: Tensor, kept: Callable[[Tensor], Tensor]
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """What `kept` gives of the keys and the values of each layer."""
        seen: dict[str, Tensor] = {}

        def keep(point: str, x: Tensor) -> None:
            if x.shape[:2] == tokens.shape:
                seen[point] = kept(x.detach())

        points = {layer: (self.key_hook(layer), self.value_hook(layer)) for layer in layers}
        with self.hooked([(point, partial(keep, point)) for both in points.values() for point in both]):
            self.run(tokens, layers=max(layers) + 1)
        for layer, both in points.items():
            if not seen.keys() >= set(both):
                raise ModelError(
                    f"layer {layer} of {self.model_name} does not show what enters and leaves W_out at its hook "
                    "points; rank-one editing needs both"
                )
        return {layer: (seen[key], seen[value]) for layer, (key, value) in points.items()}

    def check_w_out(self, layer: int, tokens: Int[Tensor, "batch pos"]) -> None:
        """Hold `key @ W_out + b_out` against the value on a text: what rank-one editing rests on.

        Raises:
            ModelError: the layer has no `W_out`, or what leaves it is something else (a norm after the MLP).
        """
        self.check_values(layer, *self.keys_and_values(layer, tokens))

    def check_values(self, layer: int, key: Float[Tensor, "... d_mlp"], value: Float[Tensor, "... d_model"]) -> None:
        """The same for keys and values that are there already."""
        w_out = self.w_out(layer)
        key, value = (x.to(w_out.matrix.device) for x in (key, value))
        exact = key.double() @ w_out.matrix.double() + (0 if w_out.bias is None else w_out.bias.double())
        apart = (exact - value.double()).abs().max() / value.double().abs().max().clamp(min=1e-30)
        tolerance = 32 * torch.finfo(self.dtype).eps
        if not apart <= tolerance:
            raise ModelError(
                f"what leaves the MLP of layer {layer} of {self.model_name} is not its key times W_out plus b_out "
                f"(relative difference {apart:.1e}): a norm or a scale follows it, and rank-one editing would miss; "
                "a TransformerBridge of the same model may show W_out's own output"
            )

    def run(self, tokens: Int[Tensor, "batch pos"], *, layers: int | None = None) -> Tensor:
        """The model's own forward, for what hooks see of it; gradients are kept where the caller asks for them.

        Args:
            tokens: token ids, without padding in front.
            layers: how many layers to run at least, from the first on; None is all, and then the logits are returned.
        """
        whole = layers is None or layers >= self.n_layers
        return self._checked_forward(tokens, stop_at_layer=None if whole else layers)

    def check_text(self, text: TokenisedPrompt) -> None:
        """Refuse a text that the model cannot take.

        Raises:
            PromptError: it is longer than the context, or holds a token that the model does not have. AnswerError: its
                answer does.
        """
        self.check_vocabulary(text)
        # The last token of an answer is read off the one before it and is never run.
        n_run = len(text.ids) - (1 if text.answer_ids else 0)
        if self.n_ctx is not None and n_run > self.n_ctx:
            raise PromptError(
                f"the prompt{' with its answer' if text.answer_ids else ''} takes {n_run} positions, and "
                f"{self.model_name} has {self.n_ctx}; shorten it"
            )

    def check_vocabulary(self, text: TokenisedPrompt) -> None:
        """Refuse a text with tokens that the tokenizer has and the model does not have.

        Raises:
            PromptError: the model embeds no such token. AnswerError: it gives no logit to one of the answer's.
        """
        self._check_ids(text.ids[:-1] if text.answer_ids else text.ids)
        beyond = next((i for i in text.answer_ids if i >= self.d_vocab_out), None)
        if beyond is not None:
            raise AnswerError(
                f"the answer {text.answer.strip()!r} holds {self._token(beyond)}, and {self.model_name} gives logits "
                f"to {self.d_vocab_out} tokens; name another answer"
            )

    def _checked_forward(self, tokens: Tensor, *, stop_at_layer: int | None = None) -> Tensor:
        # What an index beyond the embedding does depends on the device: on a GPU it ends all work of the process.
        if tokens.numel():
            self._check_ids(torch.stack(tokens.aminmax()).tolist())
        return self._forward(tokens, stop_at_layer=stop_at_layer).to(tokens.device)

    def _check_ids(self, ids: Sequence[int]) -> None:
        beyond = next((i for i in ids if not 0 <= i < self.d_vocab), None)
        if beyond is not None:
            raise PromptError(
                f"the text holds {self._token(beyond)}, and {self.model_name} embeds {self.d_vocab} tokens; leave it "
                "out, or load a model whose embedding was resized with its tokenizer"
            )

    def _token(self, token: int) -> str:
        """A token as an error writes it."""
        text = None if self.tokenizer is None or token < 0 else self.tokenizer.convert_ids_to_tokens(token)
        return f"the token {token}" if text is None else f"the token {text!r} (id {token})"

    @abstractmethod
    def _forward(self, tokens: Tensor, *, stop_at_layer: int | None = None) -> Tensor:
        """The model's own forward on token ids, padding ignored whatever the tokenizer's padding side."""

    @abstractmethod
    def recording(self) -> AbstractContextManager["BlockReplay"]:
        """While open, one forward of the model is watched; afterwards its blocks can be called alone."""


def _is_foreign(handle: Any) -> bool:
    # For OPT, TransformerLens 4 attaches hooks of its own that give the MLP's activations their batch dimension.
    function = getattr(handle, "user_hook", None)
    return not (getattr(function, "__module__", None) or "").startswith("transformer_lens.")
