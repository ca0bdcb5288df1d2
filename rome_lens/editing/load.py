"""Reads files of edits and of sets of facts."""

import os

from rome_lens.editing.edit import Edit
from rome_lens.editing.edit_file import edit_from
from rome_lens.editing.together.edit_set import KIND
from rome_lens.editing.together.set_file import set_from
from rome_lens.errors import ArtefactError, RomeLensError
from rome_lens.storage import load_tensors, stored_kind


def load_edit(path: str | os.PathLike[str]) -> Edit:
    """Read what `Edit.save` or `EditSet.save` wrote, of this version or an earlier one: an `Edit`, or an `EditSet`.

    Fields of a later version are left alone.

    Raises:
        ArtefactError: there is no such file, it is damaged, or it holds something else.
    """
    is_set = stored_kind(path) == KIND
    tensors, settings = load_tensors(path, kind=KIND if is_set else "edit")
    try:
        return set_from(tensors, settings) if is_set else edit_from(tensors, settings)
    except (RomeLensError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        what = "set of facts" if is_set else "edit"
        raise ArtefactError(f"cannot use {os.fspath(path)!r}: a damaged {what} ({reason})") from error
