"""Edit a fact in the default model, look at what it says, take the edit back, and do the same through hooks."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch

import rome_lens as rl

REQUEST = rl.EditRequest("{} is located in the city of", subject="The Eiffel Tower", target_new="Rome")


@torch.no_grad()
def says(model: Any, prompt: str, hooks: Sequence[Any] = ()) -> str:
    """The next token of a prompt, with hooks or without them."""
    tokens = model.to_tokens(prompt, prepend_bos=False)
    logits = model.run_with_hooks(tokens, fwd_hooks=list(hooks))
    return model.tokenizer.decode(logits[0, -1].argmax().item()).strip()


def edit_a_fact(editor: rl.ROME, request: rl.EditRequest = REQUEST) -> rl.Edit:
    """Find an edit, put it on, take it off, and print what the model says each time."""
    model, edit = editor.model, editor.edit(request)
    print(f"p({request.target_new}) {edit.before.target:.3f} → {edit.after.target:.3f}")

    print("as it is:     ", says(model, request.text))
    with edit.applied(model):
        print("edited:       ", says(model, request.text))
    print("as it was:    ", says(model, request.text))
    print("through hooks:", says(model, request.text, edit.hooks(model)))
    return edit


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, load the model, edit the fact and save the edit where it was asked for."""
    parser = argparse.ArgumentParser(description="Edit that the Eiffel Tower is in Paris.")
    parser.add_argument("--model", default="smollm2-135m", help="smollm2-135m, a folder, or a name on the hub")
    parser.add_argument("--second-moment", help="a file of 'rome-lens stats'; the default model needs none")
    parser.add_argument("--save", help="write the edit to this file")
    options = parser.parse_args(arguments)

    moment = None if options.second_moment is None else rl.SecondMoment.load(options.second_moment)
    layer = None if moment is None else moment.layer
    editor = rl.ROME(rl.load_model(options.model), layer=layer, second_moment=moment)
    edit = edit_a_fact(editor)
    if options.save:
        edit.save(options.save)


if __name__ == "__main__":
    main()
