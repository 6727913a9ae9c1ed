"""A process of the server works until it is asked to stop, and no shorter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

_PROGRAM = """
import contextlib
import threading
from workers.cli import _until_signal
# As the one that tells the figures: it is there before, and blocks no signal.
threading.Thread(target=threading.Event().wait, daemon=True).start()
done = threading.Event()
print("at work", flush=True)
_until_signal(done.wait, done.set, contextlib.nullcontext())
"""


def test_who_stood_still_goes_on() -> None:
    """Stopped for longer than it looks for signals, as with its machine: that is no wish that it end. SIGTERM is."""
    process = subprocess.Popen([sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"at work\n"
        for _ in range(3):
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(1.2)
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
