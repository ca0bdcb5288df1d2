"""Options that several commands share."""

from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Option("--model", "-m", help="smollm2-135m, a folder in Hugging Face's layout, or a name on the hub."),
]
Backend = Annotated[
    str,
    typer.Option(help="hooked-transformer, transformer-bridge, or auto: the first where TransformerLens has it."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; by default the GPU where there is one.")]
Dtype = Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text.")]
