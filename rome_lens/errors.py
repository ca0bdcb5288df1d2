"""Every error that rome_lens raises on purpose.

A message says what was given, what was expected and what to do. The shell prints it on one line and exits with
`exit_code`: 2 where the request itself is malformed (a setting out of its range), 1 for everything else.
"""


class RomeLensError(Exception):
    """The root of the tree: catch this to catch everything that rome_lens raises on purpose."""

    exit_code = 1


class SettingError(RomeLensError, ValueError):
    """A setting is outside its range: samples 0, a negative noise, a window larger than the model."""

    exit_code = 2


class PromptError(RomeLensError, ValueError):
    """The prompt cannot be traced: empty, or longer than the model's context."""


class SubjectError(PromptError):
    """The subject cannot be found in the prompt, or covers no token."""


class AnswerError(PromptError):
    """The answer is not one: empty, or it does not begin at a token of its own."""


class FactNotKnownError(RomeLensError):
    """The model does not predict the expected answer, so there is no fact to trace."""


class ModelError(RomeLensError):
    """The model cannot be used: not a language decoder, or not a TransformerLens object."""


class ModelNotFoundError(ModelError, LookupError):
    """No model of that name: not the default, not a folder, not on the hub (or the hub cannot be reached)."""


class ModelMismatchError(ModelError):
    """An artefact belongs to another model, layer or width."""


class DownloadError(RomeLensError):
    """The default model could not be fetched or stored: no network, a wrong checksum, a full disk."""


class ArtefactError(RomeLensError):
    """A file of ours cannot be read or written: missing, truncated, of another kind, no room."""


class RunError(RomeLensError):
    """A long run cannot go on: a worker was lost, the folder is taken, or the model is not the one it began with."""


class OutOfMemoryError(RomeLensError):
    """Memory ran out although the work was already cut into the smallest pieces, or it is known that it would."""


class EditError(RomeLensError):
    """An edit cannot be made: a loss that is no number, or a key that is all but orthogonal to C^-1 k*."""


class EditStateError(EditError):
    """An edit cannot be put on or taken off: it is on already, it is not on, or the weights were changed since."""


class CollapseError(EditError):
    """A model has collapsed with an edit, and a guard refused it.

    Attributes:
        edit: the edit, which is not in the weights.
    """

    def __init__(self, message: str, edit: object = None) -> None:
        super().__init__(message)
        self.edit = edit


def one_line(error: BaseException, *, limit: int = 200) -> str:
    """The first line of an error with the addresses taken out, short enough to end a sentence with."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    words = ("an address" if "://" in word else word for word in lines[0].split())
    text = " ".join(words).rstrip(".:;, ")
    return text if len(text) <= limit else text[: limit - 1] + "…"
