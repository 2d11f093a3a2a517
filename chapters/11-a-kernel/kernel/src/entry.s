# The kernel's first instructions, on its two ways in.
#
# By the workbook's boot protocol: entered at _start in 64-bit mode, ring 0, with
# interrupts off and paging on: the first GiB at its own addresses and once more
# at KERNEL_BASE. RDI = guest-physical address of the boot information.
#
# By PVH, the protocol of Xen, QEMU, Firecracker and others: entered at pvh_start
# in 32-bit protected mode with paging off. EBX = guest-physical address of the
# start information. It climbs as chapter 08's guest did.

        .set    PAE, 1 << 5         # CR4.PAE
        .set    EFER, 0xc0000080
        .set    LME, 1 << 8         # EFER.LME
        .set    PG, 1 << 31         # CR0.PG
        .set    TABLE, 3            # a page-table entry: present, writable
        .set    LARGE_PAGE, 0x83    # and PS: a page of 2 MiB
        .set    LARGE_PAGES, 512    # of them in the first GiB
        .set    CODE64, 1 << 3      # entry 1 of the GDT below

        .section .text, "ax"
        .code64
        .globl  _start
_start: mov     rsi, offset boot    # what to call on the kernel's own stack
on_kernel_stack:
        cli
        cld
        mov     rsp, offset stack_top
        xor     ebp, ebp            # the chain of frames ends here
        .if     {sse}
        mov     rax, cr0            # compiled for a target whose code uses SSE
        and     al, 0xfb            # CR0.EM off,
        or      al, 2               # CR0.MP on
        mov     cr0, rax
        mov     rax, cr4
        or      eax, 3 << 9         # CR4.OSFXSR, CR4.OSXMMEXCPT
        mov     cr4, rax
        .endif
        call    rsi                 # never returns

# Which address PVH enters at: an ELF note of Xen's, type 18.
        .section .note.Xen, "a"
        .balign 4
        .long   4, 8, 18            # bytes of the name, bytes of the value, type
        .asciz  "Xen"
        .quad   pvh_start

        .section .boot, "ax"
        .code32
pvh_start:
        mov     dword ptr [pvh_pml4_physical], offset pvh_pdpt_low_physical + TABLE
        mov     dword ptr [pvh_pml4_physical + 511 * 8], offset pvh_pdpt_high_physical + TABLE
        mov     dword ptr [pvh_pdpt_low_physical], offset pvh_pd_physical + TABLE
        mov     dword ptr [pvh_pdpt_high_physical + 510 * 8], offset pvh_pd_physical + TABLE
        mov     eax, LARGE_PAGE
        xor     ecx, ecx
next_page:
        mov     [pvh_pd_physical + ecx * 8], eax
        add     eax, 2 << 20
        inc     ecx
        cmp     ecx, LARGE_PAGES
        jne     next_page

        mov     eax, cr4
        or      eax, PAE
        mov     cr4, eax
        mov     eax, offset pvh_pml4_physical
        mov     cr3, eax
        mov     ecx, EFER
        rdmsr
        or      eax, LME
        wrmsr
        mov     eax, cr0
        or      eax, PG
        mov     cr0, eax
        lgdt    [pvh_gdtr]
        .byte   0xea                # jmp CODE64:pvh_long
        .long   pvh_long
        .word   CODE64

        .code64
pvh_long:
        xor     eax, eax
        mov     ss, eax             # no segment of the loader's is left
        mov     ds, eax
        mov     es, eax
        mov     edi, ebx
        mov     rsi, offset boot_pvh
        mov     rax, offset on_kernel_stack
        jmp     rax                 # to the higher half

        .balign 8
pvh_gdt:
        .quad   0
        .quad   0x00af9b000000ffff  # 64-bit code
pvh_gdtr:
        .word   2 * 8 - 1
        .long   pvh_gdt

        .section .bss, "aw", @nobits
        .globl  pvh_pml4, pvh_pdpt_low, pvh_pdpt_high, pvh_pd
        .balign 4096
pvh_pml4:      .skip 4096
pvh_pdpt_low:  .skip 4096
pvh_pdpt_high: .skip 4096
pvh_pd:        .skip 4096
