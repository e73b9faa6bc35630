"""Run a function in a forked child, and memory of whole pages to try things on."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import traceback
import warnings
from collections.abc import Callable
from typing import Any

PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)


def in_child(function: Callable[[], Any]) -> Any:
    """What `function` returns, as JSON; it runs in a child that no test harness cleans up after."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: other threads are there
        child = os.fork()
    if child == 0:
        try:
            os.write(writing, json.dumps(function()).encode())
        except BaseException:
            os.write(writing, json.dumps(traceback.format_exc()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text)


class Scratch:
    """Private memory of some pages, written once."""

    def __init__(self, pages: int, flags: int = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) -> None:
        self.memory = mmap.mmap(-1, pages * PAGE, flags=flags)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.length = pages * PAGE
        self.end = self.start + self.length
        self.memory[:] = b"x" * self.length

    def write(self, page: int) -> None:
        self.memory[page * PAGE + 5] = 7

    def pages(self, first: int, last: int) -> tuple[int, int]:
        """The addresses of some pages."""
        return self.start + first * PAGE, self.start + last * PAGE

    def numbers(self, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The pages of some addresses."""
        return [((a - self.start) // PAGE, (b - self.start) // PAGE) for a, b in ranges]

    def unmap(self, first: int, last: int) -> None:
        """For good: in a child only, or with :meth:`map_again` after it."""
        start, end = self.pages(first, last)
        assert LIBC.munmap(ctypes.c_void_p(start), ctypes.c_size_t(end - start)) == 0

    def map_again(self, first: int, last: int, kind: int = 0) -> None:
        """Other memory, full of zeros, at the same place."""
        start, end = self.pages(first, last)
        LIBC.mmap.restype = ctypes.c_void_p
        fixed = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
        shared_or_private = fixed if not kind else fixed & ~mmap.MAP_PRIVATE | kind
        got = LIBC.mmap(
            ctypes.c_void_p(start),
            ctypes.c_size_t(end - start),
            mmap.PROT_READ | mmap.PROT_WRITE,
            shared_or_private,
            -1,
            ctypes.c_long(0),
        )
        if got != start:
            raise OSError(ctypes.get_errno(), "this kind of memory cannot be had")


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


IOCTL = {"x86_64": 16, "aarch64": 29}.get(platform.machine(), -1)


def refuse(system_call: int, error: int, second_argument: int | None = None) -> None:
    """A real seccomp filter, for the rest of this process: in a child only."""
    load, jump, give = 0x20, 0x15, 0x06
    program = [(load, 0, 0, 0), (jump, 0, 3 if second_argument else 1, system_call)]
    if second_argument:
        program += [(load, 0, 0, 24), (jump, 0, 1, second_argument)]
    program += [(give, 0, 0, 0x00050000 | error), (give, 0, 0, 0x7FFF0000)]
    instructions = (_Instruction * len(program))(*program)
    no_new_privileges, seccomp, filtered = 38, 22, 2
    assert LIBC.prctl(no_new_privileges, 1, 0, 0, 0) == 0
    argument = ctypes.byref(_Program(len(program), instructions))
    assert LIBC.prctl(seccomp, filtered, argument, 0, 0) == 0
