# Chapter 12: a serial port, driven three ways: polled, by interrupts, and read from.
#
# Entered in long mode, ring 0, interrupts off, with a stack; the first GiB is mapped
# to itself. The machine has KVM's interrupt controllers, and a 16550 at COM1.

        .set    BEGIN, 0x10         # port: a driver begins, by its number
        .set    DONE, 0x11          # port: it is done, and has sent so many bytes

        .set    DATA, 0x3f8         # out: a byte to send; in: a byte that has come
        .set    IER, 0x3f9          # which interrupts it may ask for
        .set    IIR, 0x3fa          # in: which one it asks for
        .set    LCR, 0x3fb          # the form of a byte on the line
        .set    MCR, 0x3fc          # its other pins
        .set    LSR, 0x3fd          # its state

        .set    READY, 1 << 0       # LSR.DR: a byte has come
        .set    EMPTY, 1 << 5       # LSR.THRE: a byte may be sent
        .set    ON_DATA, 1 << 0     # IER: ask when a byte has come,
        .set    ON_EMPTY, 1 << 1    # when a byte may be sent
        .set    IS_EMPTY, 2         # IIR: it asks since a byte may be sent,
        .set    IS_DATA, 4          # since a byte has come
        .set    DLAB, 1 << 7        # LCR: DATA and IER are the divisor instead
        .set    EIGHT, 3            # LCR: 8 data bits, no parity, one stop bit
        .set    PINS, 0xb           # MCR: DTR, RTS, and OUT2, which a PC's line passes through

        .set    PIC, 0x20           # the first 8259A: commands, and at the next port its mask
        .set    EOI, 0x20           # to it: the interrupt has been served
        .set    VECTOR, 0x20        # of line 0; the serial port is at line 4
        .set    CODE, 8             # the selector of 64-bit code
        .set    RETURN, 13          # what the Enter key sends
        .set    FEED, 10            # the next line

        .globl  _start
        .code64
_start: lgdt    [gdtr]
        lidt    [idtr]
        mov     eax, offset on_serial
        mov     [gate], ax          # bits 15:0 of the address; the rest is in .data
        mov     al, 0x11            # the 8259A: initialize; a fourth word follows
        out     PIC, al
        mov     al, VECTOR
        out     PIC + 1, al
        mov     al, 1 << 2          # a second one is at line 2
        out     PIC + 1, al
        mov     al, 1               # for an 8086
        out     PIC + 1, al
        mov     al, 0xef            # everything is masked but line 4
        out     PIC + 1, al

        mov     dx, LCR
        mov     al, DLAB
        out     dx, al              # exit: IoOut(LCR, [80])
        mov     dx, DATA
        mov     al, 1               # 115200 bits a second, divided by 1
        out     dx, al              # exit: IoOut(DATA, [01]), the divisor's low byte
        mov     dx, IER
        xor     eax, eax
        out     dx, al              # exit: IoOut(IER, [00]), its high byte
        mov     dx, LCR
form:   mov     al, EIGHT           # DLAB is clear from here on
        out     dx, al              # exit: IoOut(LCR, [03])
        mov     dx, MCR
        mov     al, PINS
        out     dx, al              # exit: IoOut(MCR, [0b])

        # 1: polled.
        mov     al, 1
        out     BEGIN, al           # exit: IoOut(BEGIN, [01])
        mov     rsi, offset polled
        call    print
        mov     al, [sent]
        out     DONE, al            # exit: IoOut(DONE, …)

        # 2: by interrupts. The handler sends; this only sleeps.
        mov     al, 2
        out     BEGIN, al           # exit: IoOut(BEGIN, [02])
        mov     dword ptr [sent], 0
        mov     dx, IER
        mov     al, ON_EMPTY        # a byte may be sent already: the interrupt comes at once
        out     dx, al              # exit: IoOut(IER, [02])
sleep:  cli
        cmp     byte ptr [busy], 0
        je      slept
        sti
        hlt                         # with the controllers in KVM: no exit
        jmp     sleep
