"""What runs the commands: signals that are dropped, ignored, or come to a command that does not end."""

from __future__ import annotations

import pytest

from support.processes import Run, spawn

START = """
import os, signal, sys, time
from fuseo1_kernels.cli import interruption
interruption._PATIENCE = 0.2

def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)
"""
END = """
sys.exit(interruption.Interruption("program").run(command, is_process=True))
"""


def ran(command: str) -> Run:
    return spawn("-c", START + command + END)


COMMANDS = {
    "at once": "def command(): send(signal.SIGINT); return 0",
    "several": "def command(): send(signal.SIGINT, signal.SIGTERM, signal.SIGINT); return 0",
    "while the first is answered": """
def command():
    try:
        send(signal.SIGINT)
    finally:
        send(signal.SIGTERM, signal.SIGINT)
    return 0
""",
    "dropped in a destructor": """
class Dropped:
    def __del__(self):
        send(signal.SIGINT)
def command():
    del [Dropped()][0]
    time.sleep(60)
    return 0
""",
    "made into another exception": """
def command():
    try:
        send(signal.SIGINT)
    except KeyboardInterrupt as error:
        raise ImportError("cannot load") from error
    return 0
""",
    "in the message": """
def command():
    send(signal.SIGINT)
    return 0
def describe():
    send(signal.SIGINT, signal.SIGTERM)
    return ""
made = interruption.Interruption.__init__
def init(self, program):
    made(self, program)
    self.describe = describe
interruption.Interruption.__init__ = init
""",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_one_message_and_exit_code(command: str) -> None:
    assert ran(COMMANDS[command]) == Run(130, "", "program: interrupted\n")


def test_a_command_that_does_not_end() -> None:
    """As a download in a thread that is waited for."""
    command = """
def command():
    try:
        send(signal.SIGTERM)
    finally:
        time.sleep(60)
"""
    said = "program: interrupted, without waiting for what does not end\n"
    assert ran(command) == Run(143, "", said)


def test_signals_after_the_end_and_signals_that_were_ignored() -> None:
    command = """
import atexit
atexit.register(send, signal.SIGINT, signal.SIGTERM)
def command(): return 7
"""
    assert ran(command) == Run(7, "", "")
    command = """
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and a script's background do
def command():
    send(signal.SIGINT)
    return 7
"""
    assert ran(command) == Run(7, "", "")


def test_what_no_signal_has_raised_comes_out() -> None:
    said = ran("def command(): raise ValueError('mine')")
    assert said.code == 1 and "ValueError: mine" in said.err
    assert ran("def command(): raise SystemExit(2)") == Run(2, "", "")
