"""The control page: the gate word and progress, as who else maps them reads them."""

from ftrain_snapshot.control import ControlPage


def test_the_gate_word_opens_closes_and_remembers_what_was_given_out(tmp_path):
    page = ControlPage(tmp_path, create=True)
    other = ControlPage(tmp_path)
    assert other.gate() == (0, -1)
    page.open_gate(1, 2, floor=7)
    assert other.gate() == (1, 2)
    page.close_gate()
    assert other.gate() == (1, -1)
    assert other.pending() == (1, 2, 7)
    page.close_gate(spent=True)
    assert other.pending()[1] == -1
    page.close()
    again = ControlPage(tmp_path, create=True)
    assert again.gate() == (1, -1)
    again.close()
    other.close()


def test_progress_of_a_lane_is_its_own(tmp_path):
    page = ControlPage(tmp_path, create=True)
    assert page.progress(0)[0] == page.progress(47)[0] == -1
    page.set_progress(3, 12)
    step, when = page.progress(3)
    assert step == 12
    assert when > 1e9
    assert page.progress(2)[0] == page.progress(4)[0] == -1
    page.close()
