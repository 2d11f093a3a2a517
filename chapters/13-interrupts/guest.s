# Chapter 13: interrupts of a timer and of a device, taken in 64-bit code.
#
# Entered in long mode, ring 0, interrupts off, with a stack; the first GiB and the
# local APIC's page are mapped to themselves. At `_start` the machine has interrupt
# controllers and a timer; at `by_hand` it has none, and the hypervisor plays them.

        .set    COUNTED, 0x10       # port: a count, for the hypervisor to show
        .set    DOORBELL, 0x11      # port: rings a device
        .set    BUSY, 0x12          # port: interrupts are off, and will be for a while
        .set    DONE, 0x13          # port: the end
        .set    ENOUGH, 3           # interrupts of each kind

        .set    PIC, 0x20           # the first 8259A: commands, and at the next port its mask
        .set    PIC2, 0xa0          # the second
        .set    PIT, 0x40           # the 8254's counter 0
        .set    PIT_MODE, 0x43
        .set    EOI, 0x20           # to an 8259A: the interrupt has been served
        .set    TIMER, 0x20         # vectors: line 0 of the 8259A,
        .set    DEVICE, 0x24        # its line 4,
        .set    LOCAL, 0x40         # the local APIC's timer,
        .set    HAND, 0x50          # and what the hypervisor injects
        .set    TEN_MS, 11932       # counts of 1/1193182 s

        .set    LAPIC, 0xfee00000   # its registers:
        .set    LAPIC_EOI, 0xb0
        .set    LAPIC_SPURIOUS, 0xf0
        .set    LAPIC_TIMER, 0x320
        .set    LAPIC_INITIAL, 0x380
        .set    LAPIC_DIVIDE, 0x3e0
        .set    ENABLED, 0x1ff      # and spurious interrupts at vector 0xff
        .set    PERIODIC, 1 << 17
        .set    MASKED, 1 << 16
        .set    BY_1, 0xb
        .set    CODE, 8             # the selector of 64-bit code

        .globl  _start
        .code64
_start: call    load_tables

        # The 8259As: four words each, then a mask.
        mov     al, 0x11            # initialize; a fourth word follows
        out     PIC, al
        out     PIC2, al
        mov     al, TIMER           # the vector of line 0
        out     PIC + 1, al
        mov     al, TIMER + 8       # and of line 8
        out     PIC2 + 1, al
        mov     al, 1 << 2          # the second is at the first one's line 2
        out     PIC + 1, al
        mov     al, 2
        out     PIC2 + 1, al
        mov     al, 1               # for an 8086: that is what the PC's CPU still is here
        out     PIC + 1, al
        out     PIC2 + 1, al
        mov     al, 0xff            # everything of the second is masked,
        out     PIC2 + 1, al
        mov     al, 0xfe            # and of the first everything but line 0
        out     PIC + 1, al

        mov     al, 0x34            # counter 0: two bytes, and again and again
        out     PIT_MODE, al
        mov     al, TEN_MS & 0xff
        out     PIT, al
        mov     al, TEN_MS >> 8
        out     PIT, al

        mov     rbx, offset ticks
        call    idle
        out     COUNTED, al         # exit: IoOut(COUNTED, [3])

        # The local APIC's timer instead.
        mov     al, 0xff
        out     PIC + 1, al
        mov     ebp, LAPIC
        mov     dword ptr [rbp + LAPIC_SPURIOUS], ENABLED
        mov     dword ptr [rbp + LAPIC_DIVIDE], BY_1
        mov     dword ptr [rbp + LAPIC_TIMER], PERIODIC | LOCAL
        mov     dword ptr [rbp + LAPIC_INITIAL], 10000000
        mov     rbx, offset local_ticks
        call    idle
        mov     dword ptr [rbp + LAPIC_TIMER], MASKED
        out     COUNTED, al         # exit: IoOut(COUNTED, [3])

        # A device at line 4, which answers its doorbell with an interrupt.
        mov     al, 0xef
        out     PIC + 1, al
        mov     rbx, offset answers
