"""Ends a command at its first SIGINT or SIGTERM: one message, and the exit code 130 or 143."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from .terminal import escaped, say, say_json, standard_streams

#: Seconds that a command may take to end: a download does not let itself be interrupted.
_PATIENCE = 10.0


class Interruption:
    """Runs one command. The first signal raises KeyboardInterrupt in it, and those after it do nothing.

    Signals that the process ignores already (under `nohup`, say) stay ignored.

    Attributes:
        number: of the first signal; None: there was none.
        describe: returns what the command left, for the message, and further lines.
        as_json: print the message to standard output too, as JSON.
    """

    def __init__(self, program: str) -> None:
        self.number: int | None = None
        self.describe: Callable[[], Sequence[str]] = tuple
        self.as_json = False
        self._program = program
        self._before: dict[int, Any] = {}
        self._unraisable = sys.unraisablehook
        self._ended = self._gives_up = False

    def run(self, command: Callable[[], int], *, is_process: bool = False) -> int:
        """Return the command's exit code, or that of the signal.

        `is_process`: the process ends with the command. It takes no further signal then, and ends even if a thread
        does not.
        """
        with standard_streams(self._program):
            return self._run(command, is_process)

    def _run(self, command: Callable[[], int], is_process: bool) -> int:
        try:
            self._install(is_process)
            code = command()
            self._ended = True
        except BaseException as error:
            self._ended = True
            # Other code may make another exception of the signal's.
            if self.number is None and not isinstance(error, KeyboardInterrupt):
                if is_process and isinstance(error, Exception):
                    return self._report_bug(error)
                raise
            first, *others = self.describe() or [""]
            text = f"interrupted; {first}" if first else "interrupted"
            say(f"{self._program}: {text}")
            for line in others:
                say(line)
            if self.as_json:
                say_json({"error": escaped(text)})
            code = 128 + (self.number or signal.SIGINT)
        finally:
            sys.unraisablehook = self._unraisable
            for number, handler in self._before.items():
                signal.signal(number, signal.SIG_IGN if is_process else handler)
        return code

    def _report_bug(self, error: Exception) -> int:
        """Print what Python would print, but escaped: names may be in it. Return the exit code."""
        for line in "".join(traceback.format_exception(error)).splitlines():
            say(line)
        text = "this is an error in the program: please report what stands above"
        say(f"{self._program}: error: {text}")
        if self.as_json:
            say_json({"error": escaped(repr(error))})
        return 1

    def _install(self, is_process: bool) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._gives_up = is_process
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                # None: a handler that Python cannot restore.
                self._before[number] = signal.SIG_DFL if before is None else before
                signal.signal(number, self._interrupt)
        sys.unraisablehook = self._raise_again

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        if self.number is None and not self._ended:
            self.number = number
            if self._gives_up:
                # A Thread has locks, one of which the main thread may hold just now.
                _thread.start_new_thread(self._give_up, (128 + number,))
            raise KeyboardInterrupt

    def _raise_again(self, dropped: Any) -> None:
        """Send the signal anew if Python had to drop its exception, in a destructor, say."""
        if self.number is None or not issubclass(dropped.exc_type, KeyboardInterrupt):
            self._unraisable(dropped)
            return
        number, self.number = self.number, None
        _thread.start_new_thread(_send_soon, (number,))

    def _give_up(self, code: int) -> NoReturn:
        time.sleep(_PATIENCE)
        if not self._ended:
            text = f"{self._program}: interrupted, without waiting for what does not end\n"
            with suppress(OSError):
                os.write(2, text.encode())
        os._exit(code)


def _send_soon(number: int) -> None:
    time.sleep(0.01)
    os.kill(os.getpid(), number)
