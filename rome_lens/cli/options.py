"""Options that several commands share: groups of them as dataclasses, and how typer comes to see a group's fields."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer

from rome_lens.progress import Progress

_DECLARED = "option"
# What stands for a value in the help, by its type.
_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "FILE"}

_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class Panel:
    """A panel of a command's help; called, it declares an option that is shown there."""

    title: str

    def __call__(
        self,
        text: str,
        *names: str,
        metavar: str | None = None,
        default: Any = None,
        shown: str | bool = True,
        hidden: bool = False,
    ) -> Any:
        """An option, as the field of a group or as the default of a command's parameter.

        Args:
            text: what the help says.
            names: what is typed, where that is not the option's name alone; a short one, such as `-s`, stands beside
                the name.
            metavar: what stands for its value; None is what stands for values of its type.
            default: its default; MISSING where it is needed.
            shown: what the help names as the default, where that is not the default itself.
            hidden: the help does not show it.
        """
        option = typer.Option(help=text, metavar=metavar, show_default=shown, hidden=hidden, rich_help_panel=self.title)
        option.param_decls = names
        return field(default=default, metadata={_DECLARED: option})

    def answer_joined(self) -> Any:
        """The option that says what stands between a prompt and its answer."""
        text = 'What stands between a prompt and its answer: "" for nothing, " " for a blank.'
        return self(text, shown="by what both write there")

    def chat(self) -> Any:
        """The option that asks a chat model a question."""
        text = "Put the prompt, a question (by default where the Eiffel Tower is), through the chat template."
        return self(text, default=False)

    def reply(self) -> Any:
        """The option that says how a chat model's answer begins."""
        return self("With --chat: what the assistant's reply begins with.", metavar="TEXT", shown="nothing")

    def second_moments(self, shown: str) -> Any:
        """The option that names second moments, a layer each."""
        return self("A file of 'rome-lens stats'; repeat it for several layers.", shown=shown)

    def bos(self, where: str = "") -> Any:
        """The option that puts BOS in front."""
        return self(f"Put a BOS token in front{where}.", "--bos/--no-bos", default=False)


def argument(text: str, metavar: str, *, default: Any = None, shown: str | bool = True) -> Any:
    """An argument, as a panel declares an option."""
    declared = typer.Argument(help=text, metavar=metavar, show_default=shown)
    return field(default=default, metadata={_DECLARED: declared})


OUT = Panel("What comes out")
MODEL = Panel("The model")
TRACE = Panel("How it is traced")

JSON = OUT("Print JSON for machines instead of text.", "--json", default=False)


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let typer see what panels declared: parameters of a command, and the fields of its groups.

    A group is a parameter whose type is a dataclass; the command gets it whole. Its options stand where it stands, in
    the order of its fields. A field that no panel made is no option: so a child leaves out what it has a value for.
    """
    groups: dict[str, Any] = {}
    shown: list[Parameter] = []
    for parameter in signature(command, eval_str=True).parameters.values():
        name, kind, default = parameter.name, parameter.annotation, parameter.default
        if is_dataclass(kind):
            hints, groups[name] = get_type_hints(kind), kind
            shown += [_shown(each.name, hints[each.name], each) for each in _declared(kind)]
        elif isinstance(default, Field):
            shown.append(_shown(name, kind, default))
        else:
            shown.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))
    defaults = {parameter.name: parameter.default for parameter in shown if parameter.default is not Parameter.empty}

    @wraps(command)
    def with_groups(**typed: Any) -> None:
        given = defaults | typed
        for name, kind in groups.items():
            given[name] = kind(**{each.name: given.pop(each.name) for each in _declared(kind)})
        command(**given)

    with_groups.__signature__ = Signature(shown)  # pyright: ignore[reportAttributeAccessIssue]
    return with_groups


def _declared(group: Any) -> list[Field[Any]]:
    return [each for each in fields(group) if _DECLARED in each.metadata]


def _shown(name: str, kind: Any, declared: Field[Any]) -> Parameter:
    """A parameter as typer reads it."""
    option, value = copy(declared.metadata[_DECLARED]), kind
    while get_args(value):  # of `list[int] | None` int
        value = get_args(value)[0]
    option.metavar = option.metavar or _METAVARS.get(value)
    names = option.param_decls
    if names and all(len(each) == 2 for each in names):
        option.param_decls = (f"--{name.replace('_', '-')}", *names)
    default = Parameter.empty if declared.default is MISSING else declared.default
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def typed(context: typer.Context) -> dict[str, str]:
    """What stands on the command line: the option as it is written, by the name of its field."""
    given: dict[str, str] = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        # typer brings its own copy of click, so the source is known by its name.
        if parameter.name is not None and source is not None and source.name == "COMMANDLINE":
            is_option = parameter.param_type_name == "option"
            given[parameter.name] = parameter.opts[0] if is_option else str(parameter.metavar)
    return given


def filled(kind: Callable[..., _Kind], group: Any, **changed: Any) -> _Kind:
    """A dataclass of the library, made of the fields of a group that have the names of its own.

    Args:
        kind: the dataclass.
        group: the group.
        changed: what is not taken over as it was typed.
    """
    given = {each.name: getattr(group, each.name) for each in fields(group)} | changed
    return kind(**{name: given[name] for name in signature(kind).parameters if name in given})


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is loaded."""

    model: str = MODEL(
        "smollm2-135m, a folder in Hugging Face's layout, or a hub name.", "-m", metavar="NAME", default="smollm2-135m"
    )
    backend: str = MODEL(
        "hooked-transformer, transformer-bridge, or auto: the first where TransformerLens has it, it fits into "
        "memory and it reproduces the model.",
        metavar="NAME",
        default="auto",
    )
    device: str | None = MODEL("cpu, cuda, cuda:1, …", metavar="DEVICE", shown="the GPU where there is one")
    dtype: str = MODEL("float32, float64, bfloat16 or float16.", metavar="DTYPE", default="float32")

    def load(self, progress: Progress) -> Any:
        """The model."""
        return self.source().open(progress)

    def source(self) -> Any:
        """The model as a run takes it, whose workers load it themselves."""
        from rome_lens.loading.source import ModelSource

        return ModelSource(self.model, self.backend, self.device, self.dtype)

    def check(
        self, *, layers: Sequence[int | None] = (), window: int | None = None, heads_window: int | None = None
    ) -> None:
        """Refuse layers and windows that the model does not have, before it is loaded.

        Raises:
            SettingError: one is out of its range. ModelError: the model's configuration cannot be read.
        """
        if any(given is not None for given in (*layers, window, heads_window)):
            from rome_lens.loading.outline import Outline

            outline = Outline.of(self.model)
            outline.check_layers(layers)
            outline.check_window(window)
            outline.check_window(heads_window, name="heads_window")


