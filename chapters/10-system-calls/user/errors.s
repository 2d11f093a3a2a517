# errors: two calls that the kernel must refuse, and the registers that it must leave alone.
# Its exit code is 0 if all is well, else the number of the check that failed.

        .set    WRITE, 1
        .set    EXIT, 60
        .set    NO_SUCH_CALL, 999
        .set    NO_SUCH_FILE, 2
        .set    EBADF, 9
        .set    ENOSYS, 38

        .globl  _start
        .code64
_start: mov     r12, rsp
        mov     ebx, 1
        mov     eax, NO_SUCH_CALL
        syscall
        cmp     rax, -ENOSYS
        jne     end

        mov     ebx, 2
        .irp    register, rbp, r8, r9, r10, r13, r14, r15
        mov     \register, offset _start
        .endr
        mov     eax, WRITE
        mov     edi, NO_SUCH_FILE
        mov     esi, offset text
        mov     edx, 1
        syscall
        cmp     rax, -EBADF
        jne     end

        mov     ebx, 3
        cmp     edi, NO_SUCH_FILE
        jne     end
        cmp     rsi, offset text
        jne     end
        cmp     rdx, 1
        jne     end
        .irp    register, rbp, r8, r9, r10, r13, r14, r15
        cmp     \register, offset _start
        jne     end
        .endr
        cmp     rsp, r12
        jne     end
        xor     ebx, ebx

end:    mov     eax, EXIT
        mov     edi, ebx
        syscall

        .data
text:   .ascii  "?"                 # nobody reads this
