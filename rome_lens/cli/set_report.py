"""How a set of facts is printed: the table of its facts, the worst first, and what the set knows of them together."""

from typing import Any

from rich.cells import cell_len
from rich.console import Console
from torch import Tensor

from rome_lens.cli.edit_report import change, print_sources, print_templates
from rome_lens.cli.printing import count, model_line, pad, print_labelled, shorten
from rome_lens.editing import EditSet, SetFact
from rome_lens.editing.patch import layer_names
from rome_lens.figures import visible

_GAP = "  "
# Facts, conflicts, and numbers of facts that are printed.
_ROWS, _CONFLICTS, _NUMBERS = 20, 5, 12
# "0.123 → 0.456", "12345 (9.99)"
_PAIR, _BY = 13, 12
# Columns of a target behind a prompt that is too long.
_TARGET = 10
# Of what was missing: from here on a fact is named as one that falls short, and below as one that the others say.
_SHORT, _REDUNDANT = 0.5, 0.1


def print_set(console: Console, facts: EditSet, device: str) -> None:
    """Print a set that was just made.

    Args:
        console: where to.
        facts: the set.
        device: where the model is.
    """
    console.print(heading(facts), style="bold")
    bos = facts.settings.get("prepend_bos")
    console.print(model_line(facts.fingerprint.model_name, facts.backend, facts.dtype, device, bos=bos))
    console.print()
    _print_facts(console, facts)
    console.print()
    _print_known(console, facts)
    print_sources(console, facts)
    console.print(f"edited in {facts.seconds:.1f} s")


def print_saved_set(console: Console, facts: EditSet) -> None:
    """Print what a file of a set holds."""
    console.print(heading(facts))
    console.print(f"{visible(facts.fingerprint.model_name)} · {visible(facts.backend)} · {visible(facts.dtype)}")
    _print_facts(console, facts)
    _print_known(console, facts)
    print_sources(console, facts)
    print_templates(console, facts)
    print_labelled(console, "id", facts.id)
    console.print(f"edited in {facts.seconds:.1f} s")


def heading(facts: EditSet) -> str:
    """How many facts there are, by what, and where."""
    return f"{count(len(facts), 'fact')} by {visible(facts.variant)}, {layer_names(facts)}"


def set_as_json(facts: EditSet) -> dict[str, Any]:
    """Everything but the tensors, with what the set knows of its facts; `known` is None where it knows nothing."""
    return {"id": facts.id, **facts.to_dict(), "known": _known(facts) if _is_joint(facts) else None}


def unreached(facts: EditSet) -> str | None:
    """How many targets are not said with the set; None where all are, or it was not measured."""
    missed = [fact for fact in facts if fact.outcome.after is not None and not fact.outcome.after.reached]
    if not missed:
        return None
    lack = f"{len(missed)} of {count(len(facts), 'target')} {'is' if len(missed) == 1 else 'are'} not reached"
    return f"{lack}, such as {missed[0].words!r}: the table's first rows say how far the set falls short of them"


def _is_joint(facts: EditSet) -> bool:
    return facts.terms.spread == "joint"


def _known(facts: EditSet) -> dict[str, Any]:
    number = {fact: place for place, fact in enumerate(facts)}
    return {
        "shortfall": facts.shortfall.tolist(),
        "leverage": facts.leverage.tolist(),
        "alone": facts.alone.tolist(),
        "disturbed_by": [other for other, _ in facts.disturbed_by],
        "disturbance": [amount for _, amount in facts.disturbed_by],
        "capacity": facts.capacity,
        "drift": facts.drift,
        "conflicts": [
            {"facts": [number[each.one], number[each.other]], "overlap": each.overlap} for each in facts.conflicts()
        ],
    }


def _print_facts(console: Console, facts: EditSet) -> None:
    """The table of facts: those that are not said first, then those that lack most of their value."""
    joint = _is_joint(facts)
    worst = _worst_first(facts)
    number_width = max(len("fact"), len(str(len(facts))))
    columns = [("p(target)", _PAIR), ("shortfall", 9), ("leverage", 8), ("disturbed by", _BY)][: 4 if joint else 1]
    room = console.width - number_width - len(_GAP) - sum(width + len(_GAP) for _, width in columns)
    shown = worst[:_ROWS]
    room = max(room, 20)
    requests = {number: _request(facts[number], room) for number in shown}
    width = max(cell_len(text) for text in ("request", *requests.values()))

    def print_row(number: str, request: str, *cells: str, style: str = "") -> None:
        rest = [pad(cell, room) for cell, (_, room) in zip(cells, columns, strict=True)]
        row = _GAP.join((number.rjust(number_width), pad(request, width), *rest))
        console.print(row.rstrip(), style=style, soft_wrap=True)

    print_row("fact", "request", *(title for title, _ in columns), style="bold")
    for number in shown:
        outcome = facts[number].outcome
        cells = [change(outcome.before.target, None if outcome.after is None else outcome.after.target)]
        if joint:
            other, amount = facts.disturbed_by[number]
            by = "–" if other is None else f"{other} ({_short_number(amount)})"
            cells += [_short_number(facts.shortfall[number].item()), _short_number(facts.leverage[number].item()), by]
        print_row(str(number), requests[number], *cells)
    if len(worst) > _ROWS:
        console.print(f"{'':{number_width}}{_GAP}and {len(worst) - _ROWS} more (--json shows all)")


def _request(fact: SetFact, room: int) -> str:
    """What was asked, `prompt → target`, in so many columns; of a long prompt the target stays."""
    if cell_len(visible(fact.words)) <= room:
        return visible(fact.words)
    target = shorten(fact.request.target_new.strip(), _TARGET)
    return f"{shorten(fact.request.text, room - cell_len(target) - 3)} → {target}"


def _worst_first(facts: EditSet) -> list[int]:
    """Numbers of facts."""
    after = [fact.outcome.after for fact in facts]
    said = [one is None or one.reached for one in after]
    not_said = [0.0 if one is None else 1 - one.target for one in after]
    lack = facts.shortfall.tolist() if _is_joint(facts) else not_said
    return sorted(range(len(facts)), key=lambda number: (said[number], -lack[number], number))


def _print_known(console: Console, facts: EditSet) -> None:
    """What is known of the set as a whole, and of the facts that do not get on."""
    measured = [fact.outcome.after for fact in facts if fact.outcome.after is not None]
    said = sum(after.reached for after in measured)
    reached = f"{said} of {count(len(facts), 'target')} said" if measured else "not measured since the set was made"
    print_labelled(console, "reached", reached)
    if not _is_joint(facts):
        print_labelled(console, "known", "nothing more, where layers gain one after the other (spread released)")
    else:
        _print_joint(console, facts)
    for here in facts.layers:
        rank = "a whole matrix" if here.update.rank is None else f"rank {here.update.rank}"
        size = f"|update| / |W| {here.relative_norm:.3g}, {rank}"
        print_labelled(console, "layer", f"{here.layer} of {here.fingerprint.n_layers} (from 0), {size}")


def _print_joint(console: Console, facts: EditSet) -> None:
    drift = "unknown: the file is without the second moments"
    if facts.drift is not None:
        drift = f"{facts.drift:.2g} of the layers' values over text (mean squared change over mean square)"
    print_labelled(console, "drift", drift)
    taken = facts.leverage.sum().item()
    print_labelled(console, "leverage", f"{taken:.1f} of {facts.capacity} that the layers hold ({facts.load:.1%})")
    number = {fact: place for place, fact in enumerate(facts)}
    conflicts = facts.conflicts()
    for each in conflicts[:_CONFLICTS]:
        pair = f"{number[each.one]} and {number[each.other]}"
        print_labelled(console, "conflict", f"{pair} have one key (overlap {each.overlap:.2f}) and other targets")
    if len(conflicts) > _CONFLICTS:
        print_labelled(console, "", f"and {len(conflicts) - _CONFLICTS} more (--json shows all)")
    _print_numbers(console, "short", "with more than half of the value missing", facts.shortfall > _SHORT)
    _print_numbers(console, "redundant", "said by the others already", facts.alone < _REDUNDANT)


def _print_numbers(console: Console, label: str, what: str, chosen: Tensor) -> None:
    """Which facts something holds of; nothing where it holds of none."""
    numbers = chosen.nonzero().flatten().tolist()
    if numbers:
        more = ", …" if len(numbers) > _NUMBERS else ""
        named = ", ".join(map(str, numbers[:_NUMBERS])) + more
        print_labelled(console, label, f"{count(len(numbers), 'fact')} {what}: {named}")


def _short_number(value: float) -> str:
    """A share in at most four columns or so: `0.12`, `12.3`, `1e+05`."""
    return f"{value:.2f}" if value < 10 else f"{value:.3g}"
