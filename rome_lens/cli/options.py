"""Options that several commands share."""

from typing import Annotated, Any

import typer

_MODEL: dict[str, Any] = {"rich_help_panel": "The model"}
_HOW: dict[str, Any] = {"rich_help_panel": "How it is traced"}

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="smollm2-135m, a folder in Hugging Face's layout, or a hub name.",
        metavar="NAME",
        **_MODEL,
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        help="hooked-transformer, transformer-bridge, or auto: the first where TransformerLens has it, it fits into "
        "memory and it reproduces the model.",
        metavar="NAME",
        **_MODEL,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, …", show_default="the GPU where there is one", metavar="DEVICE", **_MODEL),
]
Dtype = Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.", metavar="DTYPE", **_MODEL)]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print JSON for machines instead of text.", rich_help_panel="What comes out"),
]
Stream = Annotated[
    list[str] | None,
    typer.Option(
        help="What is restored: resid, mlp or attn; repeat it for several.",
        show_default="all three",
        metavar="STREAM",
        **_HOW,
    ),
]
Window = Annotated[
    int | None,
    typer.Option(help="Layers restored together for mlp and attn.", show_default="10", metavar="N", **_HOW),
]
Samples = Annotated[int, typer.Option(help="Corrupted copies to average over.", metavar="N", **_HOW)]
Noise = Annotated[
    str | None,
    typer.Option(
        help="s3 (times the deviation of the facts' subject embeddings), a number (absolute), m (Gaussian fitted "
        "to text), t5 (Student-t, degrees of freedom) or u0.5 (uniform, half width).",
        show_default="s3",
        metavar="RULE",
        **_HOW,
    ),
]
NoiseReplaces = Annotated[
    bool,
    typer.Option("--noise-replaces", help="Put the noise in place of the embeddings, not on top.", **_HOW),
]
NoiseSeed = Annotated[int, typer.Option(help="Seed of the noise.", metavar="N", **_HOW)]
PutBos = Annotated[bool, typer.Option("--bos/--no-bos", help="Put a BOS token in front.", **_HOW)]
Engine = Annotated[
    str,
    typer.Option(
        help="auto; plain: whole forwards, slow, the same numbers; attribution: an approximation from one backward "
        "pass.",
        metavar="ENGINE",
        **_HOW,
    ),
]


def answer_joined_option(panel: str) -> Any:
    """The option that says what stands between a prompt and its answer, in a panel of the help."""
    return typer.Option(
        "--answer-joined",
        help='What stands between a prompt and its answer: "" for nothing, " " for a blank.',
        show_default="by what both write there",
        metavar="TEXT",
        rich_help_panel=panel,
    )
