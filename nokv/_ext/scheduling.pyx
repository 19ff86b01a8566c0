"""What threading does not say to the scheduler. Owns: nothing."""


def step_aside():
    """The calling thread works in the background: from now on threads that wake up go before it, at no cost to its share of the
    processor. A writer that paused for 0.1 ms would else find the processor taken for a slice of the flush, 2 to 5 ms. False: this
    system has no such thing."""
    return bool(nokv_step_aside())


def let_pass():
    """What background work does every 0.1 ms: who waits for this processor goes first. But for 20 ms no
    more time is given away than was worked."""
    with nogil:
        nokv_pass()
