# Chapter 09: a guest that takes exceptions on purpose, one by one, as the hypervisor asks.
#
# Entered at _start in 64-bit code, ring 0, interrupts off, with the first GiB mapped to
# itself. What to provoke is the answer to an `in`; what was caught is told by an `out`.

        .set    MENU, 0x20          # port: AL = what to provoke
        .set    CAUGHT, 0x21        # AL = vector, RSI = error code, RDX = RIP, RDI = CR2, RSP

        .set    CODE, 0x08          # selectors
        .set    NO_SELECTOR, 0x50   # past the end of the GDT
        .set    TASK, 0x18
        .set    IST1, 0x24          # in the TSS: the stack of gates with IST = 1
        .set    HOLE, 0x40000000    # 1 GiB: not mapped
        .set    TF, 1 << 8          # RFLAGS
        .set    CHOICES, 9

        .globl  _start
        .code64
_start: mov     esp, offset stack_end
        lgdt    [gdtr]
        lidt    [idtr]
        mov     dword ptr [tss + IST1], offset double_fault_stack_end
        mov     eax, TASK
        ltr     ax

menu:   in      al, MENU            # exit: IoIn(MENU, [choice])
        movzx   eax, al
        cmp     eax, CHOICES
        jae     end
        jmp     [choices + rax * 8]
end:    hlt                         # exit: Hlt

divide: xor     ecx, ecx
        mov     eax, 1
        xor     edx, edx
        div     ecx                 # #DE: a fault, RIP is this instruction's

step:   pushfq
        or      dword ptr [rsp], TF
        popfq                       # the next instruction is the first that ends in #DB,
        nop                         # a trap: RIP is the one behind it

breakpoint:
        int3                        # #BP: a trap

opcode: ud2                         # #UD

protection:
        mov     eax, NO_SELECTOR
        mov     ds, eax             # #GP: no such descriptor

page:   mov     dword ptr [HOLE], 1 # #PF: no such page

double: mov     esp, HOLE + 0x1000
        push    rax                 # #PF, whose frame cannot be pushed: #PF again, #DF

triple: lidt    [no_idt]
        ud2                         # #UD has no gate, nor has #GP, nor #DF: the CPU gives up

# The CPU has pushed SS, RSP, RFLAGS, CS, RIP, and for some an error code.
        .irp    vector, 0, 1, 3, 6
exception_\vector:
        push    0                   # in place of the error code
        push    \vector
        jmp     exception
        .endr
        .irp    vector, 8, 13, 14
exception_\vector:
        push    \vector
        jmp     exception
        .endr
exception:
        pop     rax
        pop     rsi
        mov     rdx, [rsp]
        mov     rdi, cr2
        out     CAUGHT, al          # exit: IoOut(CAUGHT, [vector])
        # A kernel would mend the cause or end a program. This one goes back to its menu.
        mov     qword ptr [rsp], offset menu            # RIP
        mov     qword ptr [rsp + 16], 2                 # RFLAGS, TF clear
        mov     qword ptr [rsp + 24], offset stack_end  # RSP
        iretq

        .data
        .balign 16
gdt:    .quad   0
        .quad   0x00af9b000000ffff  # 08: 64-bit code
        .quad   0x00cf93000000ffff  # 10: data
        .word   0x67, tss, 0x8900, 0 # 18: the TSS, and the upper half of its base
        .quad   0
gdtr:   .word   5 * 8 - 1
        .quad   gdt

        .macro  gate handler, stack=0   # an interrupt gate to a handler below 64 KiB
        .word   \handler, CODE, 0x8e00 + \stack, 0
        .quad   0
        .endm
        .macro  no_gates count
        .fill   2 * \count, 8, 0
        .endm
        .balign 16
idt:    gate    exception_0         # #DE
        gate    exception_1         # #DB
        no_gates 1
        gate    exception_3         # #BP
        no_gates 2
        gate    exception_6         # #UD
        no_gates 1
double_fault_gate:
        gate    exception_8, 1      # #DF, on a stack of its own: IST = 1
        no_gates 4
        gate    exception_13        # #GP
        gate    exception_14        # #PF
idtr:   .word   15 * 16 - 1
        .quad   idt
no_idt: .word   0
        .quad   0

        .balign 8
choices:
        .quad   divide, step, breakpoint, opcode, protection, page, menu, double, triple

        .bss
        .balign 4096
tss:    .skip   0x68
        .balign 16
stack:  .skip   1024
stack_end:
        .skip   16                  # so that no address has the names of both stacks
double_fault_stack:
        .skip   1024
double_fault_stack_end:
