# Chapter 02: one of every exit that a guest can cause on purpose, and one
# instruction that exits without anybody here seeing it.
#
# Entered at _start in real mode: CS base 0, everything else as after reset.

        .set    OUT_PORT, 0x10
        .set    IN_PORT, 0x11
        .set    STRING_PORT, 0x12
        .set    SCREEN, 0xb800      # segment of guest-physical 0xb8000, where no memory is

        .globl  _start
        .code16
_start: mov     al, 'A'
        out     OUT_PORT, al        # exit: IoOut(OUT_PORT, ['A'])
        mov     ax, 0x1234
        out     OUT_PORT, ax        # exit: IoOut(OUT_PORT, [0x34, 0x12]), one item of two bytes

        in      al, IN_PORT         # exit: IoIn(IN_PORT, [answer])
        mov     [answer], al

        cld
        mov     si, offset text
        mov     cx, 3
        mov     dx, STRING_PORT
        rep     outsb               # exit: IoOut(STRING_PORT, [byte]), three times

        mov     ax, SCREEN
        mov     es, ax
        mov     al, [answer]
        mov     es:[0], al          # exit: MmioWrite(0xb8000, [answer])
        mov     al, es:[2]          # exit: MmioRead(0xb8002, [answer])
        mov     [answer + 1], al

        xor     eax, eax
        cpuid                       # a VM exit, which KVM answers by itself
        mov     [largest_leaf], al
crash:  hlt                         # exit: Hlt
        .skip   4                   # room for what --break internal-error writes over `crash`

        .data
text:   .ascii  "abc"
answer: .skip   2                   # what the hypervisor answered to `in` and to the read
largest_leaf:
        .skip   1
