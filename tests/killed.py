"""Trainings that end as if their process were killed, for tests."""

from __future__ import annotations

from streamtrain.journal import Journal


class KilledError(Exception):
    """As if the process ended here."""


def killed_after(monkeypatch, n):
    """End the run once it has saved n states."""
    save, left = Journal._save, [n]

    def saved(self):
        save(self)
        left[0] -= 1
        if not left[0]:
            raise KilledError

    monkeypatch.setattr(Journal, "_save", saved)
