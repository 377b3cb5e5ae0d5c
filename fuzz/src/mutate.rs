//! Changes of an input that keep it close to a valid one.

use fastrand::Rng;

const BLOCK: usize = 512;

/// Numbers at which parsers change their mind.
const NUMBERS: [&str; 12] = [
    "0",
    "1",
    "-1",
    "7",
    "8",
    "255",
    "4095",
    "65536",
    "2147483648",
    "4294967295",
    "9223372036854775808",
    "18446744073709551616",
];

/// An input made from `of` by a few random changes, pieces of `other` among them.
pub fn mutate(rng: &mut Rng, of: &[u8], other: &[u8], has_checksums: bool) -> Vec<u8> {
    let mut bytes = of.to_vec();
    for _ in 0..rng.usize(1..6) {
        change(rng, &mut bytes, other);
    }
    // Mostly right, or nothing but the test of the checksum would ever be reached.
    if has_checksums && rng.u8(..) < 240 {
        mend_checksums(&mut bytes);
    }
    bytes
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = rng.usize(..=bytes.len());
    let span = |rng: &mut Rng, limit: usize| {
        let from = rng.usize(..=limit);
        from..limit.min(from + 1 + rng.usize(..24))
    };
    match rng.u8(..9) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(..8),
        1 if at < bytes.len() => {
            bytes[at] = *rng.choice(b"\0\x01/.0179\x7f\x80\xff \n\"\\{}[]=xgSLK5").unwrap_or(&0)
        }
        2 => bytes.insert(at, rng.u8(..)),
        3 => drop(bytes.drain(span(rng, bytes.len()))),
        4 => {
            let piece = bytes[span(rng, bytes.len())].to_vec();
            bytes.splice(at..at, piece);
        }
        5 => {
            let piece = other[span(rng, other.len())].to_vec();
            let end = bytes.len().min(at + piece.len());
            bytes.splice(at..end, piece);
        }
        6 => replace_number(rng, bytes),
        7 => {
            // Whole blocks, so that an archive stays one.
            let (from, to) = (rng.usize(..=bytes.len()) / BLOCK * BLOCK, at / BLOCK * BLOCK);
            let block = bytes[from..bytes.len().min(from + BLOCK)].to_vec();
            bytes.splice(to..to, block);
        }
        8 if rng.u8(..) < 32 => bytes.truncate(at),
        _ => {}
    }
}

/// Puts another number where digits are.
fn replace_number(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let starts: Vec<usize> = (0..bytes.len())
        .filter(|&at| bytes[at].is_ascii_digit() && (at == 0 || !bytes[at - 1].is_ascii_digit()))
        .collect();
    let Some(&start) = rng.choice(&starts) else { return };
    let n_digits = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = rng.choice(NUMBERS).unwrap_or("0");
    bytes.splice(start..start + n_digits, number.bytes());
}

/// Makes the checksum right of every block that looks like a header.
pub fn mend_checksums(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(BLOCK) {
        let looks_summed =
            block[148..154].iter().all(u8::is_ascii_digit) && block[154..156] == *b"\0 ";
        if block[257..262] != *b"ustar" && !looks_summed {
            continue;
        }
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}
