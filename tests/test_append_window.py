"""What may be under way to a peer."""

from __future__ import annotations

from raftreg.append_window import AppendWindow


def entries(first: int, *sizes: int) -> list[tuple[bytes, int, int]]:
    return [(bytes(size), first + offset, 1) for offset, size in enumerate(sizes)]


def test_entries_are_cut_where_the_window_is_full_and_go_on_when_they_were_answered_for() -> None:
    window = AppendWindow(100)
    first = window.cut("b", entries(1, 40, 40, 40))
    assert [entry[1] for entry in first] == [1, 2]
    window.sent("b", first)
    assert not window.is_full("b")
    window.sent("b", entries(3, 40))
    assert window.is_full("b")
    window.answered("b", 1)
    assert window.is_full("b")
    window.answered("b", 2)
    assert not window.is_full("b")


def test_an_entry_larger_than_the_window_passes_alone() -> None:
    window = AppendWindow(100)
    assert [entry[1] for entry in window.cut("b", entries(1, 500, 1))] == [1]


def test_peers_have_windows_of_their_own_which_end_with_their_link() -> None:
    window = AppendWindow(100)
    window.sent("b", entries(1, 200))
    window.sent("c", entries(1, 200))
    window.forget("b")
    assert not window.is_full("b")
    assert window.is_full("c")
    window.forget_all()
    assert not window.is_full("c")
