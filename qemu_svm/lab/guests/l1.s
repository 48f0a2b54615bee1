# L1 is mostly itself: it counts, and every 64th count runs an L2 that comes back at once.
# #VMEXIT clears GIF; it stays so while L1 counts unless GIF says that it is set again.
        boot
run:
        mov     $VMCB12, %eax
        vmload_vmrun
        expect_exit EXIT_CPUID
        count_exit
        .if     GIF
        stgi
        .endif
        l1_registers
l1_loop:
        spin_and_count L1_COUNT
        testb   $63, L1_COUNT
        jnz     l1_loop
        jmp     run
l1_end:

        l2_begins
l2_loop:
        incl    L2_COUNT
        cpuid
        jmp     l2_loop
l2_end:
        image_ends
