"""Runs a program that ends when its parent does: ``python tethered.py PARENT_PID SIGNAL PROGRAM ARGUMENT...``.

Belongs here: that, with nothing but the standard library, for it is run as a file by a bare interpreter. Does not:
anything that the platform's supervised programs use; the supervisor stops those.

What a test or a proof started must not outlive it, even where that was killed: the kernel then sends SIGNAL, named as
in KILL or TERM. Only Linux can promise this; elsewhere the program is run untethered.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, how, program = int(sys.argv[1]), signal.Signals[f"SIG{sys.argv[2]}"], sys.argv[3:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, how)
        if os.getppid() != parent:  # it died before the request was made
            sys.exit(1)
    os.execv(program[0], program)  # noqa: S606 - the whole purpose: becoming the program, under the same process id
