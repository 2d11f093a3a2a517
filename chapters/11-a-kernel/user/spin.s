# spin: a program that never ends, and never asks for anything.

        .globl  _start
        .code64
_start: jmp     _start
