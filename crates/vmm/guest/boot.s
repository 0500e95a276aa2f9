/* From the PVH entry (32 bits, no paging) to `guest_main` at ring 3 in long mode, with all I/O ports allowed.
 *
 * Ring 3, because a KVM without hardware virtualisation below it (PVM) runs only that natively. HLT is impossible
 * there and interrupts stay off. The address space is the identity, 2 MiB pages, 4 GiB. */
    .section .note.pvh, "a", @note
    .align 4
    .long 4, 8, 18                  /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad _start

    .section .text.boot, "ax"
    .code32
    .globl _start
_start:
    cli
    mov %ebx, start_info_at
    mov $ring0_stack_top, %esp
    mov $pdpt, %eax
    or $7, %eax                     /* present, writable, user */
    mov %eax, pml4
    mov $page_directories, %eax
    or $7, %eax
    mov %eax, pdpt
    add $4096, %eax
    mov %eax, pdpt + 8
    add $4096, %eax
    mov %eax, pdpt + 16
    add $4096, %eax
    mov %eax, pdpt + 24
    mov $0x87, %eax                 /* the same, and 2 MiB */
    mov $page_directories, %edi
    mov $2048, %ecx
1:  mov %eax, (%edi)
    add $0x200000, %eax
    add $8, %edi
    dec %ecx
    jnz 1b
    mov $0x620, %eax                /* CR4: PAE, OSFXSR, OSXMMEXCPT */
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx           /* EFER.LME */
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000022, %eax            /* PG, NE, MP */
    and $~0xc, %eax                 /* not EM, not TS */
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $1f
    .code64
1:  mov $0x10, %eax
    mov %eax, %ss
    mov $0x28, %ax
    ltr %ax
    push $0x1b                      /* SS: data, ring 3 */
    mov $ring3_stack_top, %eax
    push %rax
    push $0x3002                    /* RFLAGS: IOPL 3, IF 0 */
    push $0x23                      /* CS: 64-bit code, ring 3 */
    mov $ring3_entry, %eax
    push %rax
    iretq
ring3_entry:
    mov $0x1b, %eax
    mov %eax, %ds
    mov %eax, %es
    mov start_info_at, %edi
    xor %ebp, %ebp
    call guest_main
2:  pause
    jmp 2b

    .section .data
    .align 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        /* 0x08: 64-bit code, ring 0 */
    .quad 0x00cf93000000ffff        /* 0x10: data, ring 0 */
    .quad 0x00cff3000000ffff        /* 0x18: data, ring 3 */
    .quad 0x00affb000000ffff        /* 0x20: 64-bit code, ring 3 */
    .word tss_end - tss - 1         /* 0x28: TSS; its base is tss_bits_0_15 and 0x10, as link.ld asserts */
    .word tss_bits_0_15
    .byte 0x10, 0x89, 0, 0
    .quad 0
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt
start_info_at:
    .long 0

    .section .tss, "aw"
    .align 16
    .globl tss
tss:
    .fill 102, 1, 0
    .word 104                       /* where the I/O bitmap begins */
    .fill 8192, 1, 0                /* every port is allowed */
    .byte 0xff
tss_end:

    .section .bss.boot, "aw", @nobits
    .align 4096
pml4:
    .skip 4096
pdpt:
    .skip 4096
page_directories:
    .skip 16384
    .skip 4096
ring0_stack_top:
    .skip 32768
ring3_stack_top:
