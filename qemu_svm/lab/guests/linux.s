# L2 under a Linux that is L1: the firmware of a virtual machine, 64 KiB that end at the
# reset vector.  It counts in esi, and every 64th count is a CPUID, which only KVM in L1
# can answer.
        .code16
l2:
        xor     %esi, %esi
next:
        mov     $L2_RBX, %ebx
l2_loop:
        mov     $SPIN, %ecx
1:      loopl   1b
        inc     %esi
        test    $63, %si
        jnz     l2_loop
        xor     %eax, %eax
        cpuid
        jmp     next
l2_end:
        .org    0xfff0
        ljmp    $0xf000, $(l2 - l2)             # where a processor starts
        .org    0x10000
