# L2 touches an emulated device, the I/O APIC, at every 64th count: KVM must emulate the
# instruction, and for that translate L2's addresses itself.
        .macro  l1_tables
        .if     NESTED_CTL
        poke64  (NPT_PDPT + 3 * 8), NPT_PD_DEVICE + 7
        poke64  (NPT_PD_DEVICE + 0xfb0), DEVICE + 0x97
        .endif
        .endm

        .macro  l2_tables
        poke64  (L2_PDPT + 3 * 8), L2_PHYSICAL + L2_PD_DEVICE + 3
        poke64  (L2_PD_DEVICE + 0xfb0), DEVICE + 0x93
        .endm

        boot    l1_list=l1_tables, l2_list=l2_tables
run:
        mov     $VMCB12, %eax
        vmload_vmrun
        expect_exit EXIT_CPUID
        count_exit
        jmp     run

        l2_begins
l2_loop:
        spin_and_count L2_COUNT
        testb   $63, L2_COUNT
        jnz     l2_loop
        mov     $DEVICE, %edi
        mov     (%rdi), %edi
        mov     $L2_RDI, %edi
        cpuid
        jmp     l2_loop
l2_end:
        image_ends
