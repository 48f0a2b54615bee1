# Two processors: the first stays in L1 and counts, the second runs L2.
        .macro  local_apic
        poke64  (L1_PDPT + 3 * 8), L1_PD_APIC + 3
        poke64  (L1_PD_APIC + 0xfb8), 0xfee00093
        .endm

        .macro  code32
        .quad   0x00cf9b000000ffff
        .endm

        .set    CODE32, 0x18

        boot    l1_list=local_apic, descriptors=code32
        cmp     $L1_RSP, %esp
        jne     run
        mov     $trampoline, %esi
        mov     $TRAMPOLINE, %edi
        mov     $trampoline_end - trampoline, %ecx
        rep movsb
        mov     $0xfee00300, %edi
        movl    $0xc4500, (%rdi)                        # INIT to all others
        movl    $0xc4600 | TRAMPOLINE >> 12, (%rdi)     # SIPI
        l1_registers
l1_loop:
        spin_and_count L1_COUNT
        jmp     l1_loop
l1_end:
run:
        mov     $VMCB12, %eax
        vmload_vmrun
        expect_exit EXIT_CPUID
        count_exit
        jmp     run

# The second processor begins here, in real mode.
        .code16
trampoline:
        lgdtl   %cs:trampoline_gdt - trampoline
        mov     %cr0, %eax
        inc     %ax
        mov     %eax, %cr0
        ljmpl   $CODE32, $protected
trampoline_gdt:
        .word   gdt_end - gdt - 1
        .long   gdt
trampoline_end:
        .code32
protected:
        mov     $L1_DS_SELECTOR, %eax
        mov     %eax, %ds
        mov     %eax, %ss
        mov     $AP_RSP, %esp
        jmp     enter_long

        .code64
        l2_begins
l2_loop:
        spin_and_count L2_COUNT
        testb   $63, L2_COUNT
        jnz     l2_loop
        cpuid
        jmp     l2_loop
l2_end:
        image_ends
