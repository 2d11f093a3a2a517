# Chapter 06: a guest that builds its page tables, turns paging on, and reaches the
# same memory by two addresses.
#
# Entered at _start as chapter 05 ended: 32-bit protected mode, flat segments,
# paging off. At each step the guest writes a progress code to port 0x80.

        .set    POST, 0x80
        .set    WP, 1 << 16         # CR0.WP: read-only binds ring 0, too
        .set    PG, 1 << 31         # CR0.PG
        .set    ENTRY, 3            # an entry's flags: present, writable
        .set    PAGE, 4096
        .set    MEMORY, 16 * PAGE   # what the hypervisor gives: 64 KiB
        .set    DEVICE, 0x200000    # guest-physical; no memory is there
        .set    WINDOW, 0x400000    # linear: where the directory's entry 1 begins
        .set    REMAPPED, WINDOW + 3 * PAGE
        .set    HOLE, WINDOW + 4 * PAGE
        .set    ABSENT, WINDOW + 5 * PAGE

        .globl  _start
        .code32
_start: mov     al, 1
        out     POST, al            # exit: IoOut(POST, [1])

        # Two tables in the directory. It starts as zeros: nothing is present.
map_low:
        mov     dword ptr [directory], offset low + ENTRY
        mov     dword ptr [directory + 1 * 4], offset high + ENTRY

        # The first table maps the whole memory to itself.
        mov     edi, offset low
        mov     eax, ENTRY
next:   mov     [edi], eax
        add     edi, 4
        add     eax, PAGE
        cmp     eax, MEMORY
        jb      next

        # The second one maps two pages. Entry 5 stays zero.
map_page:
        mov     dword ptr [high + 3 * 4], offset page + ENTRY
        mov     dword ptr [high + 4 * 4], DEVICE + ENTRY

load_cr3:
        mov     eax, offset directory
        mov     cr3, eax
        mov     eax, cr0
        or      eax, PG | WP
        mov     cr0, eax            # paging on, from the next instruction on
        mov     al, 2
        out     POST, al            # exit: IoOut(POST, [2])

        mov     dword ptr [REMAPPED], 0x600d
        mov     ebx, [page]         # the same four bytes
        mov     ecx, [REMAPPED]
        movzx   edx, byte ptr [HOLE] # exit: MmioRead(DEVICE, [answer])
        mov     al, 3
        out     POST, al            # exit: IoOut(POST, [3])
        hlt                         # exit: Hlt; the hypervisor looks at the tables

        mov     eax, [ABSENT]       # exit: Shutdown; #PF, and there is no handler
        hlt

        .bss
        .balign 4096
directory:
        .skip   4096
low:    .skip   4096
high:   .skip   4096
page:   .skip   4096
