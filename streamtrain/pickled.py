"""Bytes of a pickle enter; plain values and inert nodes leave. Nothing is imported or called."""

from __future__ import annotations

import pickletools
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamtrain.errors import InputError

# Opcodes that push their argument, as parsed by pickletools.
_VALUES = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# An opcode of one byte can make an object of 70. A gene's name takes two opcodes: models have
# thousands, and almost a million names would still fit.
_MOST_OPCODES = 2 * 10**6


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the pickle names, by our word for it."""

    word: str


@dataclass(eq=False, slots=True)
class Node:
    """An object as the pickle describes it: what it calls, with which arguments, what it sets."""

    word: str
    args: tuple[Any, ...]
    state: Any = None


def parse(data: bytes, admitted: Mapping[tuple[str, str], str]) -> Any:
    """Read a pickle of protocol 3 to 5 without making any object that it names.

    A stack machine over the opcodes that Python's own pickler writes for plain values and for
    calls: a name becomes a `Name`, a call a `Node`. So no class, reducer or `__setstate__` can run,
    and no claim of the file (a length, a memo index) allocates more than the file is long. To its
    length come some 70 bytes for each opcode, of which at most two million are read.

    Parameters
    ----------
    data
        The file.
    admitted
        (module, name) of all that the file may name, each with the word that nodes have for it.

    Returns
    -------
    Any
        None, bool, int, float, str, bytes, bytearray, list, tuple, dict, `Name` or `Node`.

    Raises
    ------
    InputError
        The file names something else, has another opcode or too many, or is no complete pickle.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # Python's, of an escape unknown
            return _Machine(admitted).run(data)
    except InputError:
        raise
    # What pickletools raises for bytes that are no pickle, and a stack that does not fit.
    except (ValueError, IndexError, KeyError, TypeError, Warning, struct.error) as error:
        raise InputError(
            f"not a pickle, or damaged ({type(error).__name__}: {error}): get the file once more"
        ) from error


class _Machine:
    """The state of one reading: a stack, the stacks that marks set aside, and the memo."""

    def __init__(self, admitted: Mapping[tuple[str, str], str]) -> None:
        self._admitted = admitted
        self._stack: list[Any] = []
        self._aside: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for n, (opcode, argument, at) in enumerate(pickletools.genops(data)):
            if n == _MOST_OPCODES:
                raise InputError(f"refused: it has over {n} opcodes, which no such file needs")
            name = opcode.name
            if name == "STOP":
                if at is not None and at + 1 < len(data):
                    raise ValueError(f"{len(data) - at - 1} bytes behind its end")
                return self._stack.pop()
            if name in _VALUES:
                if isinstance(argument, str) and not argument.isascii():
                    argument.encode()  # no lone surrogates: they could not be saved
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            else:
                self._step(name, argument)
        raise ValueError("no end")

    def _step(self, opcode: str, argument: Any) -> None:
        stack, memo = self._stack, self._memo
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._aside.append(stack)
                self._stack = []
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(_TUPLES[opcode])))
            case "TUPLE":
                items = self._marked()
                self._stack.append(tuple(items))
            case "APPEND":
                self._extend(self._pop(1))
            case "APPENDS":
                self._extend(self._marked())
            case "SETITEM":
                self._update(self._pop(2))
            case "SETITEMS":
                self._update(self._marked())
            case "GLOBAL":
                self._name(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                self._name(*self._pop(2))
            case "REDUCE" | "NEWOBJ":
                called, args = self._pop(2)
                if not (isinstance(called, Name) and isinstance(args, tuple)):
                    raise ValueError(f"{opcode} of a {type(called).__name__}")
                self._stack.append(Node(called.word, args))
            case "BUILD":
                (state,) = self._pop(1)
                if not isinstance(self._stack[-1], Node):
                    raise ValueError(f"{opcode} of a {type(self._stack[-1]).__name__}")
                self._stack[-1].state = state
            case _:
                raise InputError(f"refused: it has the opcode {opcode}, which no such file needs")

    def _pop(self, n: int) -> list[Any]:
        """Take the last n values, in order."""
        if len(self._stack) < n:
            raise IndexError("pop from an empty stack")
        items = self._stack[-n:]
        del self._stack[-n:]
        return items

    def _marked(self) -> list[Any]:
        """Take all values since the last mark."""
        items, self._stack = self._stack, self._aside.pop()
        return items

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise ValueError(f"items for a {type(self._stack[-1]).__name__}")
        self._stack[-1].extend(items)

    def _update(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], dict):
            raise ValueError(f"items for a {type(self._stack[-1]).__name__}")
        keys, values = items[::2], items[1::2]
        # Texts, small numbers (as classes have) and nodes (by identity) have hashes that no file
        # can make equal; and hashing a tuple of tuples can run out of C stack.
        for key in keys:
            if not (isinstance(key, str | Node) or (isinstance(key, int) and abs(key) < 2**31)):
                raise ValueError(f"a {type(key).__name__} as key")
        self._stack[-1].update(zip(keys, values, strict=True))

    def _name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a name that is no text")
        word = self._admitted.get((module, name))
        if word is None:
            asked = f"{module}.{name}"
            raise InputError(
                f"refused: it asks for {asked[:200]!r}, which no such file needs; nothing was run"
            )
        self._stack.append(Name(word))
