# L1 intercepts some MSRs: reads of LSTAR and writes of KERNEL_GS_BASE, not reads of STAR.
        .macro  msr_permissions
        poke    MSRPM + 0x820, 0x10             # 0xc0000082: read
        poke    MSRPM + 0x840, 0x20             # 0xc0000102: write
        .endm

        boot    l1_list=msr_permissions
run:
        mov     $VMCB12, %eax
        vmload_vmrun
        expect_exit EXIT_MSR
        count_exit
        movl    $MSR_ANSWER, VMCB12 + 0x5f8     # L2's eax
        jmp     run

        l2_begins
l2_loop:
        spin_and_count L2_COUNT
        testb   $63, L2_COUNT
        jnz     l2_loop
        mov     $0xc0000082, %ecx
        rdmsr
        mov     %eax, L2_MSR                    # L1's answer
        mov     $0xc0000081, %ecx
        rdmsr
        mov     %eax, L2_MSR + 4                # its own
        mov     $0xc0000102, %ecx
        wrmsr
        mov     $L2_RAX, %eax
        mov     $L2_RDX, %edx
        jmp     l2_loop
l2_end:
        image_ends
