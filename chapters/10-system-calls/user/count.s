# count: asks three times how many system calls this CPU has served, and prints the last answer.

        .set    WRITE, 1
        .set    EXIT, 60
        .set    CALLS, 0x400
        .set    CONSOLE, 1

        .globl  _start
        .code64
_start: mov     ebx, 3
again:  mov     eax, CALLS
        syscall
        dec     ebx
        jnz     again

        mov     ecx, 10             # decimal digits, from the last to the first
        mov     ebx, offset digits_end
digit:  xor     edx, edx
        div     rcx
        add     dl, '0'
        dec     rbx
        mov     [rbx], dl
        test    rax, rax
        jnz     digit

        mov     eax, WRITE
        mov     edi, CONSOLE
        mov     esi, ebx
        mov     edx, offset text_end
        sub     edx, esi
        syscall

        mov     eax, EXIT
        xor     edi, edi
        syscall

        .data
digits: .skip   20                  # as many as 64 bits can need
digits_end:
        .ascii  " system calls so far\n"
text_end:
