"""Budgets of memory that are smaller than this machine's."""

from rome_lens.tracing.memory import Budget


def tighten(monkeypatch, **sizes):
    """Let every trace choose a budget with these sizes in it."""
    choose = Budget.choose

    def tight(backend):
        budget = choose(backend)
        for name, size in sizes.items():
            setattr(budget, name, size)
        return budget

    monkeypatch.setattr(Budget, "choose", tight)
