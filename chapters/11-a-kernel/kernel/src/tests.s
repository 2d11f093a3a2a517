# Accesses that may fault: each returns after the access, or, where it faults, at
# the same place. RDI = address.

        .section .text, "ax"
        .code64
        .globl  try_read
try_read:
        push    rbx
        push    rdi
        lea     rdi, [rip + done]
        mov     rbx, rsp
        call    recover_at
        pop     rdi
        mov     al, [rdi]
        jmp     done

        .globl  try_write
try_write:
        push    rbx
        push    rdi
        lea     rdi, [rip + done]
        mov     rbx, rsp
        call    recover_at
        pop     rdi
        mov     al, [rdi]
        mov     [rdi], al
        jmp     done

        .globl  try_call
try_call:
        push    rbx
        push    rdi
        lea     rdi, [rip + done]
        mov     rbx, rsp
        call    recover_at
        pop     rdi
        call    rdi
done:   lea     rsp, [rbx + 8]      # a call that faulted has left its return address
        pop     rbx
        ret

# A function that does nothing, among the data.
        .section .data, "aw"
        .globl  code_in_data
code_in_data:
        ret
