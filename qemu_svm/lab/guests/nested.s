# L1 runs an L2 that counts; every 64th count ends in a CPUID, which L1 intercepts.
# With GIF 0 it is L2 that clears GIF, after every VMRUN, which had set it.
        boot
run:
        clean_pdpte
        mov     $VMCB12, %eax
        vmload_vmrun
        expect_exit EXIT_CPUID
        count_exit
        jmp     run

        l2_begins
l2_entered:
        .if     GIF == 0
        clgi
        .endif
l2_loop:
        spin_and_count L2_COUNT
        clean_pdpte
        testb   $63, L2_COUNT
        jnz     l2_loop
        cpuid
        jmp     l2_entered
l2_end:
        image_ends
