# Every VMRUN but the first injects an interrupt into L2, whose handler comes back at once: a save between
# VMRUN and L2's first instruction finds the event pending.
        .macro  l2_tables
        poke    (L2_GDT_BASE + L2_CS_SELECTOR), 0x0000ffff
        poke    (L2_GDT_BASE + L2_CS_SELECTOR + 4), 0x00af9b00
        poke    (L2_IDT_BASE + 16 * VECTOR), ((L2_CS_SELECTOR << 16) + l2_event - image)
        poke    (L2_IDT_BASE + 16 * VECTOR + 4), ((IMAGE & 0xffff0000) + 0x8e00)
        .endm

        boot    l2_list=l2_tables
        mov     $VMCB12, %eax
        vmload  %rax
run:
        mov     $VMCB12, %eax
        vmrun   %rax
after_vmrun:
        expect_exit EXIT_CPUID
        count_exit
        movl    $EVENT, VMCB12 + 0x0a8
        jmp     run

        l2_begins
l2_loop:
        incl    L2_COUNT
        cpuid
        jmp     l2_loop
l2_event:
        mov     $L2_RSP, %esp
        incl    L2_EVENTS
        jmp     l2_loop
l2_end:
        image_ends