ASKED_IN_CHAT = "In which city is {}?", "the Eiffel Tower", "It is located in the city of"
"""What is asked with --chat where nothing else is: a question, its subject, and what the reply begins with."""


@dataclass(frozen=True)
class TraceOptions:
    """How facts are traced: what is restored, how the subject is corrupted; named as `TraceSettings` names it."""

    streams: list[str] | None = TRACE(
        "What is restored: resid, mlp, attn, or heads (single heads at one token); repeat it for several.",
        "--stream",
        metavar="STREAM",
        shown="resid, mlp, attn",
    )
    severed: list[str] | None = TRACE(
        "Restore the residual stream once more while that token's mlp or attn outputs are held at the corrupted "
        "run's; repeat it for both.",
        metavar="STREAM",
        shown="none",
    )
    severed_at: str = TRACE("At the last-subject token, or at all tokens.", metavar="WHERE", default="last-subject")
    window: int | None = TRACE("Layers restored together for mlp and attn.", shown="10")
    heads_at: str = TRACE(
        "Where heads are restored: at the last token, the last-subject token, or a position (-1 is the last).",
        metavar="WHERE",
        default="last",
    )
    heads_window: int = TRACE("Layers in which the heads of one number are restored together.", default=1)
    samples: int = TRACE("Corrupted copies to average over.", default=10)
    noise: str | None = TRACE(
        "s3 (times the deviation of the facts' subject embeddings), a number (absolute), m (Gaussian fitted to "
        "text), t5 (Student-t, degrees of freedom) or u0.5 (uniform, half width).",
        metavar="RULE",
        shown="s3",
    )
    noise_replaces: bool = TRACE(
        "Put the noise in the embeddings' place instead of on top.", "--noise-replaces", default=False
    )
    measure: str = TRACE(
        "What is read in each cell: the answer's probability, its log_probability, its logit_difference to --against, "
        "or kl, the divergence from the clean run's next tokens.",
        metavar="MEASURE",
        default="probability",
    )
    against: str | None = TRACE("The other answer of --measure logit_difference.", metavar="ANSWER")
    swap: str | None = TRACE("Corrupt by putting this subject, of as many tokens, in place of the prompt's; no noise.")
    facts: Path | None = TRACE(
        "Known facts (JSON) that s, m and t are measured on.", shown="150 that come with rome-lens"
    )
    seed: int = TRACE("Seed of the noise.", default=1)
    prepend_bos: bool = TRACE.bos()
    engine: str = TRACE(
        "auto; plain: whole forwards, slow, the same numbers; attribution: an approximation from one backward pass.",
        metavar="ENGINE",
        default="auto",
    )

    def settings(self, kind: Callable[..., _Kind], severed: Sequence[str] | None) -> _Kind:
        """The same as the library takes it: `TraceSettings`, or a child of it."""
        at = self.heads_at
        return filled(
            kind,
            self,
            streams=self.streams or ("resid", "mlp", "attn"),
            severed=severed,
            heads_at=int(at) if at.removeprefix("-").isdecimal() else at,
        )


def read_edits(files: Sequence[Path] | None) -> list[Any]:
    """The edits that files of 'rome-lens edit --save' hold.

    Raises:
        ArtefactError: a file holds no edit.
    """
    if not files:
        return []
    from rome_lens.editing import load_edit

    return [load_edit(path) for path in files]
