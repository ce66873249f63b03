"""How the threads of torch wait for one another.

Knows no torch: the setting is read when torch is first imported, and never again.
"""

import os

SPIN_COUNT = "GOMP_SPINCOUNT"
BRIEFLY = "10000"
_WAIT_POLICY = "OMP_WAIT_POLICY"


def spin_briefly() -> None:
    """Let torch's threads soon sleep while they wait for the others to end an operation.

    A decoding step has some hundreds of small operations. Where several other processes want the
    cores, niced ones too, threads that spin make each of them wait for a turn: a step of
    whisper-base then took 155 to 310 ms on two cores, and 25 to 80 ms with threads that sleep at
    once. On a quiet machine those took 33 ms where spinning ones took 23; this count took 26.
    Whoever has set either variable knows better.
    """
    if _WAIT_POLICY not in os.environ:
        os.environ.setdefault(SPIN_COUNT, BRIEFLY)
