# Six guests to measure a machine with. Each is entered in 64-bit code, at its own
# symbol, with the number of rounds in R9, and halts after the last. Memory: DATA
# and above is free; WALK is 16 MiB in pages of 4 KiB.

        .set    DATA, 0x200000
        .set    COPY, 0x800000
        .set    WALK, 0x1000000
        .set    NUMBERS, 100000         # of the sieve
        .set    ROOT, 317               # the first number whose square is above NUMBERS
        .set    BYTES, 0x100000         # of a copy
        .set    PAGES, 4096             # of the walk

        .globl  _start
        .code64
# Two instructions, a register, and a flag.
_start:
register_loop:
        mov     ecx, 500000
1:      dec     ecx
        jnz     1b
        dec     r9d
        jnz     register_loop
        hlt                             # exit: Hlt

# The primes below NUMBERS, by striking out: stores all over 100 KB.
sieve:  mov     edi, DATA
        mov     ecx, NUMBERS
        xor     eax, eax
2:      mov     [rdi], al               # every number is prime
        inc     rdi
        dec     ecx
        jnz     2b
        mov     ebx, 2
3:      cmp     byte ptr [rbx + DATA], 0
        jne     5f
        mov     eax, ebx
        imul    eax, ebx
4:      cmp     eax, NUMBERS
        jae     5f
        mov     byte ptr [rax + DATA], 1
        add     eax, ebx
        jmp     4b
5:      inc     ebx
        cmp     ebx, ROOT
        jne     3b
        dec     r9d
        jnz     sieve
        hlt                             # exit: Hlt

# A megabyte, eight bytes at a time.
copy_words:
        mov     esi, DATA
        mov     edi, COPY
        mov     ecx, BYTES / 8
6:      mov     rax, [rsi]
        mov     [rdi], rax
        add     rsi, 8
        add     rdi, 8
        dec     ecx
        jnz     6b
        dec     r9d
        jnz     copy_words
        hlt                             # exit: Hlt

# A megabyte, by one instruction.
copy_bytes:
        mov     esi, DATA
        mov     edi, COPY
        mov     ecx, BYTES
        rep movsb
        dec     r9d
        jnz     copy_bytes
        hlt                             # exit: Hlt

# The 22nd Fibonacci number, with two calls for each that is no leaf.
calls:  mov     edi, 22
        call    fibonacci
        dec     r9d
        jnz     calls
        hlt                             # exit: Hlt
fibonacci:
        cmp     edi, 2
        jb      7f
        push    rdi
        dec     edi
        call    fibonacci
        pop     rdi
        push    rax
        sub     edi, 2
        call    fibonacci
        pop     rcx
        add     eax, ecx
        ret
7:      mov     eax, edi
        ret

# A load from each of PAGES pages, after a load of CR3 that makes the CPU forget
# their translations: every one is a walk through four tables.
page_walk:
        mov     rax, cr3
        mov     cr3, rax
        mov     esi, WALK
        mov     ecx, PAGES
8:      add     rbx, [rsi]
        add     rsi, 0x1000
        dec     ecx
        jnz     8b
        dec     r9d
        jnz     page_walk
        hlt                             # exit: Hlt