ring:   out     DOORBELL, al        # no exit: an ioeventfd
        mov     edx, [rbx]
again:  cli
        cmp     [rbx], edx
        jne     answered
        sti
        hlt
        jmp     again
answered:
        cmp     dword ptr [rbx], ENOUGH
        jb      ring
        mov     al, [rbx]
        out     COUNTED, al         # exit: IoOut(COUNTED, [3])
        out     DONE, al            # exit: IoOut(DONE, …)

        # The same ticks, from a hypervisor that is the controller.
by_hand:
        call    load_tables
        mov     rbx, offset hand_ticks
        call    idle
        out     COUNTED, al         # exit: IoOut(COUNTED, [3])
        cli
        out     BUSY, al            # exit: IoOut(BUSY, …): a tick comes, and must wait
        mov     ecx, 1000
work:   dec     ecx
        jnz     work
critical:
        mov     al, [rbx]           # still what it was
        out     COUNTED, al         # exit: IoOut(COUNTED, [3])
        sti
        nop                         # in the shadow of sti
window: nop                         # exit: IrqWindowOpen, before this
        mov     al, [rbx]
        out     COUNTED, al         # exit: IoOut(COUNTED, [4])
        cli
        hlt                         # exit: Hlt

# Waits until [rbx] is ENOUGH, and returns it in AL, interrupts off. Between sti and
# hlt no interrupt can come, so none is missed.
idle:   cli
        mov     eax, [rbx]
        cmp     eax, ENOUGH
        jae     rested
        sti
        hlt                         # with the controllers in the machine: no exit
        jmp     idle
rested: ret

# The handlers count, up to ENOUGH.
on_tick:
        push    rax
        mov     eax, [ticks]
        cmp     eax, ENOUGH
        jae     tick_end
        inc     dword ptr [ticks]
tick_end:
        mov     al, EOI
eoi:    out     PIC, al
        pop     rax
        iretq

on_local_tick:
        push    rax
        mov     eax, [local_ticks]
        cmp     eax, ENOUGH
        jae     local_end
        inc     dword ptr [local_ticks]
local_end:
        mov     eax, LAPIC
        mov     dword ptr [rax + LAPIC_EOI], 0
        pop     rax
        iretq

on_answer:
        push    rax
        inc     dword ptr [answers]
        mov     al, EOI
        out     PIC, al
        pop     rax
        iretq

on_hand_tick:
        inc     dword ptr [hand_ticks]
        iretq

load_tables:
        lgdt    [gdtr]
        lidt    [idtr]
        mov     ecx, TIMER
        mov     rax, offset on_tick
        call    set_gate
        mov     ecx, DEVICE
        mov     rax, offset on_answer
        call    set_gate
        mov     ecx, LOCAL
        mov     rax, offset on_local_tick
        call    set_gate
        mov     ecx, HAND
        mov     rax, offset on_hand_tick
# An interrupt gate for vector ECX: bits 15:0 of the address, selector, type, bits 31:16.
set_gate:
        shl     ecx, 4
        mov     [idt + rcx], ax
        mov     word ptr [idt + rcx + 2], CODE
        mov     word ptr [idt + rcx + 4], 0x8e00
        shr     eax, 16
        mov     [idt + rcx + 6], ax
        ret

        .data
        .balign 8
gdt:    .quad   0                   # the null descriptor
        .quad   0x00af9b000000ffff  # CODE: 64-bit, ring 0
        .quad   0x00cf93000000ffff  # data
gdtr:   .word   gdtr - gdt - 1
        .quad   gdt
idtr:   .word   16 * 256 - 1
        .quad   idt

        .bss
        .balign 16
idt:    .skip   16 * 256
ticks:  .skip   4
local_ticks:
        .skip   4
answers:
        .skip   4
hand_ticks:
        .skip   4
