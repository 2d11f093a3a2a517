# Chapter 04: a guest of 1981. It prints and reads by BIOS calls, reaches past
# 1 MiB, and counts the ticks of a timer in an interrupt handler of its own.
#
# Entered at _start in real mode: CS = DS = 0, SS:SP = 0900:1000. The hypervisor
# has filled the interrupt vectors 0x10 (screen) and 0x16 (keyboard).

        .set    TELETYPE, 0x0e      # int 0x10, AH: print AL
        .set    READ_KEY, 0x00      # int 0x16, AH: AL = the next key
        .set    TIMER, 8            # the timer's vector on a PC
        .set    TICKS, 3

        .globl  _start
        .code16
_start: mov     si, offset hello
print:  lodsb                       # al = [si], si += 1
        test    al, al
        jz      ask
        mov     ah, TELETYPE
        int     0x10                # pushes FLAGS, CS, IP; in the BIOS, exit: IoOut(0x10, [al])
        jmp     print

ask:    mov     ah, READ_KEY
        int     0x16                # in the BIOS, exit: IoOut(0x16, [al])
        mov     [key], al
        mov     ah, TELETYPE
        int     0x10                # in the BIOS, exit: IoOut(0x10, [al])

        mov     ax, 0x0100          # the same byte by another segment: 0100:(key - 0x1000)
        mov     es, ax
        mov     al, es:[key - 0x1000]
        mov     ah, TELETYPE
        int     0x10                # in the BIOS, exit: IoOut(0x10, [al])

        mov     byte ptr [0x500], '!'
        mov     ax, 0xffff          # ffff:0510 = 0xffff0 + 0x510 = 0x100500, past 1 MiB
        mov     es, ax
        mov     al, es:[0x510]      # exit: MmioRead(0x100500, [answer])
        mov     ah, TELETYPE
        int     0x10                # in the BIOS, exit: IoOut(0x10, [al])

        mov     word ptr [TIMER * 4], offset tick
        mov     word ptr [TIMER * 4 + 2], cs
interrupts_on:
        sti
wait:   hlt                         # exit: Hlt; the hypervisor lets the timer tick
        cmp     byte ptr [ticks], TICKS
        jb      wait
        cli
        hlt                         # exit: Hlt; with interrupts off, nothing can end it

tick:   inc     byte ptr [ticks]    # entered with FLAGS, CS and IP on the stack
        iret

        .data
hello:  .asciz  "key? "
key:    .skip   1
ticks:  .skip   1
