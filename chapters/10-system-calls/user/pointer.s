# pointer: asks the kernel to print the kernel.

        .set    WRITE, 1
        .set    CONSOLE, 1
        .set    KERNEL, 0x1000      # not this program's memory

        .globl  _start
        .code64
_start: mov     eax, WRITE
        mov     edi, CONSOLE
        mov     esi, KERNEL
        mov     edx, 16
        syscall                     # never returns: the kernel kills the program
