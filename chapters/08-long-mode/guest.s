# Chapter 08: a guest that climbs from real mode to 64-bit code.
#
# Entered at _start in real mode: CS base 0, everything else as after reset. The
# hypervisor's second half enters at `long`, in long mode with paging on.
# At each step the guest writes a progress code to port 0x80.

        .set    POST, 0x80
        .set    PE, 1               # CR0.PE
        .set    PG, 1 << 31         # CR0.PG
        .set    PAE, 1 << 5         # CR4.PAE
        .set    EFER, 0xc0000080    # the MSR's number
        .set    LME, 1 << 8         # EFER.LME
        .set    TABLE, 3            # a page-table entry: present, writable
        .set    LARGE_PAGE, 0x83    # and PS: a page of 2 MiB here
        .set    CODE32, 1 << 3      # selectors: entries 1, 2 and 3 of the GDT, ring 0
        .set    DATA, 2 << 3
        .set    CODE64, 3 << 3

        .globl  _start
        .code16
_start: mov     al, 1
        out     POST, al            # exit: IoOut(POST, [1])
        cli
        lgdt    [gdtr]
        mov     eax, cr0
        or      al, PE
        mov     cr0, eax
        .byte   0x66, 0xea          # jmp CODE32:protected, with a 32-bit offset
        .long   protected
        .word   CODE32

        .code32
protected:
        mov     ax, DATA
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     al, 2
        out     POST, al            # exit: IoOut(POST, [2])

        # Three tables that map the first 2 MiB to themselves. They start as zeros,
        # and the upper half of each entry stays zero.
        mov     dword ptr [pml4], offset pdpt + TABLE
        mov     dword ptr [pdpt], offset pd + TABLE
map_page:
        mov     dword ptr [pd], LARGE_PAGE

enable_pae:
        mov     eax, cr4
        or      eax, PAE            # entries of 8 bytes, more than two levels
        mov     cr4, eax
        mov     al, 3
        out     POST, al            # exit: IoOut(POST, [3])

        mov     eax, offset pml4
        mov     cr3, eax
        mov     ecx, EFER
        rdmsr
set_lme:
        or      eax, LME            # asks for long mode; nothing changes yet
        wrmsr
        mov     al, 4
        out     POST, al            # exit: IoOut(POST, [4])

enable_paging:
        mov     eax, cr0
        or      eax, PG
        mov     cr0, eax            # paging on: the CPU sets EFER.LMA, long mode begins
        mov     al, 5
        out     POST, al            # exit: IoOut(POST, [5])
        .byte   0xea                # jmp CODE64:long; until here CS holds 32-bit code
        .long   long
        .word   CODE64

        .code64
long:   mov     al, 6
        out     POST, al            # exit: IoOut(POST, [6])
        mov     r15, 0x1122334455667788
        hlt                         # exit: Hlt

        .data
        .balign 8
gdt:    .quad   0                   # entry 0 is never used
        .quad   0x00cf9b000000ffff  # 32-bit code
        .quad   0x00cf93000000ffff  # writable data
        .quad   0x00af9b000000ffff  # 64-bit code: L = 1, D = 0
gdtr:   .word   4 * 8 - 1
        .long   gdt

        .bss
        .balign 4096
pml4:   .skip   4096
pdpt:   .skip   4096
pd:     .skip   4096
