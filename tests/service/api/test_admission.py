"""What all wires may take together: counted to the byte, refused without being counted, given back."""

from __future__ import annotations

from service.api.admission import Admission


def test_connections_up_to_the_bound_and_again_when_one_has_closed():
    """One too many is refused and leaves the count as it was."""
    admission = Admission(max_connections=2, max_bodies_bytes=10)
    assert [admission.connection_opened() for _ in range(3)] == [True, True, False]
    assert admission.connections == 2
    admission.connection_closed()
    assert admission.connection_opened()
    assert admission.connections == 2
    assert "at most 2" in str(admission.connection_refused())
    assert admission.refused_connections == 1


def test_bytes_up_to_the_bound_and_again_when_some_were_released():
    """What does not fit is refused as a whole; what fits exactly is taken."""
    admission = Admission(max_connections=1, max_bodies_bytes=10)
    assert admission.hold(6)
    assert not admission.hold(5)
    assert admission.hold(4)
    assert admission.held_bytes == 10
    admission.release(6)
    assert (admission.fits(6), admission.fits(7)) == (True, False)
    assert admission.hold(5)
    assert "9 bytes" in str(admission.body_refused())
    assert admission.body_refused().retry_after_s == 1.0
    assert admission.refused_bodies == 2
