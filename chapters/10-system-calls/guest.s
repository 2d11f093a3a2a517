# Chapter 10: a kernel that runs programs in ring 3 and serves their system calls.
#
# Entered at _start in 64-bit code, ring 0, interrupts off. The hypervisor has built
# the tables at `pml4`, which map the first GiB to itself for ring 0 alone, and has
# filled `programs`. The kernel says what happens by an `out`; registers say the rest.

        .set    WRITE, 1            # the system calls, as in src/abi.rs
        .set    EXIT, 60
        .set    CALLS, 0x400
        .set    CONSOLE, 1
        .set    EBADF, 9
        .set    ENOSYS, 38

        .set    STARTS, 0x10        # ports: AL = the program's number
        .set    WRITES, 0x11        # RSI = address, RDX = length
        .set    EXITED, 0x12        # AL = its exit code
        .set    REFUSED, 0x13       # RSI, RDX: a write of memory that is not the program's
        .set    KILLED, 0x14        # AL = vector, RSI = error code, RDX = RIP, RDI = CR2
        .set    PANIC, 0x15         # the same, in the kernel itself

        .set    KERNEL_CODE, 0x08   # selectors
        .set    USER_BASE, 0x1b     # entry 3, RPL 3: sysretq adds 16 for CS, 8 for SS
        .set    TASK, 0x30
        .set    RSP0, 4             # in the TSS: the stack for what interrupts ring 3

        .set    EFER, 0xc0000080    # MSRs
        .set    STAR, 0xc0000081
        .set    LSTAR, 0xc0000082
        .set    FMASK, 0xc0000084
        .set    GS_BASE, 0xc0000101
        .set    SCE, 1              # EFER.SCE
        .set    MASKED, 0x47700     # RFLAGS: AC, NT, IOPL, DF, IF, TF

        .set    USER_START, 0x400000
        .set    USER_END, 0x600000
        .set    USER, 4             # a page-table entry's U/S
        .set    USER_PAGE, 0x87     # PS, U/S, R/W, P

        .set    USER_RSP, 0         # the per-CPU area, from GS
        .set    KERNEL_RSP, 8
        .set    SERVED, 16

        .globl  _start
        .code64
_start: mov     esp, offset stack_end
        lgdt    [gdtr]
        lidt    [idtr]
        mov     dword ptr [tss + RSP0], offset stack_end
        mov     dword ptr [cpu + KERNEL_RSP], offset stack_end
        mov     dword ptr [next], offset programs
        mov     eax, TASK
load_task:
        ltr     ax                  # exceptions in ring 3 take their stack from the TSS

        mov     ecx, EFER
        rdmsr
set_sce:
        or      eax, SCE            # without it, syscall and sysret are #UD
        wrmsr
        mov     ecx, STAR
        xor     eax, eax
        mov     edx, USER_BASE << 16 | KERNEL_CODE
        wrmsr
        mov     ecx, LSTAR
        mov     eax, offset system_call
        xor     edx, edx
        wrmsr
        mov     ecx, FMASK
        mov     eax, MASKED
        wrmsr
        mov     ecx, GS_BASE
        mov     eax, offset cpu
        wrmsr                       # swapgs will put it into KERNEL_GS_BASE and back

open_to_ring_3:
        or      byte ptr [pml4], USER
        or      byte ptr [pdpt], USER

# In ring 0, with the kernel's GS.
next_program:
        mov     rsp, gs:[KERNEL_RSP]
        mov     rbx, [next]         # a pair: the page frame, and the entry point
        add     qword ptr [next], 16
        mov     rdx, [rbx]
        test    rdx, rdx
        jz      finished
        or      rdx, USER_PAGE
        mov     [pd + 2 * 8], rdx   # 4 MiB to 6 MiB is this program's frame from now on
        mov     rax, cr3
        mov     cr3, rax            # and the CPU forgets the one before
        mov     rcx, [rbx + 8]      # sysretq: RIP = RCX,
        mov     r11d, 2             # RFLAGS = R11
        mov     eax, ebx
        sub     eax, offset programs
        shr     eax, 4
        out     STARTS, al          # exit: IoOut(STARTS, [number])
        .irp    register, eax, ebx, edx, esi, edi, ebp, r8d, r9d, r10d, r12d, r13d, r14d, r15d
        xor     \register, \register
        .endr
        mov     esp, USER_END
        swapgs
