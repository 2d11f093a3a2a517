# halt: wants to stop the CPU, which is ring 0's to do.

        .globl  _start
        .code64
_start: hlt                         # #GP in ring 3, and no exit: the kernel kills the program
