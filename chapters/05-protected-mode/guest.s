# Chapter 05: a guest that takes itself from real mode to protected mode.
#
# Entered at _start in real mode: CS base 0, everything else as after reset. The
# hypervisor's second half enters at `flat`, with everything before it done.
# At each step the guest writes a progress code to port 0x80.

        .set    POST, 0x80
        .set    PE, 1               # CR0.PE
        .set    CODE, 1 << 3        # selectors: entry 1 of the GDT, ring 0
        .set    DATA, 2 << 3        # entry 2

        .globl  _start
        .code16
_start: mov     al, 1
        out     POST, al            # exit: IoOut(POST, [1])
        cli                         # no interrupt may find a half-switched CPU
        lgdt    [gdtr]
        mov     eax, cr0
        or      al, PE
        mov     cr0, eax            # protected mode begins; CS still holds 16-bit code
        mov     al, 2
        out     POST, al            # exit: IoOut(POST, [2])
        .byte   0x66, 0xea          # jmp CODE:protected, with a 32-bit offset
        .long   protected
        .word   CODE

        .code32
protected:
        mov     al, 3
        out     POST, al            # exit: IoOut(POST, [3])
        mov     ax, DATA
        mov     ds, ax
        mov     es, ax
        mov     fs, ax
        mov     gs, ax
        mov     ss, ax
flat:   mov     esp, 0x20000        # a stack that no 16-bit segment at 0 reaches
        push    0x600d              # [0x1fffc]
        pop     ebx
        mov     al, 4
        out     POST, al            # exit: IoOut(POST, [4])
        hlt                         # exit: Hlt

        .data
        .balign 8
gdt:    .quad   0                   # entry 0 is never used
code:   .quad   0x00cf9b000000ffff  # base 0, 4 GiB, 32-bit code, accessed
data:   .quad   0x00cf93000000ffff  # base 0, 4 GiB, writable data, accessed
gdtr:   .word   3 * 8 - 1           # the last byte's offset, not the size
        .long   gdt
