"""`rome-lens models`: what --model takes, and what is there already."""

from dataclasses import asdict
from typing import Any

from rome_lens.cli.options import JSON, takes_options
from rome_lens.cli.output import print_json, stdout


@takes_options
def models(as_json: bool = JSON) -> None:
    """List what --model takes, and whether the default model has been fetched and converted."""
    from rome_lens.loading import DEFAULT_MODEL, cached_conversion, cached_default_model

    fetched, converted = cached_default_model(), cached_conversion()
    if as_json:
        states = {"cached": fetched, "converted": converted}
        kept = {name: asdict(state) | {"path": str(state.path)} for name, state in states.items()}
        print_json({"default": DEFAULT_MODEL, **kept})
        return
    console = stdout()
    console.print(f"{DEFAULT_MODEL}  the default: SmolLM2-135M-Instruct, 30 layers, Apache-2.0")
    wrong = "damaged, and not needed" if converted.intact else "damaged: fetched anew"
    console.print(f"              {_said(fetched, 'fetched', wrong=wrong)}", soft_wrap=True)
    wrong = "damaged or outdated: converted anew"
    console.print(f"              {_said(converted, 'converted', wrong=wrong)}", soft_wrap=True)
    console.print("a folder      in Hugging Face's layout: config.json, weights, tokenizer")
    console.print("a hub name    such as gpt2 or EleutherAI/pythia-160m: a decoder that")
    console.print("              TransformerLens hosts; HF_HOME and HF_HUB_OFFLINE are respected")


def _said(state: Any, done: str, *, wrong: str) -> str:
    """What became of a step, fetched or converted, and where its outcome is or would be."""
    size = f"{state.size / 1e6:.0f} MB"
    status = f"not {done} yet" if not state.present else f"{done}, {size}" if state.intact else wrong
    return f"{status}; kept at {state.path}"
