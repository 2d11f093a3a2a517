# Chapter 07: a kernel in ring 0 and a program in ring 3. The kernel goes down by
# `iret`, the program comes back by `int 0x80`, and is stopped when it tries what
# ring 3 may not do.
#
# Entered at _start in 32-bit protected mode, flat segments, paging on: everything
# is mapped to itself, and ring 3 may use only the pages from `user` to `user_end`
# and `user_stack`. Progress codes go to port 0x80; what the kernel has to report
# goes to port 0x81, four bytes each: vector, error code, EIP.

        .set    POST, 0x80
        .set    REPORT, 0x81
        .set    CODE, 1 << 3        # selectors: entries 1 to 5 of the GDT
        .set    DATA, 2 << 3
        .set    USER_CODE, 3 << 3 | 3   # RPL 3
        .set    USER_DATA, 4 << 3 | 3
        .set    TSS, 5 << 3
        .set    USER_FLAGS, 2       # EFLAGS: IOPL 0, interrupts off
        .set    GENERAL_PROTECTION, 13
        .set    PAGE_FAULT, 14
        .set    INTERRUPT_GATE, 0x8e00  # present, DPL 0: the upper half of a gate
        .set    USER_GATE, 0xee00   # the same with DPL 3

        .globl  _start
        .code32
_start: mov     al, 1
        out     POST, al            # exit: IoOut(POST, [1])
        lgdt    [gdtr]
        lidt    [idtr]

        # Three gates. Handlers lie below 64 KiB, so an offset is 16 bits and a
        # gate's lower half is the selector above it.
        mov     dword ptr [idt + 0x80 * 8], offset system_call + (CODE << 16)
set_gate:
        mov     dword ptr [idt + 0x80 * 8 + 4], USER_GATE
        mov     dword ptr [idt + GENERAL_PROTECTION * 8], offset general_protection + (CODE << 16)
        mov     dword ptr [idt + GENERAL_PROTECTION * 8 + 4], INTERRUPT_GATE
        mov     dword ptr [idt + PAGE_FAULT * 8], offset page_fault + (CODE << 16)
        mov     dword ptr [idt + PAGE_FAULT * 8 + 4], INTERRUPT_GATE

        mov     ax, TSS
        ltr     ax                  # from now on the CPU knows the kernel's stack

        # What `iret` takes off the stack, as if an interrupt had come from ring 3.
        mov     esp, offset kernel_stack_top
        mov     ax, USER_DATA
        mov     ds, ax
        mov     es, ax
        push    USER_DATA           # SS
        mov     eax, offset user_stack_top
        push    eax                 # ESP
        push    USER_FLAGS
        push    USER_CODE           # CS
        mov     eax, offset user
        push    eax                 # EIP
        iretd                       # ring 0 -> ring 3

        # int 0x80: EAX + 1 comes back in EAX.
system_call:
        mov     ebx, eax
        mov     al, 3
        out     POST, al            # exit: IoOut(POST, [3]); ring 0, on the TSS's stack
        lea     eax, [ebx + 1]
        iretd                       # ring 0 -> ring 3

        # Entered with error code, EIP, CS, EFLAGS, ESP and SS on the stack.
general_protection:
        push    GENERAL_PROTECTION
        jmp     report
page_fault:
        push    PAGE_FAULT
report: pop     eax
        out     REPORT, eax         # exit: IoOut(REPORT, vector)
        pop     eax
        out     REPORT, eax         # exit: IoOut(REPORT, error code)
        pop     eax
        out     REPORT, eax         # exit: IoOut(REPORT, EIP)
        hlt                         # exit: Hlt; the program is not gone back to

        .section .user, "ax"
        .code32
user:   mov     al, 2
        out     POST, al            # exit: IoOut(POST, [2]); ring 3, because the TSS lets it
touch:  mov     ecx, [own]          # a page of ring 3's
        mov     eax, 41
        int     0x80                # ring 3 -> ring 0 -> ring 3
        mov     edx, eax            # 42
        mov     al, 4
        out     POST, al            # exit: IoOut(POST, [4])
forbidden:
        cli                         # #GP: IOPL is 0
        jmp     forbidden
own:    .long   0x600d
user_end:

        .data
        .balign 4096                # no longer ring 3's
gdt:    .quad   0
        .quad   0x00cf9b000000ffff  # code of ring 0
        .quad   0x00cf93000000ffff  # data of ring 0
        .quad   0x00cffb000000ffff  # code of ring 3: DPL 3, and otherwise the same
        .quad   0x00cff3000000ffff  # data of ring 3
        .word   tss_end - tss - 1, tss  # the TSS: limit, base 15:0
        .byte   0, 0x89, 0, 0       # base 23:16; available 32-bit TSS; base 31:24
gdtr:   .word   6 * 8 - 1
        .long   gdt
idtr:   .word   129 * 8 - 1
        .long   idt

        .balign 8
tss:    .long   0
        .long   kernel_stack_top    # ESP0
        .long   DATA                # SS0
        .fill   0x66 - 12, 1, 0     # the rest of a task that the hardware would switch
        .word   io_map - tss
io_map: .fill   16, 1, 0xff         # a bit for each port: 1 keeps ring 3 away
post_bit:
        .byte   0xfe, 0xff          # port 0x80 is allowed; the last byte is all ones
tss_end:

        .bss
        .balign 4096
idt:    .skip   4096                # 129 gates, most of them empty
        .skip   4096
kernel_stack_top:
        .skip   4096                # nobody's
user_stack:
        .skip   4096
user_stack_top:
