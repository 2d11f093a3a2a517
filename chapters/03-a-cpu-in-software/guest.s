# Chapter 03: a compute loop, for measuring a CPU that is a Rust loop.
#
# Entered at _start in real mode: CS base 0, everything else as after reset. It
# adds 1 + 2 + … + 1000 and writes the sum, modulo 65536, to port 0x10.

        .set    OUT_PORT, 0x10

        .globl  _start
        .code16
_start: mov     cx, 1000
        mov     ax, 0
        mov     dx, OUT_PORT
next:   add     ax, cx
        dec     cx
again:  jnz     next
        out     dx, ax              # exit: IoOut(OUT_PORT, [0x14, 0xa3])
        hlt                         # exit: Hlt
