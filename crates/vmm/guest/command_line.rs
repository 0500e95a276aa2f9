//! What the guest is told when it boots.

/// The value of `name=` in a zero-terminated command line.
pub(crate) fn argument(line: *const u8, name: &[u8], default: u64) -> u64 {
    if line.is_null() {
        return default;
    }
    let mut at = line;
    let mut at_start = true;
    loop {
        // SAFETY: the boot protocol ends the line by a zero, and no byte past it is read.
        let byte = |offset: usize| unsafe { *at.add(offset) };
        if byte(0) == 0 {
            return default;
        }
        if at_start {
            let same = (0..name.len()).take_while(|&i| byte(i) == name[i]).count();
            if same == name.len() && byte(same) == b'=' {
                let mut value = 0u64;
                let mut i = same + 1;
                while byte(i).is_ascii_digit() {
                    value = value.wrapping_mul(10).wrapping_add(u64::from(byte(i) - b'0'));
                    i += 1;
                }
                return value;
            }
        }
        at_start = byte(0) == b' ';
        // SAFETY: this byte was no zero, so the next one is still of the line.
        at = unsafe { at.add(1) };
    }
}