enter_ring_3:
        sysretq

finished:
        mov     rax, gs:[SERVED]
        hlt                         # exit: Hlt; RAX = how many system calls were served

# Where syscall leads. RCX = where it came from, R11 = RFLAGS; RSP is still the program's.
system_call:
        swapgs                      # GS: from the program's to this CPU's area
        mov     gs:[USER_RSP], rsp
        mov     rsp, gs:[KERNEL_RSP]
        push    rcx
        push    r11
        inc     qword ptr gs:[SERVED]
        cmp     rax, WRITE
        je      write
        cmp     rax, EXIT
        je      exit
        cmp     rax, CALLS
        je      calls
        mov     rax, -ENOSYS
return: pop     r11
        pop     rcx
        mov     rsp, gs:[USER_RSP]
        swapgs
        sysretq

calls:  mov     rax, gs:[SERVED]
        jmp     return

write:  mov     rax, -EBADF
        cmp     rdi, CONSOLE
        jne     return
        cmp     rsi, USER_START     # all of it must lie in the program's memory
        jb      refuse
        mov     eax, USER_END
        sub     rax, rsi
        jb      refuse
        cmp     rdx, rax
        ja      refuse
        mov     al, CONSOLE
        out     WRITES, al          # exit: IoOut(WRITES, [CONSOLE])
        mov     rax, rdx
        jmp     return

exit:   mov     eax, edi
        out     EXITED, al          # exit: IoOut(EXITED, [code])
        jmp     next_program

refuse: mov     al, WRITE
        out     REFUSED, al         # exit: IoOut(REFUSED, [WRITE])
        jmp     next_program

# Exceptions. The CPU has pushed SS, RSP, RFLAGS, CS, RIP, and for some an error code.
        .irp    vector, 0, 1, 6
exception_\vector:
        push    0                   # in place of the error code
        push    \vector
        jmp     exception
        .endr
        .irp    vector, 12, 13, 14
exception_\vector:
        push    \vector
        jmp     exception
        .endr
exception:
        mov     ebx, [rsp + 24]     # CS, with the ring in its low bits
        pop     rax
        pop     rsi
        pop     rdx
        mov     rdi, cr2
        test    bl, 3
        jz      panic
        swapgs
        out     KILLED, al          # exit: IoOut(KILLED, [vector])
        jmp     next_program
panic:  out     PANIC, al           # exit: IoOut(PANIC, [vector])
        hlt                         # exit: Hlt

        .data
        .balign 16
gdt:    .quad   0
        .quad   0x00af9b000000ffff  # 08: 64-bit code, ring 0
        .quad   0x00cf93000000ffff  # 10: data, ring 0
        .quad   0                   # 18: 32-bit code for ring 3 would stand here
        .quad   0x00cff3000000ffff  # 23: data, ring 3
        .quad   0x00affb000000ffff  # 2b: 64-bit code, ring 3
        .word   0x67, tss, 0x8900, 0 # 30: the TSS, and the upper half of its base
        .quad   0
gdtr:   .word   8 * 8 - 1
        .quad   gdt

        .macro  gate handler        # an interrupt gate to a handler below 64 KiB
        .word   \handler, KERNEL_CODE, 0x8e00, 0
        .quad   0
        .endm
        .macro  no_gates count
        .fill   2 * \count, 8, 0
        .endm
        .balign 16
idt:    gate    exception_0         # #DE
        gate    exception_1         # #DB
        no_gates 4
        gate    exception_6         # #UD
        no_gates 5
        gate    exception_12        # #SS
        gate    exception_13        # #GP
        gate    exception_14        # #PF
idtr:   .word   15 * 16 - 1
        .quad   idt

        .bss
        .balign 4096
pml4:   .skip   4096
pdpt:   .skip   4096
pd:     .skip   4096
tss:    .skip   0x68
        .balign 16
cpu:    .skip   24                  # not beside code: a CPU watches stores there
next:   .skip   8
programs:
        .skip   (16 + 1) * 16
        .skip   1024
stack_end:
