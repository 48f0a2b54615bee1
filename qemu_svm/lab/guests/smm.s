# L2 writes to the APM port, which raises an SMI: L2 is left for system management mode,
# and the handler that L1 has put there takes its time.  Machine pc: SMRAM is opened by the
# host bridge's register 0x72, and the firmware has moved SMBASE to 0xa0000.
        boot
        mov     $0x80000070, %eax
        mov     $0xcf8, %edx
        out     %eax, %dx
        mov     $0xfe, %dl
        mov     $0x4a, %al                      # open
        out     %al, %dx
        mov     $handler, %esi
        mov     $SMBASE + 0x8000, %edi
        mov     $handler_end - handler, %ecx
        rep movsb
        mov     $0x0a, %al                      # closed again
        out     %al, %dx
run:
        mov     $VMCB12, %eax
        vmload_vmrun
        expect_exit EXIT_CPUID
        count_exit
        jmp     run

        .code16
handler:
        mov     $SMM_SPIN, %ecx
1:      loopl   1b
        mov     $SMM_COUNT, %ebx
        incl    (%ebx)
        rsm
handler_end:
        .code64

        l2_begins
l2_loop:
        spin_and_count L2_COUNT
        out     %al, $0xb2
        testb   $7, L2_COUNT
        jnz     l2_loop
        cpuid
        jmp     l2_loop
l2_end:
        image_ends