slept:  mov     al, [sent]
        out     DONE, al            # exit: IoOut(DONE, …)

        # 3: what is typed comes by interrupts, and goes back polled.
        mov     rsi, offset prompt
        call    print
        mov     al, 3
        out     BEGIN, al           # exit: IoOut(BEGIN, [03])
        mov     dword ptr [sent], 0
        mov     dx, IER
        mov     al, ON_DATA
        out     dx, al              # exit: IoOut(IER, [01])
take:   cli
        movzx   eax, byte ptr [tail]
        cmp     al, [head]
        jne     taken
        sti
        hlt
        jmp     take
taken:  sti
        mov     cl, [typed + rax]
        inc     byte ptr [tail]
        cmp     cl, RETURN
        je      entered
        call    put
        jmp     take
entered:
        mov     rsi, offset newline
        call    print
        cli
        mov     al, [sent]
        out     DONE, al            # exit: IoOut(DONE, …): the hypervisor ends here
        hlt

# Prints the text at RSI, up to its zero.
print:  mov     cl, [rsi]
        test    cl, cl
        jz      printed
        call    put
        inc     rsi
        jmp     print
printed:
        ret

# Sends CL as soon as it may.
put:    mov     dx, LSR
full:   in      al, dx              # exit: IoIn(LSR)
        test    al, EMPTY
        jz      full
        mov     al, cl
        mov     dx, DATA
        out     dx, al              # exit: IoOut(DATA, [cl])
        inc     dword ptr [sent]
        ret

# The port wants something. One kind of interrupt is on at a time, so it wants one thing.
on_serial:
        push    rax
        push    rcx
        push    rdx
        mov     dx, IIR
        in      al, dx              # exit: IoIn(IIR)
        and     al, 0xf
        cmp     al, IS_DATA
        je      receive
        cmp     al, IS_EMPTY
        jne     served
        mov     rcx, [next]
        mov     al, [rcx]
        test    al, al
        jz      all_sent
        mov     dx, DATA
        out     dx, al              # exit: IoOut(DATA, [al])
        inc     qword ptr [next]
        inc     dword ptr [sent]
        jmp     served
all_sent:
        mov     byte ptr [busy], al
        mov     dx, IER
        out     dx, al              # exit: IoOut(IER, [00])
        jmp     served

# Takes all that has come; what finds no room is lost.
receive:
        mov     dx, LSR
        in      al, dx              # exit: IoIn(LSR)
        test    al, READY
        jz      served
        mov     dx, DATA
        in      al, dx              # exit: IoIn(DATA)
        movzx   ecx, byte ptr [head]
        mov     [typed + rcx], al
        inc     cl
        cmp     cl, [tail]
        je      receive
        mov     [head], cl
        jmp     receive

served: mov     al, EOI
eoi:    out     PIC, al             # no exit for us: KVM's 8259A answers
        pop     rdx
        pop     rcx
        pop     rax
        iretq

        .data
        .balign 8
gdt:    .quad   0                   # the null descriptor
        .quad   0x00af9b000000ffff  # CODE: 64-bit, ring 0
        .quad   0x00cf93000000ffff  # data
gdtr:   .word   gdtr - gdt - 1
        .quad   gdt
idtr:   .word   idt_end - idt - 1
        .quad   idt
next:   .quad   interrupted
busy:   .byte   1

        .balign 16
idt:    .skip   16 * (VECTOR + 4)
gate:   .word   0, CODE, 0x8e00, 0  # an interrupt gate; the address is below 64 KiB
        .quad   0
idt_end:

polled: .asciz  "Polled: is it ready? Then a byte.\r\n"
interrupted:
        .asciz  "By interrupts: it says when.\r\n"
prompt: .asciz  "Type a line: "
newline:
        .asciz  "\r\n"

        .bss
sent:   .skip   4                   # bytes, since the driver began
head:   .skip   1                   # where the handler puts the next byte,
tail:   .skip   1                   # and where the next one is taken
typed:  .skip   256
