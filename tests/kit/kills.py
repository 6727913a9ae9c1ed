"""Kill -9 before each step that a piece of work takes on the disk, one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

STEPS = ("fsync", "rename", "link", "unlink", "mkdir")
"""The calls of `os` by which something comes to be on the disk, or goes."""
_KILLED, _FAILED = 77, 1


def killed_before_each(
    prepare: Callable[[], Any], work: Callable[[Any], object], *, steps: Sequence[str] = STEPS
) -> Iterator[tuple[int, Any]]:
    """Yield what is left of ``work(prepare())`` after a kill before its first step, its second, and so on to the last.

    The work is done in a forked process, which ends as a killed one does: without cleaning up.
    """
    number = 0
    while True:
        place = prepare()
        child = os.fork()
        if child == 0:
            _work(work, place, number, steps)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, _KILLED), f"the work failed at step {number}"
        if code == 0:
            return
        yield number, place
        number += 1


def _work(work: Callable[[Any], object], place: Any, number: int, steps: Sequence[str]) -> None:
    left = number
    code = _FAILED

    def before(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            if left == 0:
                os._exit(_KILLED)
            left -= 1
            return call(*arguments, **named)

        return step

    try:
        for name in steps:
            setattr(os, name, before(getattr(os, name)))
        work(place)
        code = 0
    finally:
        os._exit(code)
