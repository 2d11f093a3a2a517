# Into ring 3 and back: chapter 10.

        .set    USER_DATA, {user_data}
        .set    USER_CODE, {user_code}
        .set    FIXED, 1 << 1       # RFLAGS: bit 1 is always 1; interrupts stay off

        .section .text, "ax"
        .code64
# enter_user(RDI = entry, RSI = end of the stack): returns what leave_user is given.
        .globl  enter_user
enter_user:
        push    rbp
        push    rbx
        push    r12
        push    r13
        push    r14
        push    r15
        push    rdi
        push    rsi
        mov     rdi, rsp
        call    set_kernel_stack    # for exceptions: the TSS
        pop     rsi
        pop     rdi
        mov     [per_cpu], rsp      # for system calls, and for leave_user
        push    USER_DATA
        push    rsi
        push    FIXED
        push    USER_CODE
        push    rdi
        xor     eax, eax            # no register carries anything of the kernel's
        xor     ebx, ebx
        xor     ecx, ecx
        xor     edx, edx
        xor     esi, esi
        xor     edi, edi
        xor     ebp, ebp
        xor     r8d, r8d
        xor     r9d, r9d
        xor     r10d, r10d
        xor     r11d, r11d
        xor     r12d, r12d
        xor     r13d, r13d
        xor     r14d, r14d
        xor     r15d, r15d
        iretq

# leave_user(RDI = result): back to where enter_user was called, from wherever.
        .globl  leave_user
leave_user:
        mov     rsp, [per_cpu]
        mov     rax, rdi
        pop     r15
        pop     r14
        pop     r13
        pop     r12
        pop     rbx
        pop     rbp
        ret

# Where `syscall` arrives: the CPU has loaded CS, SS, RIP and RFLAGS, and nothing
# else. The stack is still the program's.
        .globl  syscall_entry
syscall_entry:
        swapgs
        mov     gs:[8], rsp
        mov     rsp, gs:[0]
        push    USER_DATA           # what iretq will take
        push    qword ptr gs:[8]
        swapgs
        push    r11                 # RFLAGS, where syscall puts them
        push    USER_CODE
        push    rcx                 # RIP
        push    rdi
        push    rsi
        push    rdx
        push    r8
        push    r9
        push    r10
        push    rbp
        .if     {sse}
        fxsave  [sse_state]         # compiled for a target whose code uses SSE
        .endif
        xor     ebp, ebp            # the chain of frames ends here
        mov     rcx, rdx            # number and arguments, as C passes them
        mov     rdx, rsi
        mov     rsi, rdi
        mov     rdi, rax
        call    system_call
        .if     {sse}
        fxrstor [sse_state]
        .endif
        pop     rbp
        pop     r10
        pop     r9
        pop     r8
        pop     rdx
        pop     rsi
        pop     rdi
        mov     rcx, [rsp]          # RCX and R11 as sysret would leave them
        mov     r11, [rsp + 16]
        iretq

        .section .bss, "aw", @nobits
        .balign 8
        .globl  per_cpu
per_cpu:                            # GS's base in the kernel
        .skip   8                   # the kernel's stack
        .skip   8                   # the program's RSP, for a moment
        .if     {sse}
        .balign 16
sse_state:
        .skip   512
        .endif
