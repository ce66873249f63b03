"""How the threads of torch wait for one another.

Knows no torch: the setting is read when torch is first imported, and never again.
"""

import os

WAIT_POLICY = "OMP_WAIT_POLICY"
SLEEPING = "passive"


def sleep_while_waiting() -> None:
    """Let torch's threads sleep, not spin, until all have done their share of an operation.

    A decoding step has some hundreds of small operations. Where another process, however polite,
    is on one of the cores, spinning threads make each of them wait for the next turn: with one
    niced neighbour on two cores a step of whisper-base took 170 to 310 ms where it now takes 25 to
    80. Whoever has set OMP_WAIT_POLICY knows better.
    """
    os.environ.setdefault(WAIT_POLICY, SLEEPING)
