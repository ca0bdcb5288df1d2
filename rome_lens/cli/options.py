"""Options that several commands share."""

from typing import Annotated, Any

import typer

_MODEL: dict[str, Any] = {"rich_help_panel": "The model"}

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
        help="hooked-transformer, transformer-bridge, or auto: the first where TransformerLens has it and it "
        "reproduces the model.",
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
