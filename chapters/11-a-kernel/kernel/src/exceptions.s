# Where exceptions arrive. A stub for each vector: all frames get an error code, and
# the vector. Then one way for all: save the registers, call `exception`, go back.

        .set    ERROR_CODES, 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30

        .section .text, "ax"
        .code64
        .globl  exception_stubs
        .balign 16
exception_stubs:
        .set    vector, 0
        .rept   32
        .balign 16
        .if     (ERROR_CODES >> vector) & 1 == 0
        push    0
        .endif
        push    vector
        jmp     exception_entry
        .set    vector, vector + 1
        .endr

exception_entry:
        push    rax
        push    rcx
        push    rdx
        push    rbx
        push    rbp
        push    rsi
        push    rdi
        push    r8
        push    r9
        push    r10
        push    r11
        push    r12
        push    r13
        push    r14
        push    r15
        cld
        mov     rdi, rsp
        push    [rsp + 17 * 8]      # RIP and RBP as a call would leave them: the chain
        push    rbp                 # of frames goes on through the exception
        mov     rbp, rsp
        call    exception
        add     rsp, 16
        pop     r15
        pop     r14
        pop     r13
        pop     r12
        pop     r11
        pop     r10
        pop     r9
        pop     r8
        pop     rdi
        pop     rsi
        pop     rbp
        pop     rbx
        pop     rdx
        pop     rcx
        pop     rax
        add     rsp, 16             # vector and error code
        iretq
