# hello: prints a line, and ends. Entered in ring 3, in 64-bit code, with a stack.
# The calls are those of src/abi.rs.

        .set    WRITE, 1
        .set    EXIT, 60
        .set    CONSOLE, 1

        .globl  _start
        .code64
_start: mov     eax, WRITE
        mov     edi, CONSOLE
        mov     esi, offset text
        mov     edx, offset text_end
        sub     edx, esi
        syscall                     # no exit: the guest's own kernel answers

        mov     eax, EXIT
        xor     edi, edi
        syscall

        .data
text:   .ascii  "hello from ring 3\n"
text_end:
