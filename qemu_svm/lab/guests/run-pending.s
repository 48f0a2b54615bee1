# Many short runs of L2: much of the time is KVM's own, between VMRUN and L2's first
# instruction, where a save finds the run pending.
        boot
        mov     $VMCB12, %eax
        vmload  %rax
run:
        mov     $VMCB12, %eax
        vmrun   %rax
after_vmrun:
        expect_exit EXIT_CPUID
        count_exit
        jmp     run

        l2_begins
l2_loop:
        incl    L2_COUNT
        cpuid
        jmp     l2_loop
l2_end:
        image_ends
