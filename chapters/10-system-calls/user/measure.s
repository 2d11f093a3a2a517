# measure: many system calls in a row, then many VM exits in a row, for ever. A write of
# nothing stands before each series: its exit is where examples/syscall_vs_exit.rs reads its clock.

        .set    WRITE, 1
        .set    CALLS, 0x400
        .set    CONSOLE, 1
        .set    SYSTEM_CALLS, 1000  # in a series
        .set    EXITS, 100

        .globl  _start
        .code64
_start: mov     edi, CONSOLE
        xor     edx, edx
round:  mov     eax, WRITE
        mov     esi, offset _start
        syscall                     # in the kernel, exit: IoOut(WRITES, …)

        mov     ebx, SYSTEM_CALLS
call:   mov     eax, CALLS
        syscall                     # no exit
        dec     ebx
        jnz     call

        mov     ebx, EXITS + 1
write:  mov     eax, WRITE
        syscall                     # in the kernel, exit: IoOut(WRITES, …)
        dec     ebx
        jnz     write
        jmp     round
